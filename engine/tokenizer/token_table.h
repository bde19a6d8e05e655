// The tokens of a byte-level vocabulary: their bytes, kinds, and a search by bytes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "cogumi/types.h"

namespace cogumi {

class TokenTable {
 public:
  // `spelled`: as in tokenizer.ggml.tokens. `types`: tokenizer.ggml.token_type, one for each token,
  // or empty when all are normal. Errors: INVALID_ARGUMENT naming the token.
  static absl::StatusOr<TokenTable> Create(std::span<const std::string_view> spelled,
                                           std::span<const int64_t> types);

  int32_t Size() const { return static_cast<int32_t>(kinds_.size()); }
  // Bytes that the token stands for. A control token's are its name.
  std::string_view Bytes(TokenId id) const {
    const auto i = static_cast<size_t>(id);
    return std::string_view(arena_).substr(offsets_[i], offsets_[i + 1] - offsets_[i]);
  }
  // A token that stands for no text: control, unknown or unused.
  bool IsControl(TokenId id) const { return KindOf(id) == Kind::kControl; }
  // A token that is found in a text by its name, before byte-pair encoding: user-defined ones
  // always, control tokens only by special parsing.
  bool IsNamed(TokenId id) const { return named_[static_cast<size_t>(id)]; }
  // The normal token with these bytes; -1 when there is none.
  TokenId FindNormal(std::string_view bytes) const;
  // Token of a single byte; -1 when the vocabulary lacks it.
  TokenId ByteToken(uint8_t byte) const { return byte_tokens_[byte]; }

 private:
  enum class Kind : uint8_t {
    kNormal,       // found by byte-pair encoding
    kUnreachable,  // text, but not found by it: user-defined or not in the byte-level alphabet
    kControl,
  };
  Kind KindOf(TokenId id) const { return kinds_[static_cast<size_t>(id)]; }
  // False when a token with the same bytes is there already.
  bool Insert(TokenId id);
  size_t SlotOf(std::string_view bytes) const;

  std::string arena_;
  std::vector<uint32_t> offsets_;  // Size() + 1
  std::vector<Kind> kinds_;
  std::vector<bool> named_;
  std::vector<TokenId> slots_;  // open addressing, a power of two; -1 when free
  std::vector<TokenId> byte_tokens_;
};

}  // namespace cogumi
