#include "engine/io/safetensors.h"

#include <algorithm>
#include <limits>

#include "engine/core/status_macros.h"
#include "engine/io/json.h"
#include "engine/io/message.h"

namespace cogumi {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr size_t kMaxNameBytes = 256;
constexpr char kMetadata[] = "__metadata__";

absl::Status Bad(const std::string& name, const std::string& what) {
  return absl::InvalidArgumentError(Cat("tensor ", Quoted(name, 80), ": ", what));
}

// Elements of a shape; an error when a dimension is below 1 or the product leaves int64.
absl::StatusOr<int64_t> Product(const std::string& name, const Json::Array& shape,
                                std::vector<int64_t>* out) {
  if (shape.size() > kMaxTensorRank) {
    return Bad(name, Cat(shape.size(), " dimensions, at most ", kMaxTensorRank, " are taken"));
  }
  int64_t product = 1;
  for (const Json& dimension : shape) {
    const int64_t* value = dimension.integer();
    if (value == nullptr || *value < 1) {
      return Bad(name, Cat("dimension ", dimension.Describe(), " is not a positive whole number"));
    }
    if (*value > std::numeric_limits<int64_t>::max() / 8 / product) {
      return Bad(name, "the product of its dimensions is too large");
    }
    product *= *value;
    out->push_back(*value);
  }
  return product;
}

absl::StatusOr<TensorEntry> ReadEntry(const std::string& name, const Json& entry,
                                      uint64_t data_begin, uint64_t data_bytes) {
  TensorEntry tensor;
  tensor.name = name;
  if (name.empty() || name.size() > kMaxNameBytes) {
    return Bad(name, Cat("a name of ", name.size(), " bytes, 1 to ", kMaxNameBytes, " are taken"));
  }
  if (entry.object() == nullptr) return Bad(name, "its description is no object");
  for (const auto& [key, value] : *entry.object()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      return Bad(name, Cat("unknown key ", Quoted(key)));
    }
  }
  const Json* dtype = entry.Find("dtype");
  const Json* shape = entry.Find("shape");
  const Json* offsets = entry.Find("data_offsets");
  if (dtype == nullptr || dtype->string() == nullptr) return Bad(name, "dtype is missing");
  if (shape == nullptr || shape->array() == nullptr) return Bad(name, "shape is missing");
  if (offsets == nullptr || offsets->array() == nullptr || offsets->array()->size() != 2) {
    return Bad(name, "data_offsets is not a pair");
  }
  if (*dtype->string() == "F32") {
    tensor.type = TensorType::kF32;
  } else if (*dtype->string() == "F16") {
    tensor.type = TensorType::kF16;
  } else if (*dtype->string() == "BF16") {
    tensor.type = TensorType::kBF16;
  } else {
    return Bad(name, Cat("dtype ", dtype->Describe(), " is none of F32, F16, BF16"));
  }
  ASSIGN_OR_RETURN(const int64_t elements, Product(name, *shape->array(), &tensor.shape));
  const int64_t* begin = (*offsets->array())[0].integer();
  const int64_t* end = (*offsets->array())[1].integer();
  if (begin == nullptr || end == nullptr || *begin < 0 || *end < *begin ||
      static_cast<uint64_t>(*end) > data_bytes) {
    return Bad(name, Cat("data_offsets are outside the ", data_bytes, " bytes of data"));
  }
  if (*end - *begin != elements * BytesOf(tensor.type)) {
    return Bad(name, Cat(*end - *begin, " bytes for ", elements, " elements of ",
                         NameOf(tensor.type)));
  }
  tensor.begin = data_begin + static_cast<uint64_t>(*begin);
  tensor.end = data_begin + static_cast<uint64_t>(*end);
  return tensor;
}

}  // namespace

int64_t BytesOf(TensorType type) { return type == TensorType::kF32 ? 4 : 2; }

std::string_view NameOf(TensorType type) {
  switch (type) {
    case TensorType::kF32:
      return "F32";
    case TensorType::kF16:
      return "F16";
    case TensorType::kBF16:
      return "BF16";
  }
  return "";
}

absl::StatusOr<uint64_t> SafetensorsHeaderLength(std::string_view first_eight,
                                                 uint64_t file_bytes) {
  if (first_eight.size() < kLengthBytes) {
    return absl::InvalidArgumentError(
        Cat("the file has ", first_eight.size(), " bytes and no header length"));
  }
  uint64_t length = 0;
  for (size_t i = kLengthBytes; i-- > 0;) {
    length = length << 8 | static_cast<unsigned char>(first_eight[i]);
  }
  if (length < 2 || length > kMaxSafetensorsHeader) {
    return absl::InvalidArgumentError(
        Cat("a header of ", length, " bytes, 2 to ", kMaxSafetensorsHeader, " are taken"));
  }
  if (length > file_bytes - kLengthBytes) {
    return absl::InvalidArgumentError(
        Cat("a header of ", length, " bytes in a file of ", file_bytes));
  }
  return length;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json,
                                                         uint64_t file_bytes) {
  JsonLimits limits;
  limits.max_bytes = kMaxSafetensorsHeader;
  limits.max_depth = 4;
  limits.max_values = kMaxTensors * 16;
  auto root = ParseJson(json, limits);
  if (!root.ok()) {
    return absl::InvalidArgumentError(Cat("header: ", root.status().message()));
  }
  if (root->object() == nullptr) return absl::InvalidArgumentError("header: no object");

  SafetensorsHeader header;
  header.data_begin = kLengthBytes + json.size();
  const uint64_t data_bytes = file_bytes - header.data_begin;
  for (const auto& [name, entry] : *root->object()) {
    if (name == kMetadata) continue;
    if (header.tensors.size() >= kMaxTensors) {
      return absl::InvalidArgumentError(Cat("more than ", kMaxTensors, " tensors"));
    }
    ASSIGN_OR_RETURN(TensorEntry tensor, ReadEntry(name, entry, header.data_begin, data_bytes));
    header.tensors.push_back(std::move(tensor));
  }
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const TensorEntry& a, const TensorEntry& b) { return a.begin < b.begin; });
  uint64_t expected = header.data_begin;
  for (const TensorEntry& tensor : header.tensors) {
    if (tensor.begin != expected) {
      return Bad(tensor.name, tensor.begin < expected ? "its bytes overlap another tensor's"
                                                      : "there is a gap before its bytes");
    }
    expected = tensor.end;
  }
  if (expected != file_bytes) {
    return absl::InvalidArgumentError(
        Cat(file_bytes - expected, " bytes behind the last tensor"));
  }
  return header;
}

}  // namespace cogumi
