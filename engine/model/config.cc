#include "engine/model/config.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/io/gguf.h"

namespace cogumi {
namespace {

absl::Status BadKey(const std::string& key, const std::string& value, const std::string& limit) {
  return absl::InvalidArgumentError(absl::StrCat(key, ": ", value, " is not ", limit));
}

// A required integer in [low, high].
absl::StatusOr<int32_t> Int(const GgufFile& file, const std::string& key, int64_t low,
                            int64_t high) {
  ASSIGN_OR_RETURN(const uint64_t value, file.GetUint(key));
  if (value > static_cast<uint64_t>(high) || static_cast<int64_t>(value) < low) {
    return BadKey(key, absl::StrCat(value), absl::StrCat("in [", low, ", ", high, "]"));
  }
  return static_cast<int32_t>(value);
}

absl::StatusOr<int32_t> IntOr(const GgufFile& file, const std::string& key, int64_t low,
                              int64_t high, int32_t fallback) {
  if (!file.Has(key)) return fallback;
  return Int(file, key, low, high);
}

absl::StatusOr<float> FloatOr(const GgufFile& file, const std::string& key, double low, double high,
                              float fallback) {
  if (!file.Has(key)) return fallback;
  ASSIGN_OR_RETURN(const double value, file.GetFloat(key));
  if (!(value > low && value <= high)) {  // false for NaN
    return BadKey(key, absl::StrCat(value), absl::StrCat("in (", low, ", ", high, "]"));
  }
  return static_cast<float>(value);
}

// Linear scaling as files wrote it before llama.rope.scaling.type; 0 and 1 mean none.
absl::Status RefuseOldScaling(const GgufFile& file) {
  if (file.Has("llama.rope.scaling.type")) return absl::OkStatus();
  for (const char* key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"}) {
    if (!file.Has(key)) continue;
    ASSIGN_OR_RETURN(const double factor, file.GetFloat(key));
    if (factor != 0 && factor != 1) {
      return absl::UnimplementedError(
          absl::StrCat(key, ": ", factor, " is not supported; this engine scales no positions"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfig::FromGguf(const GgufFile& file) {
  ASSIGN_OR_RETURN(const std::string_view architecture, file.GetString("general.architecture"));
  if (architecture != "llama") {
    return absl::UnimplementedError(absl::StrCat("general.architecture: '",
                                                 std::string(architecture),
                                                 "' is not supported; this engine runs 'llama'"));
  }
  if (file.Has("llama.expert_count")) {
    ASSIGN_OR_RETURN(const uint64_t experts, file.GetUint("llama.expert_count"));
    if (experts > 0) {
      return absl::UnimplementedError(
          absl::StrCat("llama.expert_count: ", experts, " experts are not supported"));
    }
  }
  if (file.Has("llama.rope.scaling.type")) {
    ASSIGN_OR_RETURN(const std::string_view scaling, file.GetString("llama.rope.scaling.type"));
    if (scaling != "none") {
      return absl::UnimplementedError(absl::StrCat(
          "llama.rope.scaling.type: '", std::string(scaling),
          "' is not supported; Llama 3.1's scaling comes as the tensor rope_freqs.weight"));
    }
  }
  RETURN_IF_ERROR(RefuseOldScaling(file));
  ModelConfig config;
  if (const auto name = file.GetString("general.name"); name.ok()) config.name = *name;
  ASSIGN_OR_RETURN(config.layers, Int(file, "llama.block_count", 1, 1024));
  ASSIGN_OR_RETURN(config.embedding_length, Int(file, "llama.embedding_length", 1, 1 << 16));
  ASSIGN_OR_RETURN(config.feed_forward_length, Int(file, "llama.feed_forward_length", 1, 1 << 18));
  ASSIGN_OR_RETURN(config.heads, Int(file, "llama.attention.head_count", 1, 1024));
  ASSIGN_OR_RETURN(config.kv_heads,
                   IntOr(file, "llama.attention.head_count_kv", 1, 1024, config.heads));
  if (config.heads % config.kv_heads != 0) {
    return BadKey("llama.attention.head_count_kv", absl::StrCat(config.kv_heads),
                  absl::StrCat("a divisor of the ", config.heads, " heads"));
  }
  if (!file.Has("llama.attention.key_length") && config.embedding_length % config.heads != 0) {
    return BadKey("llama.attention.head_count", absl::StrCat(config.heads),
                  absl::StrCat("a divisor of the embedding length ", config.embedding_length));
  }
  ASSIGN_OR_RETURN(config.head_dim, IntOr(file, "llama.attention.key_length", 2, 512,
                                          config.embedding_length / config.heads));
  ASSIGN_OR_RETURN(const int32_t value_dim,
                   IntOr(file, "llama.attention.value_length", 2, 512, config.head_dim));
  if (value_dim != config.head_dim) {
    return absl::UnimplementedError(absl::StrCat("llama.attention.value_length: ", value_dim,
                                                 " differs from key_length ", config.head_dim));
  }
  if (config.head_dim < 2 || config.head_dim > 512 || config.head_dim % 2 != 0) {
    return BadKey("llama.attention.key_length", absl::StrCat(config.head_dim),
                  "an even number in [2, 512]");
  }
  ASSIGN_OR_RETURN(config.rope_dim,
                   IntOr(file, "llama.rope.dimension_count", 0, config.head_dim, config.head_dim));
  if (config.rope_dim % 2 != 0) {
    return BadKey("llama.rope.dimension_count", absl::StrCat(config.rope_dim), "even");
  }
  ASSIGN_OR_RETURN(config.context_length, Int(file, "llama.context_length", 2, 1 << 24));
  ASSIGN_OR_RETURN(config.rms_epsilon,
                   FloatOr(file, "llama.attention.layer_norm_rms_epsilon", 0, 1, 1e-5f));
  ASSIGN_OR_RETURN(config.rope_base, FloatOr(file, "llama.rope.freq_base", 0, 1e12, 10000.0f));
  ASSIGN_OR_RETURN(const GgufTensor* embedding, file.GetTensor("token_embd.weight"));
  const uint64_t vocabulary = embedding->Rows();
  if (vocabulary < 1 || vocabulary > (1u << 24)) {
    return BadKey("token_embd.weight", absl::StrCat(vocabulary, " rows"), "in [1, 16777216]");
  }
  config.vocabulary_size = static_cast<int32_t>(vocabulary);
  ASSIGN_OR_RETURN(const int32_t declared,
                   IntOr(file, "llama.vocab_size", 1, 1 << 24, config.vocabulary_size));
  if (declared != config.vocabulary_size) {
    return BadKey("llama.vocab_size", absl::StrCat(declared),
                  absl::StrCat("the ", config.vocabulary_size, " rows of token_embd.weight"));
  }
  return config;
}

}  // namespace cogumi
