// Paged key-value cache: one byte budget, reference-counted blocks, copy on write.
//
// A page is 64 tokens of one sequence, for all layers and KV heads. It has up to two blocks:
//   wide    what a step appends to;
//   narrow  the cheap form of a full page, of formats that have one, made from the wide block.
// engine/kernels/kv_layout.h describes what is in them.
// A query at position p, in page P = p / 64, sees page j narrow iff 1 <= j <= P - 2: a rule of
// absolute positions alone, so that answers do not depend on chunks or on what is shared. The first
// page and a window of 64-127 tokens stay wide.
//
// The budget is never exceeded: blocks of both kinds are counted, and memory of freed blocks goes
// back to the system before the other kind takes its place. Address space is reserved at once and
// becomes resident when first written. Not thread-safe: owned by the step loop.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cogumi/options.h"
#include "engine/kernels/kv_layout.h"
#include "engine/memory/block_pool.h"

namespace cogumi {

inline constexpr int kKvPageTokens = 64;

struct KvShape {
  int layers = 0;
  int kv_heads = 0;
  int head_dim = 0;
  KvFormat format = KvFormat::kF16;

  // How the blocks of this format look in a layer.
  KvLayout Layout(int layer) const;
  size_t WideBytes() const { return Layout(layers).WideOffset(0); }
  // 0: the format has no narrow blocks.
  size_t NarrowBytes() const { return Layout(layers).NarrowOffset(0); }
  // What the blocks hold, in a word.
  const char* WidePrecision() const;
  const char* NarrowPrecision() const;
};

struct KvPage {
  BlockId wide = kNoBlock;
  BlockId narrow = kNoBlock;
  bool operator==(const KvPage&) const = default;
};

// The pages of one sequence; length counts tokens written or about to be written by a step.
struct KvSequence {
  std::vector<KvPage> pages;
  int32_t length = 0;
};

class KvCache {
 public:
  // RESOURCE_EXHAUSTED when the budget does not hold a sequence of one page, naming both numbers.
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const KvShape& shape,
                                                         int64_t budget_bytes);
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  const KvShape& shape() const { return shape_; }
  int64_t budget_bytes() const { return budget_; }
  int64_t used_bytes() const { return wide_.used_bytes() + narrow_.used_bytes(); }
  int64_t free_bytes() const { return budget_ - used_bytes(); }
  const BlockPool& wide() const { return wide_; }
  const BlockPool& narrow() const { return narrow_; }
  static int PagesFor(int32_t tokens) { return (tokens + kKvPageTokens - 1) / kKvPageTokens; }

  // The most that a sequence holds at any time while it grows to `tokens` a token a step.
  int64_t BytesFor(int32_t tokens) const;
  // The longest sequence that fits into the budget alone.
  int64_t LongestSequence() const;
  // What Extend(sequence, length) would take.
  int64_t BytesNeeded(const KvSequence& sequence, int32_t length) const;
  // The largest length <= `length` to which Extend would succeed now; at least sequence.length.
  int32_t Reach(const KvSequence& sequence, int32_t length) const;

  // Makes room for `length` tokens and sets it; blocks shared with others that would be written
  // are copied first. RESOURCE_EXHAUSTED leaves the sequence as it was.
  absl::Status Extend(KvSequence& sequence, int32_t length);
  // Forgets the tokens from `length` on: rejected drafts, before they are committed.
  void Truncate(KvSequence& sequence, int32_t length);
  // The next query will be at `length` or later: drops wide blocks that none of those sees.
  void Commit(KvSequence& sequence, int32_t length);
  void Release(KvSequence& sequence) { Truncate(sequence, 0); }

  // A second sequence over the pages of the first `length` tokens, copy on write. It may grow from
  // there if CanResume(pages, length, format).
  KvSequence Share(const KvSequence& sequence, int32_t length);
  KvSequence Fork(const KvSequence& sequence) { return Share(sequence, sequence.length); }
  // Whether queries from position `length` on find every page in the precision they must see (a
  // narrow block that is missing can still be made from the wide one).
  static bool CanResume(const std::vector<KvPage>& pages, int32_t length, KvFormat format);

  // One reference more, or less, to the blocks of a page: for holders of pages that are no
  // sequence.
  void Retain(const KvPage& page);
  void Drop(const KvPage& page);

  // Start of K in a wide block. Valid while the cache lives.
  std::byte* Head(BlockId wide, int layer, int kv_head) const {
    return wide_.At(wide) + shape_.Layout(layer).WideOffset(kv_head);
  }
  KvPageView View(const KvPage& page) const {
    return {page.wide == kNoBlock ? nullptr : wide_.At(page.wide),
            page.narrow == kNoBlock ? nullptr : narrow_.At(page.narrow)};
  }
  // Whether a narrow block has been made from its page, and that it will be in this step.
  bool NarrowMade(const KvPage& page) const { return narrow_.Filled(page.narrow); }
  void SetNarrowMade(const KvPage& page) { narrow_.SetFilled(page.narrow); }

 private:
  KvCache(const KvShape& shape, int64_t budget, BlockPool wide, BlockPool narrow);
  static bool HasNarrow(KvFormat format);
  // Pages that a sequence of `length` tokens has narrow: those after the first, up to this one.
  int LastNarrow(int32_t length) const;
  BlockId Take(BlockPool& pool, BlockPool& other);

  const KvShape shape_;
  const int64_t budget_;
  BlockPool wide_;
  BlockPool narrow_;
};

}  // namespace cogumi
