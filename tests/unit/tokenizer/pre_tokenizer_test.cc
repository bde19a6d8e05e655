#include "engine/tokenizer/pre_tokenizer.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cogumi {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Pieces(PreTokenizer kind, std::string_view text) {
  std::vector<std::string> pieces;
  while (!text.empty()) {
    const size_t size = FirstPiece(kind, text);
    if (size == 0 || size > text.size()) {
      ADD_FAILURE() << "a piece of " << size << " bytes at " << text;
      break;
    }
    pieces.emplace_back(text.substr(0, size));
    text.remove_prefix(size);
  }
  return pieces;
}

std::vector<std::string> Gpt2(std::string_view text) { return Pieces(PreTokenizer::kGpt2, text); }
std::vector<std::string> Smollm(std::string_view text) {
  return Pieces(PreTokenizer::kSmollm, text);
}
std::vector<std::string> Llama(std::string_view text) {
  return Pieces(PreTokenizer::kLlamaBpe, text);
}

TEST(PreTokenizer, Names) {
  EXPECT_EQ(FindPreTokenizer("gpt-2"), PreTokenizer::kGpt2);
  EXPECT_EQ(FindPreTokenizer("smollm"), PreTokenizer::kSmollm);
  EXPECT_EQ(FindPreTokenizer("llama-bpe"), PreTokenizer::kLlamaBpe);
  EXPECT_FALSE(FindPreTokenizer("qwen2").has_value());
}

TEST(PreTokenizer, Gpt2) {
  EXPECT_THAT(Gpt2("Don't stop, I'LL  go"),
              ElementsAre("Don", "'t", " stop", ",", " I", "'", "LL", " ", " go"));
  EXPECT_THAT(Gpt2("a 12 b34"), ElementsAre("a", " 12", " b", "34"));
  EXPECT_THAT(Gpt2("x \n\n y  "), ElementsAre("x", " \n\n", " y", "  "));
  EXPECT_THAT(Gpt2("  "), ElementsAre("  "));
  EXPECT_THAT(Gpt2("\n\nx"), ElementsAre("\n", "\n", "x"));
}

TEST(PreTokenizer, SmollmTakesDigitsAlone) {
  EXPECT_THAT(Smollm("a 12  3\n"), ElementsAre("a", " ", "1", "2", "  ", "3", "\n"));
  EXPECT_THAT(Smollm("1'2"), ElementsAre("1", "'", "2"));
  EXPECT_THAT(Smollm("\xc2\xbd\xd9\xa3"), ElementsAre("\xc2\xbd", "\xd9\xa3"));  // ½ ٣
}

TEST(PreTokenizer, Llama) {
  EXPECT_THAT(Llama("I'LL (see) 12345"),
              ElementsAre("I", "'LL", " (", "see", ")", " ", "123", "45"));
  EXPECT_THAT(Llama("a \n\n  b!\n\nc"), ElementsAre("a", " \n\n", " ", " b", "!\n\n", "c"));
  EXPECT_THAT(Llama("\t\tx"), ElementsAre("\t", "\tx"));
  EXPECT_THAT(Llama("x'\xc5\xbf"), ElementsAre("x", "'\xc5\xbf"));  // the long s
}

TEST(PreTokenizer, InvalidBytesAreSymbols) {
  EXPECT_THAT(Gpt2("a\xff\xfe b"), ElementsAre("a", "\xff\xfe", " b"));
  EXPECT_THAT(Gpt2("\xe2\x82"), ElementsAre("\xe2\x82"));                // cut character
  EXPECT_THAT(Gpt2("\xed\xa0\x80x"), ElementsAre("\xed\xa0\x80", "x"));  // surrogate
  EXPECT_THAT(Gpt2("\xc1\x81 \xf8"), ElementsAre("\xc1\x81", " \xf8"));  // overlong; no lead
}

}  // namespace
}  // namespace cogumi
