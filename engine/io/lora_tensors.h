// The tensors of a LoRA adapter for a llama model: their names, and whether a file holds exactly
// those that its configuration promises.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/io/peft_config.h"
#include "engine/io/safetensors.h"

namespace cogumi {

// What decides the shapes of the linears.
struct LlamaShape {
  int32_t layers = 0;
  int32_t embedding_length = 0;
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t head_length = 0;
  int32_t feed_forward_length = 0;
};

// The difference to one linear: B [outputs, rank] times A [rank, inputs].
struct LoraTensors {
  int layer = 0;
  int linear = 0;  // index into LlamaLinears()
  int32_t inputs = 0;
  int32_t outputs = 0;
  const TensorEntry* a = nullptr;  // borrowed from the header
  const TensorEntry* b = nullptr;
};

// Ascending by layer, then linear. INVALID_ARGUMENT naming the tensor that is missing, unknown or
// of another shape.
absl::StatusOr<std::vector<LoraTensors>> FindLoraTensors(const SafetensorsHeader& header,
                                                         const PeftConfig& config,
                                                         const LlamaShape& shape);

}  // namespace cogumi
