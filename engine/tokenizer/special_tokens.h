// Finds tokens by their names in a text: at every place the longest one that fits.
#pragma once

#include <bitset>
#include <cstdint>
#include <optional>
#include <string_view>
#include <unordered_map>

#include "absl/status/statusor.h"
#include "cogumi/types.h"
#include "engine/tokenizer/token_table.h"

namespace cogumi {

class SpecialTokens {
 public:
  enum class Which { kUserDefined, kUserDefinedAndControl };
  // Errors: INVALID_ARGUMENT when they have too much text or one is there twice.
  static absl::StatusOr<SpecialTokens> Create(const TokenTable& tokens, Which which);

  struct Match {
    size_t position = 0;
    size_t size = 0;
    TokenId id = -1;
  };
  // The first of them at or behind `from`.
  std::optional<Match> FindFirst(std::string_view text, size_t from) const;
  // The one of exactly this name; -1 when there is none.
  TokenId Find(std::string_view name) const;

 private:
  // A trie: node 0 is the root; an edge's key is (node << 8) | byte.
  uint32_t Step(uint32_t node, char byte) const;

  std::unordered_map<uint64_t, uint32_t> edges_;
  std::unordered_map<uint32_t, TokenId> token_at_;  // by the node where its name ends
  std::bitset<256> first_bytes_;
};

}  // namespace cogumi
