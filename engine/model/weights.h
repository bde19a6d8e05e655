// The weights of a model, packed for the kernels in one arena.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/core/thread_pool.h"
#include "engine/kernels/packed_matrix.h"
#include "engine/model/arena.h"
#include "engine/model/config.h"

namespace cogumi {

class GgufFile;

struct LayerWeights {
  PackedMatrix q, k, v, o, gate, up, down;
  const float* attention_norm = nullptr;  // [embedding_length]
  const float* ffn_norm = nullptr;
};

struct Weights {
  PackedMatrix embedding;
  PackedMatrix head;  // the embedding itself when tied
  const float* output_norm = nullptr;
  std::vector<LayerWeights> layers;
  std::vector<float> rope_factors;  // [rope_dim / 2], 1 without rope_freqs.weight
  std::vector<int32_t> heavy;       // of a split head

  // Packs all matrices in parallel (`split_head`: a head of Q8_0 as PackedHeadFormatOf says) and
  // drops the file's pages behind it. Errors: NOT_FOUND and INVALID_ARGUMENT naming the tensor,
  // UNIMPLEMENTED for a tensor that the architecture lacks.
  static absl::StatusOr<std::unique_ptr<Weights>> Load(const GgufFile& file,
                                                       const ModelConfig& config, bool split_head,
                                                       ThreadPool* pool);

 private:
  Arena arena_;
};

// Bytes of weights in the file that one token reads: all tensors, but of an untied embedding only
// a row.
int64_t BytesPerToken(const GgufFile& file);

}  // namespace cogumi
