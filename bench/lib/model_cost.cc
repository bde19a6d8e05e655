#include "bench/lib/model_cost.h"

#include <string>

namespace cogumi::bench {

ModelCost CostOfToken(const GgufFile& file) {
  const bool untied = file.FindTensor("output.weight") != nullptr;
  const std::string head = untied ? "output.weight" : "token_embd.weight";
  ModelCost cost;
  for (const GgufTensor& tensor : file.tensors()) {
    if (untied && tensor.name == "token_embd.weight") continue;
    cost.bytes_per_token += static_cast<int64_t>(tensor.data.size());
    if (tensor.shape.size() < 2) continue;
    (tensor.name == head ? cost.head_products : cost.layer_products) +=
        static_cast<int64_t>(tensor.Elements());
  }
  return cost;
}

}  // namespace cogumi::bench
