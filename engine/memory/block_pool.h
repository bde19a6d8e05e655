// Blocks of one size in reserved address space, with reference counts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace cogumi {

using BlockId = int32_t;
inline constexpr BlockId kNoBlock = -1;

class BlockPool {
 public:
  // Reserves address space for as many blocks as `bytes` hold; block_bytes 0: an empty pool.
  // INVALID_ARGUMENT for more blocks than ids, RESOURCE_EXHAUSTED when there is no address space.
  static absl::StatusOr<BlockPool> Create(size_t block_bytes, int64_t bytes);
  BlockPool(BlockPool&& other) noexcept;
  BlockPool& operator=(BlockPool&&) = delete;
  ~BlockPool();

  int64_t block_bytes() const { return static_cast<int64_t>(block_bytes_); }
  int capacity() const { return static_cast<int>(references_.size()); }
  int used() const { return used_; }
  int64_t used_bytes() const { return used_ * block_bytes(); }
  // Of blocks that are used or were and have not been given back to the system.
  int64_t resident_bytes() const {
    return (used_ + static_cast<int64_t>(warm_.size())) * block_bytes();
  }
  // Whether the next Take makes a block more resident.
  bool TakeGrows() const { return warm_.empty(); }

  // A block with one reference; there must be one. Content: anything.
  BlockId Take();
  void Retain(BlockId block) { ++references_[static_cast<size_t>(block)]; }
  void Drop(BlockId block);
  bool Shared(BlockId block) const { return references_[static_cast<size_t>(block)] > 1; }
  bool Valid(BlockId block) const {
    return block >= 0 && block < capacity() && references_[static_cast<size_t>(block)] > 0;
  }
  // A mark of the block's user, false after Take.
  bool Filled(BlockId block) const { return filled_[static_cast<size_t>(block)]; }
  void SetFilled(BlockId block) { filled_[static_cast<size_t>(block)] = true; }

  // Gives the memory of one free block back to the system; false when no free block holds any.
  bool Trim();

  std::byte* At(BlockId block) const { return base_ + static_cast<size_t>(block) * block_bytes_; }

 private:
  BlockPool(size_t block_bytes, std::byte* base, int blocks);

  size_t block_bytes_;
  std::byte* base_;
  std::vector<int32_t> references_;
  std::vector<bool> filled_;
  std::vector<bool> resident_;
  std::vector<BlockId> warm_;  // free, resident: the last one dropped is taken first
  std::vector<BlockId> cold_;  // free, not resident: the lowest first
  int used_ = 0;
};

}  // namespace cogumi
