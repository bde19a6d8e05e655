// UTF-8 out of bytes that come in pieces. Invalid bytes become U+FFFD, one per maximal subpart of
// an ill-formed sequence (Unicode 15, section 3.9; what Python's errors="replace" does).
#pragma once

#include <string>
#include <string_view>

namespace cogumi {

class Utf8Assembler {
 public:
  // Appends to `text` the characters that `bytes` complete; the beginning of an incomplete one is
  // held back. The split of the bytes over calls does not matter.
  void Append(std::string_view bytes, std::string& text);
  // The end of the bytes: what is held back becomes one U+FFFD.
  void Flush(std::string& text);
  // True while the beginning of a character is held back.
  bool incomplete() const { return have_ > 0; }

 private:
  void AppendByte(unsigned char byte, std::string& text);

  char held_[4] = {};
  int have_ = 0;    // bytes held
  int length_ = 0;  // of the character that began
  // Allowed range of the next byte; narrower than 80..BF only for the second.
  unsigned char low_ = 0x80;
  unsigned char high_ = 0xBF;
};

std::string ReplaceInvalidUtf8(std::string_view bytes);

}  // namespace cogumi
