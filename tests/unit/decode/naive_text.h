// What an answer's text must be, computed the plain way from all of its bytes at once.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cogumi {

// Table 3-7 of the Unicode standard: the well-formed sequences, as ranges of each byte.
inline std::string NaiveUtf8(std::string_view bytes) {
  struct Range {
    unsigned char low, high;
  };
  static const std::vector<std::vector<Range>> kForms = {
      {{0x00, 0x7F}},
      {{0xC2, 0xDF}, {0x80, 0xBF}},
      {{0xE0, 0xE0}, {0xA0, 0xBF}, {0x80, 0xBF}},
      {{0xE1, 0xEC}, {0x80, 0xBF}, {0x80, 0xBF}},
      {{0xED, 0xED}, {0x80, 0x9F}, {0x80, 0xBF}},
      {{0xEE, 0xEF}, {0x80, 0xBF}, {0x80, 0xBF}},
      {{0xF0, 0xF0}, {0x90, 0xBF}, {0x80, 0xBF}, {0x80, 0xBF}},
      {{0xF1, 0xF3}, {0x80, 0xBF}, {0x80, 0xBF}, {0x80, 0xBF}},
      {{0xF4, 0xF4}, {0x80, 0x8F}, {0x80, 0xBF}, {0x80, 0xBF}},
  };
  std::string text;
  for (size_t i = 0; i < bytes.size();) {
    size_t longest = 0;
    bool whole = false;
    for (const auto& form : kForms) {
      size_t n = 0;
      while (n < form.size() && i + n < bytes.size()) {
        const unsigned char byte = static_cast<unsigned char>(bytes[i + n]);
        if (byte < form[n].low || byte > form[n].high) break;
        ++n;
      }
      if (n > longest) {
        longest = n;
        whole = n == form.size();
      }
    }
    text += whole ? std::string(bytes.substr(i, longest)) : "\xEF\xBF\xBD";
    i += longest == 0 ? 1 : longest;
  }
  return text;
}

struct NaiveAnswer {
  std::string text;
  std::string matched;
};

// Cuts at the stop string that ends first, the longest of those that end there.
inline NaiveAnswer NaiveStop(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    const std::string* best = nullptr;
    for (const std::string& stop : stops) {
      if (stop.size() > end || text.compare(end - stop.size(), stop.size(), stop) != 0) continue;
      if (best == nullptr || stop.size() > best->size()) best = &stop;
    }
    if (best != nullptr) return {text.substr(0, end - best->size()), *best};
  }
  return {text, ""};
}

// How many of the tokens with these bytes may be told when the answer ends behind the last of them:
// all without stop strings, else those whose last character lies in the answer's text.
inline size_t NaiveTold(const std::vector<std::string>& pieces,
                        const std::vector<std::string>& stops) {
  std::string bytes;
  for (const std::string& piece : pieces) bytes += piece;
  const std::string whole = NaiveUtf8(bytes);
  const NaiveAnswer answer = NaiveStop(whole, stops);
  if (answer.matched.empty()) return pieces.size();
  size_t told = 0;
  size_t end = 0;
  for (const std::string& piece : pieces) {
    end += piece.size();
    // Up to the end of the character that the token ends in.
    size_t cut = end;
    const auto splits_a_character = [&] {
      return NaiveUtf8(std::string_view(bytes).substr(0, cut)) +
                 NaiveUtf8(std::string_view(bytes).substr(cut)) !=
             whole;
    };
    while (splits_a_character()) ++cut;
    if (NaiveUtf8(std::string_view(bytes).substr(0, cut)).size() > answer.text.size()) break;
    ++told;
  }
  return told;
}

}  // namespace cogumi
