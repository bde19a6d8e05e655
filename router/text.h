// Words of a person's text, for lexicon classifiers: bounded, total on any bytes.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace cogumi::router {

// What is looked at of one message: its beginning and its end, half of the limit each.
inline constexpr size_t kMaxBytes = 16 * 1024;
inline constexpr size_t kMaxWords = 4096;

struct Words {
  // Lower-case (ASCII); letters, digits, apostrophes inside, and bytes above 127 as they are.
  // Typographic apostrophes become '.
  std::vector<std::string> words;
  size_t ascii_letters = 0;
  size_t upper_letters = 0;
  size_t other_bytes = 0;  // above 127
  size_t exclamations = 0;
  size_t questions = 0;
};

// The part of `text` that is looked at.
std::string Excerpt(std::string_view text);
Words SplitWords(std::string_view text);

}  // namespace cogumi::router
