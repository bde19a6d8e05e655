// The weights of a model, packed for the kernels in one arena.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/core/thread_pool.h"
#include "engine/kernels/packed_matrix.h"
#include "engine/model/config.h"

namespace cogumi {

class GgufFile;

struct LayerWeights {
  PackedMatrix q, k, v, o, gate, up, down;
  const float* attention_norm = nullptr;  // [embedding_length]
  const float* ffn_norm = nullptr;
};

// Anonymous memory with huge pages where the system has them (+3-5 % of bandwidth).
class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  // RESOURCE_EXHAUSTED. Once.
  absl::Status Reserve(size_t bytes);
  // 64-byte aligned, within what was reserved.
  uint8_t* Take(size_t bytes);
  static size_t Rounded(size_t bytes) { return (bytes + 63) & ~static_cast<size_t>(63); }

 private:
  uint8_t* base_ = nullptr;
  size_t bytes_ = 0;
  size_t used_ = 0;
};

struct Weights {
  PackedMatrix embedding;
  PackedMatrix head;  // the embedding itself when tied
  const float* output_norm = nullptr;
  std::vector<LayerWeights> layers;
  std::vector<float> rope_factors;  // [rope_dim / 2], 1 without rope_freqs.weight

  // Packs all matrices in parallel and drops the file's pages behind it. Errors: NOT_FOUND and
  // INVALID_ARGUMENT naming the tensor, UNIMPLEMENTED for a tensor that the architecture lacks.
  static absl::StatusOr<std::unique_ptr<Weights>> Load(const GgufFile& file,
                                                       const ModelConfig& config, ThreadPool* pool);

 private:
  Arena arena_;
};

// Bytes of weights in the file that one token reads: all tensors, but of an untied embedding only
// a row.
int64_t BytesPerToken(const GgufFile& file);

}  // namespace cogumi
