// Reader of GGUF v2 and v3 model files over a memory map.
//
// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count, offset, string
// length and product is checked against the file before memory is taken, so a hostile file costs
// an error and nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace cogumi {

// Values are GGUF's own.
enum class GgmlType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

// Name as llama.cpp prints it, e.g. "Q4_1"; "type 99" when unknown.
std::string GgmlTypeName(GgmlType type);

// Elements and bytes of a block; nullopt for a type this engine does not read.
struct GgmlTypeTraits {
  uint32_t block_elements;
  uint32_t block_bytes;
};
std::optional<GgmlTypeTraits> TraitsOf(GgmlType type);

// Dequantises `elements` values (a multiple of the block) to float32, exactly as the format says.
void Dequantize(GgmlType type, const std::byte* data, size_t elements, float* out);

struct GgufTensor {
  std::string name;
  GgmlType type = GgmlType::kF32;
  // ne[0] is the contiguous dimension (inputs of a matrix), ne[1] the rows; 1..4 entries.
  std::vector<uint64_t> shape;
  // Valid while the file lives.
  std::span<const std::byte> data;

  uint64_t Elements() const;
  // Rows of a matrix: the product of all dimensions but the first.
  uint64_t Rows() const;
};

class GgufFile {
 public:
  // Errors: NOT_FOUND, INVALID_ARGUMENT (what, where, limit and value), UNIMPLEMENTED (version).
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);
  // Over bytes that outlive the file object (tests, fuzzing).
  static absl::StatusOr<std::unique_ptr<GgufFile>> Parse(std::span<const std::byte> bytes,
                                                         std::string name);
  ~GgufFile();
  GgufFile(const GgufFile&) = delete;
  GgufFile& operator=(const GgufFile&) = delete;

  const std::string& path() const;
  size_t bytes() const;
  const std::vector<GgufTensor>& tensors() const;
  // nullptr when absent.
  const GgufTensor* FindTensor(std::string_view name) const;
  // NOT_FOUND naming the tensor and the file.
  absl::StatusOr<const GgufTensor*> GetTensor(std::string_view name) const;

  // Metadata by key. NOT_FOUND when absent, INVALID_ARGUMENT when of another type or out of range.
  // Integers of any width convert when the value fits; GetFloat takes float32 and float64.
  bool Has(std::string_view key) const;
  absl::StatusOr<uint64_t> GetUint(std::string_view key) const;
  absl::StatusOr<int64_t> GetInt(std::string_view key) const;
  absl::StatusOr<double> GetFloat(std::string_view key) const;
  absl::StatusOr<bool> GetBool(std::string_view key) const;
  absl::StatusOr<std::string_view> GetString(std::string_view key) const;
  // Views into the file; cheap for vocabularies of 100k entries.
  absl::StatusOr<std::vector<std::string_view>> GetStrings(std::string_view key) const;
  absl::StatusOr<std::vector<int64_t>> GetInts(std::string_view key) const;
  absl::StatusOr<std::vector<float>> GetFloats(std::string_view key) const;

  // Tells the kernel that the file pages of a tensor are no longer needed (after repacking).
  void DropPages(const GgufTensor& tensor) const;
  // SHA-256 of the whole file, lower-case hex.
  std::string Digest() const;

 private:
  struct Impl;
  explicit GgufFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace cogumi
