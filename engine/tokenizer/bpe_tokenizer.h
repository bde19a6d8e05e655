// Byte-level byte-pair encoding: the tokenizer of `tokenizer.ggml.model = "gpt2"`.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/io/gguf.h"
#include "engine/tokenizer/tokenizer.h"

namespace cogumi {

absl::StatusOr<std::unique_ptr<Tokenizer>> CreateBpeTokenizer(const GgufFile& file);

}  // namespace cogumi
