#include "engine/tokenizer/tokenizer.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "engine/core/status_macros.h"
#include "engine/io/gguf.h"
#include "engine/io/gguf_parser.h"
#include "engine/io/message.h"
#include "engine/tokenizer/bpe_tokenizer.h"

namespace cogumi {
namespace {

// For models without a vocabulary ("no_vocab", such as random ones for benchmarks): ids only. A
// text has no tokens, a token no bytes.
class IdTokenizer : public Tokenizer {
 public:
  IdTokenizer(int32_t size, std::vector<TokenId> end_tokens)
      : size_(size), end_tokens_(std::move(end_tokens)) {}

  Encoded Encode(std::string_view text, bool /*parse_special*/) const override {
    constexpr size_t kMost = std::numeric_limits<int32_t>::max();
    return {{}, static_cast<int32_t>(std::min(text.size(), kMost))};
  }
  std::string_view TokenBytes(TokenId /*id*/, bool /*special*/) const override { return {}; }
  int32_t VocabularySize() const override { return size_; }
  bool IsControl(TokenId /*id*/) const override { return false; }
  TokenId FindToken(std::string_view /*text*/) const override { return -1; }
  TokenId bos() const override { return -1; }
  bool add_bos() const override { return false; }
  const std::vector<TokenId>& end_tokens() const override { return end_tokens_; }

 private:
  int32_t size_;
  std::vector<TokenId> end_tokens_;
};

absl::StatusOr<std::unique_ptr<Tokenizer>> CreateIdTokenizer(const GgufFile& file) {
  ASSIGN_OR_RETURN(const std::string_view architecture, file.GetString("general.architecture"));
  const std::string size_key = Cat(architecture, ".vocab_size");
  ASSIGN_OR_RETURN(const uint64_t size, file.GetUint(size_key));
  if (size == 0 || size > static_cast<uint64_t>(std::numeric_limits<int32_t>::max())) {
    return absl::InvalidArgumentError(Cat(gguf::Printable(size_key), " is ", size, " (1 to ",
                                          std::numeric_limits<int32_t>::max(), ")"));
  }
  constexpr std::string_view kEosKey = "tokenizer.ggml.eos_token_id";
  std::vector<TokenId> end_tokens;
  if (file.Has(kEosKey)) {
    ASSIGN_OR_RETURN(const uint64_t eos, file.GetUint(kEosKey));
    if (eos >= size) {
      return absl::InvalidArgumentError(
          Cat(kEosKey, " is ", eos, ", the vocabulary has ", size, " tokens"));
    }
    end_tokens.push_back(static_cast<TokenId>(eos));
  }
  return std::make_unique<IdTokenizer>(static_cast<int32_t>(size), std::move(end_tokens));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> CreateByModel(const GgufFile& file) {
  ASSIGN_OR_RETURN(const std::string_view model, file.GetString("tokenizer.ggml.model"));
  if (model == "gpt2") return CreateBpeTokenizer(file);
  if (model == "no_vocab") return CreateIdTokenizer(file);
  return absl::UnimplementedError(
      Cat("tokenizer model \"", gguf::Printable(model),
          "\" is not supported; supported are gpt2 (byte-level BPE) and no_vocab"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(const GgufFile& file) {
  auto tokenizer = CreateByModel(file);
  if (tokenizer.ok()) return tokenizer;
  const std::string message(tokenizer.status().message());
  if (message.find(file.path()) != std::string::npos) return tokenizer;
  return absl::Status(tokenizer.status().code(), Cat(file.path(), ": ", message));
}

}  // namespace cogumi
