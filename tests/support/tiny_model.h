// Complete random `llama` models of a few hundred kilobytes, with a vocabulary, for tests that need
// a real model file quickly. What they generate is noise, but always the same noise.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/io/gguf.h"
#include "tests/support/gguf_writer.h"

namespace cogumi::testing {

struct TinyModelOptions {
  std::string name = "tiny";
  uint32_t layers = 2;
  uint32_t embedding_length = 64;
  uint32_t feed_forward_length = 128;
  uint32_t heads = 4;
  uint32_t kv_heads = 2;
  uint32_t head_dim = 16;
  uint32_t context_length = 256;
  float rope_base = 10000.0f;
  // Of the matrices; embedding_length and feed_forward_length must be multiples of its block.
  GgmlType type = GgmlType::kF32;
  bool tied = true;           // no output.weight
  bool rope_freqs = false;    // a rope_freqs.weight of factors 1, 2, 4, ...
  bool vocabulary = true;     // false: tokenizer.ggml.model = "no_vocab"
  bool chat_template = true;  // a ChatML template; needs the vocabulary
  uint32_t alignment = 32;    // of the tensors; written to the file when not 32
  uint64_t seed = 1;
  std::optional<GgmlType> head_type = {};  // of token_embd.weight and output.weight; none: type
};

// Ids of the vocabulary: byte b is token b, then eight merged tokens, then the control tokens.
inline constexpr int32_t kTinyEndOfText = 264;  // <|endoftext|>
inline constexpr int32_t kTinyImStart = 265;    // <|im_start|>
inline constexpr int32_t kTinyImEnd = 266;      // <|im_end|>, the model's eos
inline constexpr int32_t kTinyVocabularySize = 267;
// The template's own default system message.
inline constexpr char kTinySystemMessage[] = "You are tiny.";

// With `fields`, also where the numbers of the file are.
std::string TinyModelBytes(const TinyModelOptions& options = {},
                           std::vector<GgufField>* fields = nullptr);

// Writes the model to `path` (its folder exists). Aborts the test program when that fails.
void WriteTinyModel(const std::string& path, const TinyModelOptions& options = {});

}  // namespace cogumi::testing
