// Hyperparameters of a `llama` model, read from GGUF metadata and checked.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace cogumi {

class GgufFile;

struct ModelConfig {
  std::string name;
  int32_t layers = 0;
  int32_t embedding_length = 0;
  int32_t feed_forward_length = 0;
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t rope_dim = 0;  // rotated dimensions of a head: even, <= head_dim
  int32_t context_length = 0;
  int32_t vocabulary_size = 0;
  float rms_epsilon = 1e-5f;
  float rope_base = 10000.0f;

  // Errors: UNIMPLEMENTED naming another architecture or an unsupported RoPE scaling,
  // INVALID_ARGUMENT naming key, limit and value.
  static absl::StatusOr<ModelConfig> FromGguf(const GgufFile& file);
};

}  // namespace cogumi
