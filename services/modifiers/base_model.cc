#include "services/modifiers/base_model.h"

#include <memory>
#include <string_view>

#include "engine/core/status_macros.h"
#include "engine/io/gguf.h"
#include "services/common/text.h"

namespace cogumi::services {
namespace {

constexpr uint64_t kMaxLength = 1 << 20;

absl::StatusOr<int32_t> Length(const GgufFile& file, const std::string& key) {
  ASSIGN_OR_RETURN(const uint64_t value, file.GetUint(key));
  if (value < 1 || value > kMaxLength) {
    return absl::InvalidArgumentError(Cat(key, ": ", value, " is outside [1, ", kMaxLength, "]"));
  }
  return static_cast<int32_t>(value);
}

absl::StatusOr<int32_t> LengthOr(const GgufFile& file, const std::string& key, int32_t fallback) {
  if (!file.Has(key)) return fallback;
  return Length(file, key);
}

absl::StatusOr<BaseModel> ReadShape(const GgufFile& file) {
  BaseModel base;
  ASSIGN_OR_RETURN(const std::string_view architecture, file.GetString("general.architecture"));
  const auto key = [&](const char* name) { return Cat(architecture, ".", name); };
  const auto name = file.GetString("general.name");
  base.name = name.ok() ? std::string(*name) : file.path();
  ASSIGN_OR_RETURN(base.layers, Length(file, key("block_count")));
  ASSIGN_OR_RETURN(base.embedding_length, Length(file, key("embedding_length")));
  ASSIGN_OR_RETURN(base.feed_forward_length, Length(file, key("feed_forward_length")));
  ASSIGN_OR_RETURN(base.heads, Length(file, key("attention.head_count")));
  ASSIGN_OR_RETURN(base.kv_heads, LengthOr(file, key("attention.head_count_kv"), base.heads));
  ASSIGN_OR_RETURN(base.head_length,
                   LengthOr(file, key("attention.key_length"), base.embedding_length / base.heads));
  return base;
}

}  // namespace

absl::StatusOr<BaseModel> ReadBaseModel(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  auto base = ReadShape(*file);
  if (!base.ok()) {
    return absl::Status(base.status().code(), Cat(path, ": ", base.status().message()));
  }
  base->digest = file->Digest();
  return base;
}

}  // namespace cogumi::services
