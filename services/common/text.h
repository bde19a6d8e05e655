// Joining text, and UTF-8 hygiene for text that leaves a process.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace cogumi::services {

// Debian's Abseil has a string_view of its own, which std::string_view does not convert to: Cat is
// absl::StrCat for both, Std and Absl convert.
inline std::string_view Std(absl::string_view text) { return {text.data(), text.size()}; }
inline absl::string_view Absl(std::string_view text) { return {text.data(), text.size()}; }

template <typename T>
const T& CatPart(const T& part) {
  return part;
}
inline absl::string_view CatPart(std::string_view part) { return Absl(part); }

template <typename... Parts>
std::string Cat(const Parts&... parts) {
  return absl::StrCat(CatPart(parts)...);
}

// Bytes of the well-formed UTF-8 character at the start of `text`; 0 when there is none (RFC 3629:
// no overlong forms, no surrogates, nothing above U+10FFFF).
size_t Utf8CharacterLength(std::string_view text);
bool IsValidUtf8(std::string_view text);
// Each maximal ill-formed sequence becomes one U+FFFD.
std::string ToValidUtf8(std::string_view text);
// At most `max_bytes`, cut between characters.
std::string_view TruncateUtf8(std::string_view text, size_t max_bytes);

}  // namespace cogumi::services
