#include "router/text.h"

namespace cogumi::router {
namespace {

bool IsLower(char c) { return c >= 'a' && c <= 'z'; }
bool IsUpper(char c) { return c >= 'A' && c <= 'Z'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsHigh(char c) { return static_cast<unsigned char>(c) >= 0x80; }

// U+2019 and U+02BC are how phones write an apostrophe.
constexpr std::string_view kRightQuote = "\xE2\x80\x99";
constexpr std::string_view kModifierApostrophe = "\xCA\xBC";

}  // namespace

std::string Excerpt(std::string_view text) {
  if (text.size() <= kMaxBytes) return std::string(text);
  constexpr size_t kHalf = kMaxBytes / 2;
  return std::string(text.substr(0, kHalf)) + "\n" +
         std::string(text.substr(text.size() - kHalf));
}

Words SplitWords(std::string_view text) {
  const std::string excerpt = Excerpt(text);
  Words result;
  std::string word;
  const auto flush = [&result, &word] {
    while (!word.empty() && word.back() == '\'') word.pop_back();
    if (!word.empty() && result.words.size() < kMaxWords) result.words.push_back(word);
    word.clear();
  };
  std::string_view rest = excerpt;
  while (!rest.empty()) {
    const char c = rest[0];
    size_t used = 1;
    bool apostrophe = c == '\'';
    if (rest.starts_with(kRightQuote)) {
      apostrophe = true;
      used = kRightQuote.size();
    } else if (rest.starts_with(kModifierApostrophe)) {
      apostrophe = true;
      used = kModifierApostrophe.size();
    }
    if (apostrophe) {
      if (!word.empty()) word += '\'';
    } else if (IsLower(c) || IsUpper(c)) {
      ++result.ascii_letters;
      if (IsUpper(c)) ++result.upper_letters;
      word += IsUpper(c) ? static_cast<char>(c - 'A' + 'a') : c;
    } else if (IsDigit(c)) {
      word += c;
    } else if (IsHigh(c)) {
      ++result.other_bytes;
      word += c;
    } else {
      flush();
      if (c == '!') ++result.exclamations;
      if (c == '?') ++result.questions;
    }
    rest.remove_prefix(used);
  }
  flush();
  return result;
}

}  // namespace cogumi::router
