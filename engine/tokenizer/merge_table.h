// Merges of byte-pair encoding by the pair of tokens that they join.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "cogumi/types.h"
#include "engine/tokenizer/token_table.h"

namespace cogumi {

class MergeTable {
 public:
  struct Merge {
    TokenId left = -1;
    TokenId right = -1;
    uint32_t rank = 0;  // the lowest joins first
    TokenId joined = -1;
  };

  // `lines`: tokenizer.ggml.merges, "left right" each, the first with rank 0. Errors:
  // INVALID_ARGUMENT naming the line whose form is wrong or whose tokens the vocabulary lacks.
  static absl::StatusOr<MergeTable> Create(std::span<const std::string_view> lines,
                                           const TokenTable& tokens);

  // nullptr when the pair does not join.
  const Merge* Find(TokenId left, TokenId right) const {
    const Merge& merge = slots_[SlotOf(left, right)];
    return merge.left < 0 ? nullptr : &merge;
  }

 private:
  size_t SlotOf(TokenId left, TokenId right) const {
    const uint64_t key =
        (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
    const size_t mask = slots_.size() - 1;
    size_t slot = static_cast<size_t>((key * 0x9e3779b97f4a7c15u) >> shift_);
    while (slots_[slot].left >= 0 && (slots_[slot].left != left || slots_[slot].right != right)) {
      slot = (slot + 1) & mask;
    }
    return slot;
  }

  std::vector<Merge> slots_;  // open addressing, 2^(64 - shift_) entries, at most half of them used
  int shift_ = 0;
};

}  // namespace cogumi
