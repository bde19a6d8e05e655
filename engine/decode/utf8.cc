#include "engine/decode/utf8.h"

namespace cogumi {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

void Utf8Assembler::Append(std::string_view bytes, std::string& text) {
  for (const char byte : bytes) AppendByte(static_cast<unsigned char>(byte), text);
}

void Utf8Assembler::Flush(std::string& text) {
  if (have_ > 0) text += kReplacement;
  have_ = 0;
}

void Utf8Assembler::AppendByte(unsigned char byte, std::string& text) {
  if (have_ > 0) {
    if (byte >= low_ && byte <= high_) {
      held_[have_++] = static_cast<char>(byte);
      low_ = 0x80;
      high_ = 0xBF;
      if (have_ == length_) {
        text.append(held_, static_cast<size_t>(have_));
        have_ = 0;
      }
      return;
    }
    Flush(text);  // the byte begins something new
  }
  if (byte < 0x80) {
    text.push_back(static_cast<char>(byte));
    return;
  }
  if (byte < 0xC2 || byte > 0xF4) {  // a continuation, an overlong form, beyond U+10FFFF
    text += kReplacement;
    return;
  }
  length_ = byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
  // No overlong forms (E0, F0), surrogates (ED) or code points beyond U+10FFFF (F4).
  low_ = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;
  high_ = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;
  held_[0] = static_cast<char>(byte);
  have_ = 1;
}

std::string ReplaceInvalidUtf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  Utf8Assembler assembler;
  assembler.Append(bytes, text);
  assembler.Flush(text);
  return text;
}

}  // namespace cogumi
