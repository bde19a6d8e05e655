#include "engine/memory/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"

namespace cogumi {

KvLayout KvShape::Layout(int layer) const {
  KvLayout layout;
  layout.head_dim = head_dim;
  layout.kv_heads = kv_heads;
  layout.layer = layer;
  const bool power_of_two = (head_dim & (head_dim - 1)) == 0;
  switch (format) {
    case KvFormat::kF16:
      break;
    case KvFormat::kF32:
      layout.wide = KvWide::kF32;
      break;
    case KvFormat::kInt8:
      break;
    case KvFormat::kInt4:
      layout.narrow = KvNarrow::kK4V4;
      break;
    case KvFormat::kK8V4:
      layout.narrow = KvNarrow::kK8V4;
      break;
  }
  if (format != KvFormat::kF16 && format != KvFormat::kF32) {
    layout.wide = KvWide::kInt8;
    layout.rotated_k = layout.rotated_v = power_of_two;
  }
  return layout;
}

const char* KvShape::WidePrecision() const {
  switch (Layout(0).wide) {
    case KvWide::kF16:
      return "f16";
    case KvWide::kF32:
      return "f32";
    case KvWide::kInt8:
      return "int8";
  }
  return "";
}

const char* KvShape::NarrowPrecision() const {
  return format == KvFormat::kInt4 ? "int4" : format == KvFormat::kK8V4 ? "k8v4" : "";
}

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(const KvShape& shape,
                                                         int64_t budget_bytes) {
  const int64_t page = static_cast<int64_t>(shape.WideBytes());
  if (page == 0 || budget_bytes < page) {
    return absl::ResourceExhaustedError(
        absl::StrCat("kv_bytes: ", budget_bytes, " hold no page of ", page, " bytes"));
  }
  ASSIGN_OR_RETURN(BlockPool wide, BlockPool::Create(shape.WideBytes(), budget_bytes));
  ASSIGN_OR_RETURN(BlockPool narrow, BlockPool::Create(shape.NarrowBytes(), budget_bytes));
  return std::unique_ptr<KvCache>(
      new KvCache(shape, budget_bytes, std::move(wide), std::move(narrow)));
}

KvCache::KvCache(const KvShape& shape, int64_t budget, BlockPool wide, BlockPool narrow)
    : shape_(shape), budget_(budget), wide_(std::move(wide)), narrow_(std::move(narrow)) {}

bool KvCache::HasNarrow(KvFormat format) {
  return KvShape{1, 1, kKvPageTokens, format}.NarrowBytes() > 0;
}

int KvCache::LastNarrow(int32_t length) const {
  if (!HasNarrow(shape_.format) || length < 1) return 0;
  return std::max(0, (length - 1) / kKvPageTokens - 2);
}

int64_t KvCache::BytesFor(int32_t tokens) const {
  const int64_t pages = PagesFor(tokens);
  if (!HasNarrow(shape_.format)) return pages * wide_.block_bytes();
  // The first page, the window, and the page that a step begins while it makes another narrow.
  return std::min<int64_t>(pages, 4) * wide_.block_bytes() +
         LastNarrow(tokens) * narrow_.block_bytes();
}

int64_t KvCache::LongestSequence() const {
  int64_t pages = budget_ / wide_.block_bytes();
  if (HasNarrow(shape_.format) && pages >= 4) {
    pages = 3 + (budget_ - 4 * wide_.block_bytes()) / narrow_.block_bytes();
  }
  return std::min<int64_t>(pages * kKvPageTokens, std::numeric_limits<int32_t>::max());
}

int64_t KvCache::BytesNeeded(const KvSequence& sequence, int32_t length) const {
  if (length <= sequence.length) return 0;
  const size_t have = sequence.pages.size();
  const size_t need = static_cast<size_t>(PagesFor(length));
  // The page that the next token falls into, when it is partly filled and shared.
  const size_t tail = static_cast<size_t>(sequence.length / kKvPageTokens);
  const bool copy_tail = tail < have && wide_.Shared(sequence.pages[tail].wide);
  const size_t wide = (need > have ? need - have : 0) + (copy_tail ? 1 : 0);
  int narrow = 0;
  for (int j = 1; j <= LastNarrow(length); ++j) {
    const size_t page = static_cast<size_t>(j);
    narrow += page >= have || sequence.pages[page].narrow == kNoBlock;
  }
  return static_cast<int64_t>(wide) * wide_.block_bytes() + narrow * narrow_.block_bytes();
}

int32_t KvCache::Reach(const KvSequence& sequence, int32_t length) const {
  while (length > sequence.length && BytesNeeded(sequence, length) > free_bytes()) {
    // The end of the page before.
    length = (length - 1) / kKvPageTokens * kKvPageTokens;
  }
  return std::max(length, sequence.length);
}

BlockId KvCache::Take(BlockPool& pool, BlockPool& other) {
  if (pool.TakeGrows()) {
    while (wide_.resident_bytes() + narrow_.resident_bytes() + pool.block_bytes() > budget_ &&
           other.Trim()) {
    }
  }
  return pool.Take();
}

absl::Status KvCache::Extend(KvSequence& sequence, int32_t length) {
  if (length <= sequence.length) return absl::OkStatus();
  const int64_t needed = BytesNeeded(sequence, length);
  if (needed > free_bytes()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("KV cache: ", needed, " bytes needed, ", free_bytes(), " free"));
  }
  const size_t tail = static_cast<size_t>(sequence.length / kKvPageTokens);
  if (tail < sequence.pages.size() && wide_.Shared(sequence.pages[tail].wide)) {
    BlockId& block = sequence.pages[tail].wide;
    const BlockId copy = Take(wide_, narrow_);
    std::memcpy(wide_.At(copy), wide_.At(block), shape_.WideBytes());
    wide_.Drop(block);
    block = copy;
  }
  const size_t need = static_cast<size_t>(PagesFor(length));
  while (sequence.pages.size() < need) {
    sequence.pages.push_back({Take(wide_, narrow_), kNoBlock});
  }
  for (int j = 1; j <= LastNarrow(length); ++j) {
    BlockId& narrow = sequence.pages[static_cast<size_t>(j)].narrow;
    if (narrow == kNoBlock) narrow = Take(narrow_, wide_);
  }
  sequence.length = length;
  return absl::OkStatus();
}

void KvCache::Truncate(KvSequence& sequence, int32_t length) {
  sequence.length = std::min(sequence.length, length);
  const size_t keep = static_cast<size_t>(PagesFor(sequence.length));
  while (sequence.pages.size() > keep) {
    Drop(sequence.pages.back());
    sequence.pages.pop_back();
  }
  // A narrow block stays only where it is all that is left of the page.
  for (size_t j = static_cast<size_t>(LastNarrow(sequence.length)) + 1; j < keep; ++j) {
    KvPage& page = sequence.pages[j];
    if (page.narrow == kNoBlock || page.wide == kNoBlock) continue;
    narrow_.Drop(page.narrow);
    page.narrow = kNoBlock;
  }
}

void KvCache::Commit(KvSequence& sequence, int32_t length) {
  for (int j = 1; j <= length / kKvPageTokens - 2; ++j) {
    KvPage& page = sequence.pages[static_cast<size_t>(j)];
    if (page.wide == kNoBlock || page.narrow == kNoBlock || !narrow_.Filled(page.narrow)) continue;
    wide_.Drop(page.wide);
    page.wide = kNoBlock;
  }
}

KvSequence KvCache::Share(const KvSequence& sequence, int32_t length) {
  KvSequence shared;
  shared.length = std::min(length, sequence.length);
  shared.pages.assign(sequence.pages.begin(),
                      sequence.pages.begin() + PagesFor(shared.length));
  for (const KvPage& page : shared.pages) Retain(page);
  return shared;
}

bool KvCache::CanResume(const std::vector<KvPage>& pages, int32_t length, KvFormat format) {
  const int count = PagesFor(length);
  if (static_cast<int>(pages.size()) < count) return false;
  const int last_narrow = HasNarrow(format) ? length / kKvPageTokens - 2 : 0;
  for (int j = 0; j < count; ++j) {
    const KvPage& page = pages[static_cast<size_t>(j)];
    const bool may_be_narrow = j >= 1 && j <= last_narrow;
    if (page.wide == kNoBlock && !(may_be_narrow && page.narrow != kNoBlock)) return false;
  }
  return true;
}

void KvCache::Retain(const KvPage& page) {
  if (page.wide != kNoBlock) wide_.Retain(page.wide);
  if (page.narrow != kNoBlock) narrow_.Retain(page.narrow);
}

void KvCache::Drop(const KvPage& page) {
  if (page.wide != kNoBlock) wide_.Drop(page.wide);
  if (page.narrow != kNoBlock) narrow_.Drop(page.narrow);
}

}  // namespace cogumi
