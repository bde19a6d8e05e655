#include "tests/support/adapter_files.h"

#include <cstring>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace cogumi::testing {

LlamaShape ShapeOf(const TinyModelOptions& model) {
  const auto number = [](uint32_t value) { return static_cast<int32_t>(value); };
  return {number(model.layers),   number(model.embedding_length), number(model.heads),
          number(model.kv_heads), number(model.head_dim),
          number(model.feed_forward_length)};
}

AdapterFiles RandomAdapter(const AdapterFilesOptions& options) {
  const LlamaShape& shape = options.shape;
  std::mt19937_64 random(options.seed);
  std::string header;
  std::string data;
  const auto tensor = [&](const std::string& name, int rows, int columns) {
    const size_t begin = data.size();
    for (int i = 0; i < rows * columns; ++i) {
      // From the generator's bits alone: every standard library agrees.
      const float unit = static_cast<float>(static_cast<double>(random() >> 11) * 0x1p-52 - 1.0);
      const float value = options.deviation * 1.7f * unit;
      char bytes[4];
      std::memcpy(bytes, &value, sizeof(bytes));
      data.append(bytes, sizeof(bytes));
    }
    absl::StrAppend(&header, header.empty() ? "{" : ",", "\"", name,
                    "\":{\"dtype\":\"F32\",\"shape\":[", rows, ",", columns,
                    "],\"data_offsets\":[", begin, ",", data.size(), "]}");
  };
  const int width = shape.embedding_length;
  const int queries = shape.heads * shape.head_length;
  const int keys = shape.kv_heads * shape.head_length;
  const int inner = shape.feed_forward_length;
  for (int layer = 0; layer < shape.layers; ++layer) {
    for (const std::string& module : options.targets) {
      const bool is_mlp = module == "gate_proj" || module == "up_proj" || module == "down_proj";
      const int inputs = module == "o_proj" ? queries : module == "down_proj" ? inner : width;
      const int outputs = module == "q_proj"                         ? queries
                          : module == "k_proj" || module == "v_proj" ? keys
                          : module == "gate_proj" || module == "up_proj" ? inner
                                                                         : width;
      const std::string prefix =
          absl::StrCat("base_model.model.model.layers.", layer, ".", is_mlp ? "mlp" : "self_attn",
                       ".", module, ".lora_");
      tensor(prefix + "A.weight", options.rank, inputs);
      tensor(prefix + "B.weight", outputs, options.rank);
    }
  }
  header += "}";
  while (header.size() % 8 != 0) header += ' ';
  AdapterFiles files;
  for (uint64_t i = 0, length = header.size(); i < 8; ++i, length >>= 8) {
    files.weights += static_cast<char>(length & 0xFF);
  }
  files.weights += header + data;
  files.config = absl::StrCat(
      R"({"peft_type":"LORA","task_type":"CAUSAL_LM","r":)", options.rank, R"(,"lora_alpha":)",
      options.alpha, R"(,"bias":"none","target_modules":[")",
      absl::StrJoin(options.targets, R"(",")"), R"("]})");
  return files;
}

}  // namespace cogumi::testing
