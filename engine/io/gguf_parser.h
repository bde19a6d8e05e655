// Parsing of a GGUF file's bytes into a table of metadata and a table of tensors.
//
// Four stages, each named in its errors: header, metadata, tensor table, tensor data. Nothing is
// allocated from a number in the file before that number is known to fit what is left of it.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "engine/io/gguf.h"

namespace cogumi::gguf {

// GGUF's own numbers of value types.
enum class ValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

std::string_view ValueTypeName(ValueType type);
// Bytes of a scalar; 0 for strings, arrays and unknown types.
size_t ScalarBytes(ValueType type);

// One metadata value: where its bytes are. For a string they are the characters; for an array the
// elements (each string with its 8-byte length), already checked.
struct Value {
  ValueType type = ValueType::kUint8;  // of the elements for an array
  bool is_array = false;
  uint64_t count = 1;
  std::span<const std::byte> bytes;
};

struct Contents {
  std::unordered_map<std::string_view, Value> metadata;
  std::vector<GgufTensor> tensors;
  std::unordered_map<std::string_view, size_t> tensor_index;  // by name, into `tensors`
};

// `name` stands at the front of every error. The contents point into `bytes`.
absl::Status ParseContents(std::span<const std::byte> bytes, std::string_view name,
                           Contents* contents);

// A key or name from a file, safe to print: escaped, at most 64 bytes of it.
std::string Printable(std::string_view text);

// Little-endian load of a scalar.
template <typename T>
T Load(const std::byte* data) {
  static_assert(std::endian::native == std::endian::little, "GGUF files are little-endian");
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

}  // namespace cogumi::gguf
