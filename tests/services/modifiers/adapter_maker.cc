#include "tests/services/modifiers/adapter_maker.h"

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace cogumi::services::test {
namespace {

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t dimension : shape) {
    if (text.size() > 1) text += ",";
    text += std::to_string(dimension);
  }
  return text + "]";
}

std::string LittleEndian(uint64_t value) {
  std::string bytes;
  for (int i = 0; i < 8; ++i, value >>= 8) bytes += static_cast<char>(value & 0xFF);
  return bytes;
}

}  // namespace

BaseModel TinyBase() {
  BaseModel base;
  base.name = "tiny";
  base.digest = std::string(64, 'd');
  base.layers = 2;
  base.embedding_length = 8;
  base.heads = 2;
  base.kv_heads = 1;
  base.head_length = 4;
  base.feed_forward_length = 12;
  return base;
}

AdapterParts RightParts(const BaseModel& base) {
  AdapterParts parts;
  parts.config = R"({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4,
    "lora_dropout": 0.05, "bias": "none", "target_modules": ["down_proj", "q_proj"],
    "base_model_name_or_path": "tiny", "inference_mode": true, "modules_to_save": null,
    "rank_pattern": {}, "alpha_pattern": {}, "use_dora": false, "use_rslora": false,
    "fan_in_fan_out": false, "init_lora_weights": true, "layers_to_transform": null})";
  parts.card = R"({"domain": "code", "license": "Apache-2.0", "description": "For tests.",
    "base_digest": ")" + base.digest + "\"}";
  for (int32_t layer = 0; layer < base.layers; ++layer) {
    const std::string prefix = "base_model.model.model.layers." + std::to_string(layer);
    const int64_t width = base.embedding_length;
    const int64_t queries = int64_t{base.heads} * base.head_length;
    parts.tensors.push_back({prefix + ".self_attn.q_proj.lora_A.weight", {2, width}});
    parts.tensors.push_back({prefix + ".self_attn.q_proj.lora_B.weight", {queries, 2}});
    parts.tensors.push_back(
        {prefix + ".mlp.down_proj.lora_A.weight", {2, base.feed_forward_length}});
    parts.tensors.push_back({prefix + ".mlp.down_proj.lora_B.weight", {width, 2}});
  }
  return parts;
}

std::string MakeSafetensors(
    const std::vector<std::pair<std::string, std::vector<int64_t>>>& tensors, float value) {
  std::string header = "{\"__metadata__\":{\"format\":\"pt\"}";
  std::string data;
  for (const auto& [name, shape] : tensors) {
    int64_t elements = 1;
    for (const int64_t dimension : shape) elements *= dimension;
    const size_t begin = data.size();
    for (int64_t i = 0; i < elements; ++i) {
      char bytes[4];
      std::memcpy(bytes, &value, sizeof(bytes));
      data.append(bytes, sizeof(bytes));
    }
    header += ",\"" + name + "\":{\"dtype\":\"F32\",\"shape\":" + ShapeText(shape) +
              ",\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(data.size()) +
              "]}";
  }
  header += "}";
  while (header.size() % 8 != 0) header += ' ';
  return LittleEndian(header.size()) + header + data;
}

std::string WithHeader(const std::string& header, size_t data_bytes) {
  return LittleEndian(header.size()) + header + std::string(data_bytes, '\0');
}

void WriteFile(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << content;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void WriteAdapter(const std::string& folder, const AdapterParts& parts) {
  std::filesystem::create_directories(folder);
  WriteFile(folder + "/" + kConfigFile, parts.config);
  WriteFile(folder + "/" + kCardFile, parts.card);
  WriteFile(folder + "/" + kWeightsFile, MakeSafetensors(parts.tensors, parts.value));
}

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "cogumi-test-XXXXXX").string();
  path_ = ::mkdtemp(pattern.data());
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

}  // namespace cogumi::services::test
