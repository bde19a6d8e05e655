#include "engine/decode/text_assembler.h"

#include <random>

#include "engine/decode/utf8.h"
#include "gtest/gtest.h"
#include "tests/support/long_tests.h"
#include "tests/unit/decode/naive_text.h"

namespace cogumi {
namespace {

const std::string kReplaced = "\xEF\xBF\xBD";

// Expectations are what Python 3's bytes.decode("utf-8", "replace") gives.
TEST(Utf8, ReplacesOneCharacterPerMaximalSubpart) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"plain", "plain"},
      {"h\xC3\xA9llo", "h\xC3\xA9llo"},
      {"\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80"},
      {"\x80", kReplaced},
      {"\xC0\xAF", kReplaced + kReplaced},                  // overlong
      {"\xE0\x80\xAF", kReplaced + kReplaced + kReplaced},  // overlong
      {"\xED\xA0\x80", kReplaced + kReplaced + kReplaced},  // surrogate
      {"\xF0\x9F\x98", kReplaced},                          // cut off
      {"\xF0\x9F\x98zz", kReplaced + "zz"},
      {"\xE2\x82\xE2\x82\xAC", kReplaced + "\xE2\x82\xAC"},
      {"\xF4\x90\x80\x80", kReplaced + kReplaced + kReplaced + kReplaced},  // beyond U+10FFFF
      {"\xF5\xFF", kReplaced + kReplaced},
      {std::string("a\0b", 3), std::string("a\0b", 3)},
  };
  for (const auto& [bytes, text] : cases) {
    EXPECT_EQ(ReplaceInvalidUtf8(bytes), text);
    EXPECT_EQ(NaiveUtf8(bytes), text);
  }
}

TEST(TextAssembler, HoldsBackAnIncompleteCharacter) {
  TextAssembler assembler({});
  EXPECT_EQ(assembler.Append("a\xF0\x9F"), "a");
  EXPECT_EQ(assembler.Append("\x98"), "");
  EXPECT_EQ(assembler.Append("\x80z"), "\xF0\x9F\x98\x80z");
  EXPECT_EQ(assembler.Append("\xE2\x82"), "");
  EXPECT_EQ(assembler.Flush(), kReplaced);
}

TEST(TextAssembler, HoldsBackWhatMayBecomeAStopString) {
  TextAssembler assembler({"STOP"});
  EXPECT_EQ(assembler.Append("one ST"), "one ");
  EXPECT_EQ(assembler.Append("A ST"), "STA ");
  EXPECT_EQ(assembler.Append("O"), "");
  EXPECT_EQ(assembler.Append("P never seen"), "");
  EXPECT_TRUE(assembler.stopped());
  EXPECT_EQ(assembler.matched_stop(), "STOP");
  EXPECT_EQ(assembler.Append("more"), "");
  EXPECT_EQ(assembler.Flush(), "");
}

TEST(TextAssembler, FlushReleasesTheBeginningOfAStopString) {
  TextAssembler assembler({"\n\nUser:"});
  EXPECT_EQ(assembler.Append("bye\n\nUs"), "bye");
  EXPECT_EQ(assembler.Flush(), "\n\nUs");
  EXPECT_FALSE(assembler.stopped());
}

TEST(TextAssembler, AReplacementAtTheEndMayCompleteAStopString) {
  TextAssembler assembler({"x" + kReplaced});
  EXPECT_EQ(assembler.Append("ax\xE2\x82"), "a");
  EXPECT_EQ(assembler.Flush(), "");
  EXPECT_TRUE(assembler.stopped());
}

TEST(TextAssembler, FirstEndWinsThenTheLongest) {
  TextAssembler first({"abcd", "bc"});
  EXPECT_EQ(first.Append("xabcd"), "xa");
  EXPECT_EQ(first.matched_stop(), "bc");
  TextAssembler longest({"b", "ab", "xab"});
  EXPECT_EQ(longest.Append("-xab"), "-");
  EXPECT_EQ(longest.matched_stop(), "xab");
}

TEST(TextAssembler, OverlappingBeginningsAreFollowed) {
  TextAssembler assembler({"aabaaa"});
  EXPECT_EQ(assembler.Append("aabaa"), "");
  EXPECT_EQ(assembler.Append("b"), "aab");
  EXPECT_EQ(assembler.Append("aaa!"), "");
  EXPECT_TRUE(assembler.stopped());
}

// Random bytes in random pieces: the text never depends on the pieces, every piece is a whole text,
// and nothing of a stop string is ever released.
TEST(TextAssembler, AnySplitGivesTheNaiveText) {
  std::mt19937_64 random(3);
  const std::vector<std::string> alphabets = {
      "ab", "abc\n", std::string("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xED\xA0\xFF\xC0\0", 15)};
  int stopped = 0;
  for (int trial = 0; trial < Trials(20000, 20); ++trial) {
    const std::string& alphabet = alphabets[random() % alphabets.size()];
    const auto word = [&](size_t length) {
      std::string bytes;
      for (size_t i = 0; i < length; ++i) bytes += alphabet[random() % alphabet.size()];
      return bytes;
    };
    std::vector<std::string> stops;
    for (size_t i = random() % 4; i > 0; --i) stops.push_back(NaiveUtf8(word(1 + random() % 5)));
    const std::string bytes = word(random() % 40);
    const NaiveAnswer expected = NaiveStop(NaiveUtf8(bytes), stops);

    TextAssembler assembler(stops);
    std::string text;
    for (size_t at = 0; at < bytes.size() && !assembler.stopped();) {
      const size_t length = std::min(bytes.size() - at, random() % 5);
      const std::string piece = assembler.Append(std::string_view(bytes).substr(at, length));
      ASSERT_EQ(NaiveUtf8(piece), piece) << "a piece cuts a character";
      text += piece;
      ASSERT_EQ(expected.text.compare(0, text.size(), text), 0) << "leaked";
      at += length;
    }
    text += assembler.Flush();
    ASSERT_EQ(text, expected.text);
    ASSERT_EQ(assembler.matched_stop(), expected.matched);
    stopped += assembler.stopped();
  }
  EXPECT_GT(stopped, 2000);
}

}  // namespace
}  // namespace cogumi
