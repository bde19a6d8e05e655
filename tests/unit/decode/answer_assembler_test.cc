#include "engine/decode/answer_assembler.h"

#include <random>

#include "gtest/gtest.h"
#include "tests/support/long_tests.h"
#include "tests/unit/decode/naive_text.h"

namespace cogumi {
namespace {

TokenInfo Token(TokenId id, std::string bytes) {
  TokenInfo info;
  info.id = id;
  info.bytes = std::move(bytes);
  return info;
}

// An answer of tokens 0, 1, ... with these bytes; what was told after each, as "text|ids".
std::vector<std::string> Tell(const std::vector<std::string>& pieces,
                              const std::vector<std::string>& stops) {
  AnswerAssembler answer(stops);
  std::vector<std::string> told;
  for (size_t i = 0; i < pieces.size() && !answer.stopped(); ++i) {
    Chunk chunk = answer.Append(Token(static_cast<TokenId>(i), pieces[i]), pieces[i]);
    if (i + 1 == pieces.size() || answer.stopped()) answer.Finish(chunk);
    std::string line = chunk.text + "|";
    for (const TokenInfo& info : chunk.tokens) line += std::to_string(info.id);
    told.push_back(line);
  }
  return told;
}

using Lines = std::vector<std::string>;

TEST(AnswerAssembler, TokensAreHeldWithTheirText) {
  EXPECT_EQ(Tell({"one ", "S", "T", "A", "!"}, {"STOP"}),
            Lines({"one |0", "|", "|", "STA|123", "!|4"}));
}

TEST(AnswerAssembler, TokensOfAStopStringAreNeverTold) {
  EXPECT_EQ(Tell({"one", "ST", "O", "P"}, {"STOP"}), Lines({"one|0", "|", "|", "|"}));
  EXPECT_EQ(Tell({"one", "STOP and more"}, {"STOP"}), Lines({"one|0", "|"}));
}

TEST(AnswerAssembler, ATokenThatBeginsBeforeTheStopStringIsDropped) {
  EXPECT_EQ(Tell({"a", "b ST", "OP"}, {"STOP"}), Lines({"a|0", "b |", "|"}));
  // But not when the stop string does not come.
  EXPECT_EQ(Tell({"a", "b ST", "ONE"}, {"STOP"}), Lines({"a|0", "b |", "STONE|12"}));
}

TEST(AnswerAssembler, TheBeginningOfAStopStringAtTheEndIsTold) {
  EXPECT_EQ(Tell({"a", "ST"}, {"STOP"}), Lines({"a|0", "ST|1"}));
  // An end token without text.
  EXPECT_EQ(Tell({"a", "ST", ""}, {"STOP"}), Lines({"a|0", "|", "ST|12"}));
}

TEST(AnswerAssembler, ACharacterEndsTheTokensThatBeganIt) {
  EXPECT_EQ(Tell({"\xE2", "\x82", "\xACSTOP"}, {"STOP"}), Lines({"|", "|", "\xE2\x82\xAC|01"}));
  EXPECT_EQ(Tell({"\xE2\x82", "\xACST", "AY"}, {"STOP"}),
            Lines({"|", "\xE2\x82\xAC|0", "STAY|12"}));
  EXPECT_EQ(Tell({"S", "\xE2\x82"}, {"S\xEF\xBF\xBD"}), Lines({"|", "|"}));
}

TEST(AnswerAssembler, WithoutStopStringsATokenIsToldAtOnce) {
  EXPECT_EQ(Tell({"\xE2", "\x82", "\xAC", "x"}, {}), Lines({"|0", "|1", "\xE2\x82\xAC|2", "x|3"}));
}

// Random tokens: what is told in the end is what the definition says, and what is told before is a
// beginning of it.
TEST(AnswerAssembler, TellsWhatTheDefinitionSays) {
  std::mt19937_64 random(5);
  const std::vector<std::string> alphabets = {
      "ab", "abc\n", std::string("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xED\xA0\xFF\xC0\0", 15)};
  int dropped = 0;
  for (int trial = 0; trial < Trials(20000, 20); ++trial) {
    const std::string& alphabet = alphabets[random() % alphabets.size()];
    const auto word = [&](size_t length) {
      std::string bytes;
      for (size_t i = 0; i < length; ++i) bytes += alphabet[random() % alphabet.size()];
      return bytes;
    };
    std::vector<std::string> stops;
    for (size_t i = random() % 4; i > 0; --i) stops.push_back(NaiveUtf8(word(1 + random() % 5)));
    AnswerAssembler answer(stops);
    std::vector<std::string> pieces;
    std::string text;
    size_t told = 0;
    const auto take = [&](const Chunk& chunk) {
      text += chunk.text;
      for (const TokenInfo& info : chunk.tokens) ASSERT_EQ(info.id, static_cast<TokenId>(told++));
    };
    const size_t length = 1 + random() % 12;
    while (pieces.size() < length && !answer.stopped()) {
      pieces.push_back(word(random() % 5));
      take(answer.Append(Token(static_cast<TokenId>(pieces.size() - 1), ""), pieces.back()));
      if (stops.empty()) {
        ASSERT_EQ(told, pieces.size());
      }
    }
    const size_t early = told;
    Chunk last;
    answer.Finish(last);
    take(last);
    std::string bytes;
    for (const std::string& piece : pieces) bytes += piece;
    ASSERT_EQ(text, NaiveStop(NaiveUtf8(bytes), stops).text);
    const size_t expected = NaiveTold(pieces, stops);
    ASSERT_LE(early, expected) << "told a token of a stop string";
    ASSERT_EQ(told, expected);
    dropped += expected < pieces.size() ? 1 : 0;
  }
  EXPECT_GT(dropped, 2000);
}

}  // namespace
}  // namespace cogumi
