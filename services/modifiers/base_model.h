// The base model that adapters are checked against: its name, digest and shape.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "engine/io/lora_tensors.h"

namespace cogumi::services {

// The defaults are the default model's.
struct BaseModel {
  std::string name = "SmolLM2-135M-Instruct";
  std::string digest = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
  int32_t layers = 30;
  int32_t embedding_length = 576;
  int32_t heads = 9;
  int32_t kv_heads = 3;
  int32_t head_length = 64;
  int32_t feed_forward_length = 1536;

  LlamaShape shape() const {
    return {layers, embedding_length, heads, kv_heads, head_length, feed_forward_length};
  }
};

// From a GGUF file: the shape from its header, the digest from all of its bytes (about a second per
// gigabyte). Errors name the file and the key.
absl::StatusOr<BaseModel> ReadBaseModel(const std::string& path);

}  // namespace cogumi::services
