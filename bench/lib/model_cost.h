// What a token costs by arithmetic alone: the numerators of the limits beside measured speeds.
#pragma once

#include <cstdint>

#include "engine/io/gguf.h"

namespace cogumi::bench {

struct ModelCost {
  // Of weights, as the file ships them: all tensors, but of an untied embedding only a row.
  int64_t bytes_per_token = 0;
  // Multiplications by weights: of the layers, and of the output head.
  int64_t layer_products = 0;
  int64_t head_products = 0;
};

ModelCost CostOfToken(const GgufFile& file);

}  // namespace cogumi::bench
