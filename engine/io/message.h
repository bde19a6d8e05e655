// Text of error messages. Debian's Abseil has a string_view of its own, which std::string_view
// does not convert to; Cat accepts both.
#pragma once

#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace cogumi {

template <typename T>
const T& CatPart(const T& part) {
  return part;
}
inline absl::string_view CatPart(std::string_view part) { return {part.data(), part.size()}; }

template <typename... Parts>
std::string Cat(const Parts&... parts) {
  return absl::StrCat(CatPart(parts)...);
}

}  // namespace cogumi
