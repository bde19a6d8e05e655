#include "engine/io/lora_tensors.h"

#include <map>
#include <string>
#include <utility>

#include "engine/io/json.h"
#include "engine/io/message.h"

namespace cogumi {
namespace {

struct Linear {
  const char* block;
  int32_t inputs;
  int32_t outputs;
};

Linear LinearOf(const std::string& module, const LlamaShape& shape) {
  const int32_t width = shape.embedding_length;
  const int32_t queries = shape.heads * shape.head_length;
  const int32_t keys = shape.kv_heads * shape.head_length;
  const int32_t inner = shape.feed_forward_length;
  if (module == "q_proj") return {"self_attn", width, queries};
  if (module == "k_proj" || module == "v_proj") return {"self_attn", width, keys};
  if (module == "o_proj") return {"self_attn", queries, width};
  if (module == "down_proj") return {"mlp", inner, width};
  return {"mlp", width, inner};  // gate_proj, up_proj
}

std::string FormatShape(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += Cat(i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

}  // namespace

absl::StatusOr<std::vector<LoraTensors>> FindLoraTensors(const SafetensorsHeader& header,
                                                         const PeftConfig& config,
                                                         const LlamaShape& shape) {
  const auto bad = [](const std::string& what) { return absl::InvalidArgumentError(what); };
  const std::vector<std::string>& linears = LlamaLinears();
  std::vector<LoraTensors> found;
  // Where a name belongs: the shape it must have, and the place that takes it.
  struct Wanted {
    std::vector<int64_t> shape;
    size_t index = 0;
    bool is_b = false;
  };
  std::map<std::string, Wanted> wanted;
  for (int32_t layer = 0; layer < shape.layers; ++layer) {
    for (size_t i = 0; i < linears.size(); ++i) {
      bool targeted = false;
      for (const std::string& module : config.target_modules) targeted |= module == linears[i];
      if (!targeted) continue;
      const Linear linear = LinearOf(linears[i], shape);
      const std::string prefix = Cat("base_model.model.model.layers.", layer, ".", linear.block,
                                     ".", linears[i], ".lora_");
      wanted[prefix + "A.weight"] = {{config.rank, linear.inputs}, found.size(), false};
      wanted[prefix + "B.weight"] = {{linear.outputs, config.rank}, found.size(), true};
      found.push_back({layer, static_cast<int>(i), linear.inputs, linear.outputs});
    }
  }
  for (const TensorEntry& tensor : header.tensors) {
    const auto it = wanted.find(tensor.name);
    if (it == wanted.end()) {
      return bad(Cat("tensor ", Quoted(tensor.name, 120),
                     " belongs to no target module of the base's ", shape.layers, " layers"));
    }
    if (tensor.shape != it->second.shape) {
      return bad(Cat("tensor ", tensor.name, " has shape ", FormatShape(tensor.shape),
                     ", the base wants ", FormatShape(it->second.shape)));
    }
    LoraTensors& place = found[it->second.index];
    (it->second.is_b ? place.b : place.a) = &tensor;
    wanted.erase(it);
  }
  if (!wanted.empty()) return bad(Cat("tensor ", wanted.begin()->first, " is missing"));
  return found;
}

}  // namespace cogumi
