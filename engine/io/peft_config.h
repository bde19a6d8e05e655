// adapter_config.json of PEFT, option by option: what is accepted, what is refused, by name.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace cogumi {

inline constexpr int kMaxRank = 64;

// The linears of a llama layer, in the order of the forward pass.
const std::vector<std::string>& LlamaLinears();

struct PeftConfig {
  std::string base_model;  // base_model_name_or_path
  int rank = 0;
  float alpha = 0;
  // What B A x is multiplied by.
  float Scale() const { return alpha / static_cast<float>(rank); }
  std::vector<std::string> target_modules;  // in the order of LlamaLinears
};

// The full table stands in the .cc file. Every key is known to it: one that changes the arithmetic
// in a way that is not built is refused by name unless it has its neutral value, one that only
// matters for training is let through, an unknown one is refused with a suggestion.
absl::StatusOr<PeftConfig> ParsePeftConfig(std::string_view text);

}  // namespace cogumi
