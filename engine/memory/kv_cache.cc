#include "engine/memory/kv_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"

namespace cogumi {

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(const KvShape& shape,
                                                         int64_t budget_bytes) {
  const size_t page = shape.PageBytes();
  const int64_t pages = page == 0 ? 0 : budget_bytes / static_cast<int64_t>(page);
  if (pages < 1) {
    return absl::ResourceExhaustedError(
        absl::StrCat("kv_bytes: ", budget_bytes, " hold no page of ", page, " bytes"));
  }
  if (pages > std::numeric_limits<PageId>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("kv_bytes: ", budget_bytes, " are more than ",
                                                   std::numeric_limits<PageId>::max(), " pages"));
  }
  const size_t bytes = static_cast<size_t>(pages) * page;
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("kv_bytes: cannot reserve ", bytes, " bytes: ", std::strerror(errno)));
  }
  return std::unique_ptr<KvCache>(
      new KvCache(shape, static_cast<std::byte*>(base), bytes, static_cast<int>(pages)));
}

KvCache::KvCache(const KvShape& shape, std::byte* base, size_t mapped_bytes, int pages)
    : shape_(shape), base_(base), mapped_bytes_(mapped_bytes) {
  references_.assign(static_cast<size_t>(pages), 0);
  free_.resize(static_cast<size_t>(pages));
  // Lowest page on top: a lightly used cache stays small in memory.
  for (int i = 0; i < pages; ++i) free_[static_cast<size_t>(i)] = pages - 1 - i;
}

KvCache::~KvCache() { munmap(base_, mapped_bytes_); }

absl::Status KvCache::Extend(KvSequence& sequence, int32_t length) {
  if (length <= sequence.length) {
    return absl::OkStatus();
  }
  const size_t have = sequence.pages.size();
  const size_t need = static_cast<size_t>(PagesFor(length));
  // The page that the next token falls into, when it is partly filled and shared.
  const size_t tail = static_cast<size_t>(sequence.length / kKvPageTokens);
  const bool copy_tail = tail < have && references_[static_cast<size_t>(sequence.pages[tail])] > 1;
  const size_t wanted = (need > have ? need - have : 0) + (copy_tail ? 1 : 0);
  if (wanted > free_.size()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("KV cache: ", wanted, " pages needed, ", free_.size(), " free"));
  }
  const auto take = [this] {
    const PageId page = free_.back();
    free_.pop_back();
    references_[static_cast<size_t>(page)] = 1;
    return page;
  };
  if (copy_tail) {
    const PageId copy = take();
    std::memcpy(Head(copy, 0, 0), Head(sequence.pages[tail], 0, 0), shape_.PageBytes());
    Drop(sequence.pages[tail]);
    sequence.pages[tail] = copy;
  }
  while (sequence.pages.size() < need) sequence.pages.push_back(take());
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
}

KvSequence KvCache::Fork(const KvSequence& sequence) {
  for (const PageId page : sequence.pages) ++references_[static_cast<size_t>(page)];
  return sequence;
}

void KvCache::Drop(PageId page) {
  if (--references_[static_cast<size_t>(page)] == 0) free_.push_back(page);
}

}  // namespace cogumi
