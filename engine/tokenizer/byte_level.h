// GPT-2's reversible mapping of bytes to printable characters: vocabularies of byte-level BPE spell
// their tokens in it (a space is written as U+0120).
#pragma once

#include <string>
#include <string_view>

namespace cogumi {

// Appends the bytes that `spelled` stands for. False, with `bytes` unchanged, when a character is
// no byte's or the UTF-8 is invalid.
bool AppendByteLevelDecoded(std::string_view spelled, std::string* bytes);

}  // namespace cogumi
