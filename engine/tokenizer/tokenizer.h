// Byte-level BPE of GGUF vocabularies (tokenizer.ggml.model = "gpt2") with the pre-tokenizers
// `smollm`, `llama-bpe` and `gpt-2`. The ids equal those of the `tokenizers` library. A model
// without a vocabulary ("no_vocab") has a tokenizer that knows ids only: it drops a text's bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "cogumi/types.h"

namespace cogumi {

class GgufFile;

class Tokenizer {
 public:
  struct Encoded {
    std::vector<TokenId> ids;
    int32_t dropped_bytes = 0;  // bytes without a token in the vocabulary
  };

  // Errors: INVALID_ARGUMENT (malformed vocabulary), UNIMPLEMENTED naming the tokenizer model or
  // pre-tokenizer. The file may be closed afterwards.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(const GgufFile& file);
  virtual ~Tokenizer() = default;

  // `parse_special`: control tokens written in the text become those tokens; otherwise they are
  // text like any other. User-defined tokens are found either way. No beginning-of-sequence token
  // is added. Invalid UTF-8 is taken byte by byte. Thread-safe.
  virtual Encoded Encode(std::string_view text, bool parse_special) const = 0;
  // The bytes of one token; empty for control tokens unless `special`. `id` must be valid.
  virtual std::string_view TokenBytes(TokenId id, bool special) const = 0;

  virtual int32_t VocabularySize() const = 0;
  // Control, unknown and unused tokens: they stand for no text.
  virtual bool IsControl(TokenId id) const = 0;
  // A control or user-defined token by its name, else a normal one by its bytes; -1 when absent.
  virtual TokenId FindToken(std::string_view text) const = 0;
  virtual TokenId bos() const = 0;   // -1 when the model has none
  virtual bool add_bos() const = 0;  // tokenizer.ggml.add_bos_token
  // Ids that end an answer: eos, eot, and the end markers of known chat templates.
  virtual const std::vector<TokenId>& end_tokens() const = 0;
};

}  // namespace cogumi
