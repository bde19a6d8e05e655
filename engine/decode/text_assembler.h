// The text of an answer out of the bytes of its tokens: whole UTF-8 characters only, and never a
// part of a stop string.
//
// The answer ends at the stop string that is complete first; of several complete at the same
// character the longest counts. So the split of the text into tokens does not matter.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/decode/utf8.h"

namespace cogumi {

class TextAssembler {
 public:
  // `stops`: valid UTF-8, not empty.
  explicit TextAssembler(const std::vector<std::string>& stops);
  TextAssembler(const TextAssembler&) = delete;
  TextAssembler& operator=(const TextAssembler&) = delete;

  // The text that is certain after these bytes; held back are an incomplete character and the
  // longest ending that could become a stop string. Nothing more once stopped().
  std::string Append(std::string_view bytes);
  // The end of the answer: what was held back, an incomplete character as U+FFFD. It may turn out
  // to be stopped().
  std::string Flush();

  // Whole characters that are held back because they may belong to a stop string.
  std::string_view held() const { return held_; }
  // True while the last character is not complete.
  bool incomplete() const { return utf8_.incomplete(); }

  bool stopped() const { return matched_ != nullptr; }
  // Empty unless stopped().
  std::string_view matched_stop() const {
    return matched_ == nullptr ? std::string_view() : *matched_;
  }

 private:
  // Knuth-Morris-Pratt over one stop string.
  struct Stop {
    std::string text;
    std::vector<size_t> border;  // [length] longest proper border of the first i + 1 bytes
    size_t matched = 0;          // longest prefix that the text so far ends with
  };

  std::string Release(std::string_view text);

  std::vector<Stop> stops_;
  Utf8Assembler utf8_;
  std::string held_;  // whole characters that may belong to a stop string
  const std::string* matched_ = nullptr;
};

}  // namespace cogumi
