// Decoding of UTF-8 that may be invalid.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace cogumi {

struct Utf8Char {
  static constexpr uint32_t kInvalid = 0xffffffff;
  uint32_t code_point = kInvalid;
  size_t size = 1;  // bytes; an invalid byte stands alone
};

// The character at `position` < text.size(). Overlong forms, surrogates and values above U+10FFFF
// are invalid.
inline Utf8Char DecodeUtf8(std::string_view text, size_t position) {
  const auto at = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(text[i])); };
  const uint32_t first = at(position);
  if (first < 0x80) return {first, 1};
  const size_t size = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() - position < size) return {};
  uint32_t code_point = first & (0x7fu >> size);
  for (size_t i = 1; i < size; ++i) {
    const uint32_t next = at(position + i);
    if ((next & 0xc0) != 0x80) return {};
    code_point = (code_point << 6) | (next & 0x3f);
  }
  const bool overlong = (size == 3 && code_point < 0x800) || (size == 4 && code_point < 0x10000);
  const bool surrogate = code_point >= 0xd800 && code_point <= 0xdfff;
  if (overlong || surrogate || code_point > 0x10ffff) return {};
  return {code_point, size};
}

}  // namespace cogumi
