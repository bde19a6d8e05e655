#include "services/cli/json.h"

#include <cmath>

#include "absl/strings/str_format.h"
#include "services/common/logging.h"

namespace cogumi::cli {

std::string JsonNumber(double value) {
  return std::isfinite(value) ? absl::StrFormat("%.9g", value) : "null";
}

JsonObject& JsonObject::AddRaw(std::string_view key, std::string_view json) {
  if (!body_.empty()) body_ += ',';
  body_ += services::JsonString(key);
  body_ += ':';
  body_ += json;
  return *this;
}

JsonObject& JsonObject::Add(std::string_view key, std::string_view text) {
  return AddRaw(key, services::JsonString(text));
}
JsonObject& JsonObject::Add(std::string_view key, double value) {
  return AddRaw(key, JsonNumber(value));
}
JsonObject& JsonObject::Add(std::string_view key, const JsonObject& value) {
  return AddRaw(key, value.str());
}
JsonObject& JsonObject::Add(std::string_view key, const JsonArray& value) {
  return AddRaw(key, value.str());
}

JsonArray& JsonArray::AddRaw(std::string_view json) {
  if (!body_.empty()) body_ += ',';
  body_ += json;
  return *this;
}

JsonArray& JsonArray::Add(std::string_view text) { return AddRaw(services::JsonString(text)); }

}  // namespace cogumi::cli
