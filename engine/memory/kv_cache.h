// Paged key-value cache. A page holds 64 tokens of one sequence for all layers and KV heads.
//
// Layout of a page: [layer][kv_head]{ K transposed [head_dim][64], V [64][head_dim] }, so that a
// score kernel runs over 64 keys without horizontal sums and a value kernel over head_dim.
// One planner turns a byte budget into pages; the address space is reserved at once and becomes
// resident when first written. Not thread-safe: owned by the step loop.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cogumi/options.h"

namespace cogumi {

inline constexpr int kKvPageTokens = 64;
using PageId = int32_t;

struct KvShape {
  int layers = 0;
  int kv_heads = 0;
  int head_dim = 0;
  KvFormat format = KvFormat::kF16;

  size_t ElementBytes() const { return format == KvFormat::kF32 ? 4 : 2; }
  // Bytes of K (or V) of one page, layer and head.
  size_t HeadBytes() const {
    return ElementBytes() * kKvPageTokens * static_cast<size_t>(head_dim);
  }
  size_t PageBytes() const {
    return 2 * HeadBytes() * static_cast<size_t>(layers) * static_cast<size_t>(kv_heads);
  }
};

// The pages of one sequence; length counts tokens written or about to be written by a step.
struct KvSequence {
  std::vector<PageId> pages;
  int32_t length = 0;
};

class KvCache {
 public:
  // RESOURCE_EXHAUSTED when the budget holds no page, naming both numbers.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const KvShape& shape,
                                                         int64_t budget_bytes);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  const KvShape& shape() const { return shape_; }
  int capacity_pages() const { return static_cast<int>(references_.size()); }
  int free_pages() const { return static_cast<int>(free_.size()); }
  int used_pages() const { return capacity_pages() - free_pages(); }
  static int PagesFor(int32_t tokens) { return (tokens + kKvPageTokens - 1) / kKvPageTokens; }

  // Makes room for `length` tokens and sets it; pages shared with a fork that would be written are
  // copied first. RESOURCE_EXHAUSTED leaves the sequence as it was.
  absl::Status Extend(KvSequence& sequence, int32_t length);
  // Forgets the tokens from `length` on.
  void Truncate(KvSequence& sequence, int32_t length);
  // A second sequence over the same pages, copy on write.
  KvSequence Fork(const KvSequence& sequence);
  void Release(KvSequence& sequence) { Truncate(sequence, 0); }

  // Start of K (then V at + HeadBytes()) of a page, layer and head. Valid while the cache lives.
  std::byte* Head(PageId page, int layer, int kv_head) const {
    return base_ + static_cast<size_t>(page) * shape_.PageBytes() +
           2 * shape_.HeadBytes() *
               (static_cast<size_t>(layer) * static_cast<size_t>(shape_.kv_heads) +
                static_cast<size_t>(kv_head));
  }

 private:
  KvCache(const KvShape& shape, std::byte* base, size_t mapped_bytes, int pages);
  void Drop(PageId page);

  KvShape shape_;
  std::byte* base_;
  size_t mapped_bytes_;
  std::vector<int32_t> references_;
  std::vector<PageId> free_;
};

}  // namespace cogumi
