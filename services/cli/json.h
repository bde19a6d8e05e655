// Writes JSON. Values are serialised as they are added; the order of adding is kept.
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cogumi::cli {

class JsonObject;
class JsonArray;

// A number as JSON has it: NaN and infinities become null.
std::string JsonNumber(double value);

class JsonObject {
 public:
  JsonObject& Add(std::string_view key, std::string_view text);
  JsonObject& Add(std::string_view key, const char* text) {
    return Add(key, std::string_view(text));
  }
  JsonObject& Add(std::string_view key, const std::string& text) {
    return Add(key, std::string_view(text));
  }
  JsonObject& Add(std::string_view key, double value);
  JsonObject& Add(std::string_view key, const JsonObject& value);
  JsonObject& Add(std::string_view key, const JsonArray& value);
  template <std::same_as<bool> T>
  JsonObject& Add(std::string_view key, T value) {
    return AddRaw(key, value ? "true" : "false");
  }
  template <std::integral T>
  requires(!std::same_as<T, bool>) JsonObject& Add(std::string_view key, T value) {
    return AddRaw(key, std::to_string(value));
  }
  template <std::integral T>
  JsonObject& Add(std::string_view key, const std::vector<T>& values) {
    std::string text = "[";
    for (const T value : values) {
      if (text.size() > 1) text += ',';
      text += std::to_string(value);
    }
    return AddRaw(key, text + "]");
  }

  std::string str() const { return "{" + body_ + "}"; }

 private:
  JsonObject& AddRaw(std::string_view key, std::string_view json);
  std::string body_;
};

class JsonArray {
 public:
  JsonArray& Add(const JsonObject& value) { return AddRaw(value.str()); }
  JsonArray& Add(std::string_view text);
  JsonArray& Add(double value) { return AddRaw(JsonNumber(value)); }
  std::string str() const { return "[" + body_ + "]"; }

 private:
  JsonArray& AddRaw(std::string_view json);
  std::string body_;
};

}  // namespace cogumi::cli
