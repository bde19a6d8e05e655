// UTF-8 hygiene for text that leaves a process.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace cogumi::services {

// Bytes of the well-formed UTF-8 character at the start of `text`; 0 when there is none (RFC 3629:
// no overlong forms, no surrogates, nothing above U+10FFFF).
size_t Utf8CharacterLength(std::string_view text);
bool IsValidUtf8(std::string_view text);
// Each maximal ill-formed sequence becomes one U+FFFD.
std::string ToValidUtf8(std::string_view text);
// At most `max_bytes`, cut between characters.
std::string_view TruncateUtf8(std::string_view text, size_t max_bytes);

}  // namespace cogumi::services
