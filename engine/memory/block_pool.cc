#include "engine/memory/block_pool.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace cogumi {

absl::StatusOr<BlockPool> BlockPool::Create(size_t block_bytes, int64_t bytes) {
  if (block_bytes == 0) return BlockPool(0, nullptr, 0);
  const int64_t blocks = bytes / static_cast<int64_t>(block_bytes);
  if (blocks > std::numeric_limits<BlockId>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("kv_bytes: ", bytes, " are more than ",
                                                   std::numeric_limits<BlockId>::max(),
                                                   " blocks"));
  }
  if (blocks <= 0) return BlockPool(block_bytes, nullptr, 0);
  const size_t mapped = static_cast<size_t>(blocks) * block_bytes;
  void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("kv_bytes: cannot reserve ", mapped, " bytes: ", std::strerror(errno)));
  }
  return BlockPool(block_bytes, static_cast<std::byte*>(base), static_cast<int>(blocks));
}

BlockPool::BlockPool(size_t block_bytes, std::byte* base, int blocks)
    : block_bytes_(block_bytes), base_(base) {
  const size_t n = static_cast<size_t>(blocks);
  references_.assign(n, 0);
  filled_.assign(n, false);
  resident_.assign(n, false);
  cold_.resize(n);
  for (int i = 0; i < blocks; ++i) cold_[static_cast<size_t>(i)] = blocks - 1 - i;
}

BlockPool::BlockPool(BlockPool&& other) noexcept
    : block_bytes_(other.block_bytes_),
      base_(std::exchange(other.base_, nullptr)),
      references_(std::move(other.references_)),
      filled_(std::move(other.filled_)),
      resident_(std::move(other.resident_)),
      warm_(std::move(other.warm_)),
      cold_(std::move(other.cold_)),
      used_(other.used_) {}

BlockPool::~BlockPool() {
  if (base_ != nullptr) munmap(base_, references_.size() * block_bytes_);
}

BlockId BlockPool::Take() {
  std::vector<BlockId>& from = warm_.empty() ? cold_ : warm_;
  const BlockId block = from.back();
  from.pop_back();
  const size_t i = static_cast<size_t>(block);
  references_[i] = 1;
  filled_[i] = false;
  resident_[i] = true;
  ++used_;
  return block;
}

void BlockPool::Drop(BlockId block) {
  if (--references_[static_cast<size_t>(block)] > 0) return;
  warm_.push_back(block);
  --used_;
}

bool BlockPool::Trim() {
  if (warm_.empty()) return false;
  // The one that would be taken last.
  const BlockId block = warm_.front();
  warm_.erase(warm_.begin());
  resident_[static_cast<size_t>(block)] = false;
  cold_.push_back(block);
  // Blocks do not end at pages of memory: what lies on the border of two free ones goes too.
  size_t first = static_cast<size_t>(block);
  size_t last = first + 1;
  if (first > 0 && !resident_[first - 1]) --first;
  if (last < resident_.size() && !resident_[last]) ++last;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t begin = (first * block_bytes_ + page - 1) / page * page;
  // Nothing else lies behind the last block.
  const size_t after = last == resident_.size() ? page - 1 : 0;
  const size_t end = (last * block_bytes_ + after) / page * page;
  if (begin < end) madvise(base_ + begin, end - begin, MADV_DONTNEED);
  return true;
}

}  // namespace cogumi
