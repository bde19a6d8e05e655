// A bounded JSON reader for files from strangers: size, depth and number of values are limited,
// duplicate keys are errors, numbers stay exact where they are whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"

namespace cogumi::services {

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;  // in order of the text

  Json() = default;
  explicit Json(bool value) : value_(value) {}
  explicit Json(int64_t value) : value_(value) {}
  explicit Json(double value) : value_(value) {}
  explicit Json(std::string value) : value_(std::move(value)) {}
  explicit Json(Array value) : value_(std::move(value)) {}
  explicit Json(Object value) : value_(std::move(value)) {}

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  // Null when it is something else.
  const bool* boolean() const { return std::get_if<bool>(&value_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&value_); }
  const std::string* string() const { return std::get_if<std::string>(&value_); }
  const Array* array() const { return std::get_if<Array>(&value_); }
  const Object* object() const { return std::get_if<Object>(&value_); }
  // Whole numbers too; false when it is no number.
  bool number(double* out) const;
  // A member of an object, or null.
  const Json* Find(std::string_view key) const;

  Array* mutable_array() { return std::get_if<Array>(&value_); }
  Object* mutable_object() { return std::get_if<Object>(&value_); }

  // For messages: the value as text, cut at 60 bytes.
  std::string Describe() const;

 private:
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> value_;
};

struct JsonLimits {
  size_t max_bytes = 64 * 1024;
  size_t max_depth = 16;
  size_t max_values = 65536;
};

// INVALID_ARGUMENT with the place for malformed text, a duplicate key or a broken limit. Numbers
// beyond int64 become doubles.
absl::StatusOr<Json> ParseJson(std::string_view text, const JsonLimits& limits);

}  // namespace cogumi::services
