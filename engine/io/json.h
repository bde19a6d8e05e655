// A bounded JSON reader for files from strangers: size, depth and number of values are limited,
// duplicate keys are errors, numbers stay exact where they are whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace cogumi {

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;  // in order of the text

  Json() = default;
  explicit Json(bool value) : kind_(Kind::kBoolean), boolean_(value) {}
  explicit Json(int64_t value) : kind_(Kind::kInteger), integer_(value) {}
  explicit Json(double value) : kind_(Kind::kReal), real_(value) {}
  explicit Json(std::string value) : kind_(Kind::kString), string_(std::move(value)) {}
  static Json EmptyArray() { return Json(Kind::kArray); }
  static Json EmptyObject() { return Json(Kind::kObject); }

  bool is_null() const { return kind_ == Kind::kNull; }
  // Null when it is something else.
  const bool* boolean() const { return kind_ == Kind::kBoolean ? &boolean_ : nullptr; }
  const int64_t* integer() const { return kind_ == Kind::kInteger ? &integer_ : nullptr; }
  const std::string* string() const { return kind_ == Kind::kString ? &string_ : nullptr; }
  const Array* array() const { return kind_ == Kind::kArray ? &array_ : nullptr; }
  const Object* object() const { return kind_ == Kind::kObject ? &object_ : nullptr; }
  Array* mutable_array() { return kind_ == Kind::kArray ? &array_ : nullptr; }
  Object* mutable_object() { return kind_ == Kind::kObject ? &object_ : nullptr; }
  // Whole numbers too; false when it is no number.
  bool number(double* out) const;
  // A member of an object, or null.
  const Json* Find(std::string_view key) const;

  // For messages: the value as text, cut at 60 bytes.
  std::string Describe() const;

 private:
  enum class Kind { kNull, kBoolean, kInteger, kReal, kString, kArray, kObject };
  explicit Json(Kind kind) : kind_(kind) {}

  // Plain members: GCC 12 takes moves of a recursive std::variant for uninitialised reads.
  Kind kind_ = Kind::kNull;
  bool boolean_ = false;
  int64_t integer_ = 0;
  double real_ = 0;
  std::string string_;
  Array array_;
  Object object_;
};

struct JsonLimits {
  size_t max_bytes = 64 * 1024;
  size_t max_depth = 16;
  size_t max_values = 65536;
};

// Text from a file as it may stand in a message: in quotes, escaped, cut at `max_bytes`. The text
// is UTF-8, as ParseJson hands it out.
std::string Quoted(std::string_view text, size_t max_bytes = 60);

// INVALID_ARGUMENT with the place for malformed text, a duplicate key or a broken limit. Numbers
// beyond int64 become doubles.
absl::StatusOr<Json> ParseJson(std::string_view text, const JsonLimits& limits);

}  // namespace cogumi
