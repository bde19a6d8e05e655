#include "engine/io/json.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "engine/io/message.h"

namespace cogumi {
namespace {

// Builds the tree without recursion and refuses what is beyond the limits while it reads.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Builder(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return Put(Json()); }
  bool boolean(bool value) override { return Put(Json(value)); }
  bool number_integer(number_integer_t value) override {
    return Put(Json(static_cast<int64_t>(value)));
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Put(Json(static_cast<double>(value)));
    }
    return Put(Json(static_cast<int64_t>(value)));
  }
  bool number_float(number_float_t value, const string_t& /*text*/) override {
    return Put(Json(value));
  }
  bool string(string_t& value) override { return Put(Json(std::move(value))); }
  bool binary(binary_t& /*value*/) override { return Refuse("binary values are not JSON"); }

  bool start_object(std::size_t /*elements*/) override { return Open(Json::EmptyObject()); }
  bool key(string_t& key) override {
    if (!keys_.back().insert(key).second) {
      return Refuse(Cat("key ", Quoted(key), " is given twice"));
    }
    stack_.back().mutable_object()->emplace_back(std::move(key), Json());
    return true;
  }
  bool end_object() override { return Close(); }
  bool start_array(std::size_t /*elements*/) override { return Open(Json::EmptyArray()); }
  bool end_array() override { return Close(); }

  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) override {
    return Refuse(Cat("no JSON at byte ", position));
  }

  absl::StatusOr<Json> Take() {
    if (!error_.empty()) return absl::InvalidArgumentError(error_);
    return std::move(root_);
  }

 private:
  bool Refuse(std::string why) {
    if (error_.empty()) error_ = std::move(why);
    return false;
  }
  bool Count() {
    if (++values_ > limits_.max_values) {
      return Refuse(Cat("more than ", limits_.max_values, " values"));
    }
    return true;
  }
  bool Put(Json value) {
    if (!Count()) return false;
    Attach(std::move(value));
    return true;
  }
  void Attach(Json value) {
    if (stack_.empty()) {
      root_ = std::move(value);
    } else if (Json::Array* array = stack_.back().mutable_array()) {
      array->push_back(std::move(value));
    } else {
      stack_.back().mutable_object()->back().second = std::move(value);
    }
  }
  bool Open(Json container) {
    if (!Count()) return false;
    if (stack_.size() >= limits_.max_depth) {
      return Refuse(Cat("nested deeper than ", limits_.max_depth));
    }
    stack_.push_back(std::move(container));
    keys_.emplace_back();
    return true;
  }
  bool Close() {
    Json done = std::move(stack_.back());
    stack_.pop_back();
    keys_.pop_back();
    Attach(std::move(done));
    return true;
  }

  const JsonLimits limits_;
  Json root_;
  std::vector<Json> stack_;
  std::vector<std::unordered_set<std::string>> keys_;
  size_t values_ = 0;
  std::string error_;
};

}  // namespace

bool Json::number(double* out) const {
  if (kind_ == Kind::kInteger) {
    *out = static_cast<double>(integer_);
    return true;
  }
  *out = real_;
  return kind_ == Kind::kReal;
}

const Json* Json::Find(std::string_view key) const {
  const Object* members = object();
  if (members == nullptr) return nullptr;
  for (const auto& [name, value] : *members) {
    if (name == key) return &value;
  }
  return nullptr;
}

std::string Json::Describe() const {
  if (is_null()) return "null";
  if (const bool* flag = boolean()) return *flag ? "true" : "false";
  double value = 0;
  if (number(&value)) return Cat(value);
  if (const std::string* text = string()) return Quoted(*text);
  if (const Array* items = array()) return Cat("a list of ", items->size());
  return Cat("an object of ", object()->size());
}

std::string Quoted(std::string_view text, size_t max_bytes) {
  if (text.size() > max_bytes) {
    size_t end = max_bytes;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
    text = text.substr(0, end);
  }
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      constexpr char kDigits[] = "0123456789abcdef";
      out += "\\u00";
      out += kDigits[static_cast<unsigned char>(c) >> 4];
      out += kDigits[c & 15];
    } else {
      out += c;
    }
  }
  return out + '"';
}

absl::StatusOr<Json> ParseJson(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return absl::InvalidArgumentError(
        Cat(text.size(), " bytes, at most ", limits.max_bytes, " are read"));
  }
  Builder builder(limits);
  nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  return builder.Take();
}

}  // namespace cogumi
