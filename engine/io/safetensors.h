// The header of a safetensors file, checked before anything is believed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace cogumi {

inline constexpr uint64_t kMaxSafetensorsHeader = 1 << 20;
inline constexpr size_t kMaxTensors = 8192;
inline constexpr size_t kMaxTensorRank = 4;

enum class TensorType { kF32, kF16, kBF16 };
int64_t BytesOf(TensorType type);
std::string_view NameOf(TensorType type);

struct TensorEntry {
  std::string name;
  TensorType type = TensorType::kF32;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // from the start of the file
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  // by place in the file
  uint64_t data_begin = 0;           // where the header ends
};

// Length of the header in bytes from the file's first eight, checked against the limit and the
// file's size.
absl::StatusOr<uint64_t> SafetensorsHeaderLength(std::string_view first_eight,
                                                 uint64_t file_bytes);

// `json` is the header's text. INVALID_ARGUMENT naming the tensor for: a type other than F32, F16,
// BF16; a shape whose product does not fit or does not match its bytes; offsets outside the file,
// overlapping, or leaving gaps; bytes behind the last tensor; too many tensors or dimensions.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json,
                                                         uint64_t file_bytes);

}  // namespace cogumi
