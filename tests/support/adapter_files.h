// Random LoRA adapters of any shape, as PEFT writes them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cogumi/types.h"
#include "engine/io/lora_tensors.h"
#include "tests/support/tiny_model.h"

namespace cogumi::testing {

struct AdapterFilesOptions {
  LlamaShape shape;
  int rank = 4;
  float alpha = 8;
  std::vector<std::string> targets = LlamaLinears();
  float deviation = 0.2f;  // of A and B; large enough that answers change
  uint64_t seed = 1;
};

LlamaShape ShapeOf(const TinyModelOptions& model);
// float32 tensors; the same bytes everywhere for the same options.
AdapterFiles RandomAdapter(const AdapterFilesOptions& options);

}  // namespace cogumi::testing
