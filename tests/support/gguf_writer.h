// Writes small GGUF files for tests.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/io/gguf.h"

namespace cogumi::testing {

// A number in a written file, for tests that change it.
struct GgufField {
  enum class Kind {
    kMagic,
    kVersion,
    kTensorCount,
    kPairCount,
    kKeyLength,
    kValueType,
    kElementType,
    kArrayLength,
    kStringLength,
    kBool,
    kAlignment,
    kTensorNameLength,
    kDimensionCount,
    kDimension,
    kTensorType,
    kTensorOffset,
  };
  Kind kind;
  size_t offset;  // in the file
  size_t size;    // bytes
};

// Usage: GgufBuilder().String("general.architecture", "llama").Uint("llama.block_count", 2)
//            .Floats32("output_norm.weight", {4}, {1, 1, 1, 1}).Bytes()
// Keys and tensors stand in the file in the order of the calls. Nothing is checked, so that broken
// files can be written too.
class GgufBuilder {
 public:
  GgufBuilder& Uint(std::string_view key, uint32_t value);
  GgufBuilder& Uint64(std::string_view key, uint64_t value);
  GgufBuilder& Int(std::string_view key, int32_t value);
  GgufBuilder& Float(std::string_view key, float value);
  GgufBuilder& Double(std::string_view key, double value);
  GgufBuilder& Bool(std::string_view key, bool value);
  GgufBuilder& String(std::string_view key, std::string_view value);
  GgufBuilder& Strings(std::string_view key, const std::vector<std::string>& values);
  GgufBuilder& Ints(std::string_view key, const std::vector<int32_t>& values);
  GgufBuilder& Floats(std::string_view key, const std::vector<float>& values);
  // A scalar or array with the type numbers and bytes as given.
  GgufBuilder& Raw(std::string_view key, uint32_t type, std::string_view bytes);

  // shape[0] is the contiguous dimension. The data are stored as they are.
  GgufBuilder& Tensor(std::string_view name, GgmlType type, std::vector<uint64_t> shape,
                      std::string data);
  GgufBuilder& Floats32(std::string_view name, std::vector<uint64_t> shape,
                        const std::vector<float>& values);

  // general.alignment is written only when it is not 32.
  GgufBuilder& Alignment(uint32_t alignment);
  GgufBuilder& Version(uint32_t version);

  // The file; with `fields`, where its numbers are.
  std::string Bytes(std::vector<GgufField>* fields = nullptr) const;

 private:
  struct Pair {
    std::string key;
    uint32_t type;
    std::string bytes;
    // Offsets inside `bytes`.
    std::vector<GgufField> fields;
  };
  struct TensorEntry {
    std::string name;
    GgmlType type;
    std::vector<uint64_t> shape;
    std::string data;
  };

  std::vector<Pair> pairs_;
  std::vector<TensorEntry> tensors_;
  uint32_t alignment_ = 32;
  uint32_t version_ = 3;
};

// The UTF-8 spelling of bytes in the byte-level alphabet of tokenizer.ggml.tokens.
std::string SpellByteLevel(std::string_view bytes);

}  // namespace cogumi::testing
