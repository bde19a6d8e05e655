// What the cache remembers of beginnings: a tree over full pages, so that a request whose prompt
// begins like an earlier one, or goes on where a conversation ended, computes only what is new.
//
// A path is named by tenant and adapter and by the tokens of its pages with their roles: all that a
// page's bits depend on. A node holds references to its page's blocks. Sequences that use a path
// pin it; what nobody pins can be evicted, least recently used leaves first.
//
// Of formats with narrow blocks, a node keeps its wide block only where a sequence may have to
// resume behind it: at the ends of prompts and answers, and where paths part.
// Not thread-safe: owned by the step loop.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cogumi/types.h"
#include "engine/memory/kv_cache.h"

namespace cogumi {

// Whose beginnings: nothing is shared across tenants or adapters.
struct PrefixKey {
  std::string tenant;
  std::string adapter;                                 // digest; empty: none
  auto operator<=>(const PrefixKey&) const = default;  // NOLINT(modernize-use-nullptr)
};

class PrefixIndex {
 private:
  struct Node;

 public:
  // A sequence's hold on the path that it shares pages with. Trivially copyable on purpose: the
  // owner unpins, exactly once.
  class Pin {
   public:
    bool held() const { return node != nullptr; }

   private:
    friend class PrefixIndex;
    Node* node = nullptr;
  };

  // The cache outlives the index.
  explicit PrefixIndex(KvCache* cache);
  ~PrefixIndex();
  PrefixIndex(const PrefixIndex&) = delete;
  PrefixIndex& operator=(const PrefixIndex&) = delete;

  // Tokens of the longest beginning that is here and that a sequence can resume behind: full pages,
  // at most `limit` tokens.
  int32_t Match(const PrefixKey& key, std::span<const TokenId> tokens,
                std::span<const TokenRole> roles, int32_t limit) const;
  // Gives that beginning to a sequence, in place of what it has, and pins it.
  void Take(const PrefixKey& key, std::span<const TokenId> tokens, std::span<const TokenRole> roles,
            int32_t limit, KvSequence& sequence, Pin& pin);
  // Remembers the full pages of a sequence (its last `sequence.length` tokens are committed, its
  // wide blocks may still be there) and pins them. Pages that are here already replace the
  // sequence's own, whose bits are the same. `resumable`: others may go on behind the last one.
  void Insert(const PrefixKey& key, std::span<const TokenId> tokens,
              std::span<const TokenRole> roles, bool resumable, KvSequence& sequence, Pin& pin);
  // Pins the same path, as far as `pages` pages, for a sequence that shares another's.
  Pin PinAlso(const Pin& pin, int32_t pages);
  void Unpin(Pin& pin);

  // Forgets the least recently used page that nobody pins and nothing hangs on; false: there is
  // none.
  bool EvictOne();
  // Bytes that evicting can free.
  int64_t evictable_bytes() const {
    return evictable_wide_ * cache_->wide().block_bytes() +
           evictable_narrow_ * cache_->narrow().block_bytes();
  }
  int32_t evictable_wide() const { return evictable_wide_; }  // blocks
  int32_t evictable_narrow() const { return evictable_narrow_; }
  int64_t pages() const { return pages_; }
  uint64_t evictions() const { return evictions_; }

 private:
  // The tokens of one page.
  struct Page {
    std::array<TokenId, kKvPageTokens> tokens;
    uint64_t generated = 0;  // bit i: the role of token i
    bool operator==(const Page&) const = default;
  };
  struct PageHash {
    size_t operator()(const Page& page) const;
  };
  using Children = std::unordered_map<Page, std::unique_ptr<Node>, PageHash>;

  static Page PageAt(std::span<const TokenId> tokens, std::span<const TokenRole> roles,
                     int32_t index);
  bool narrows() const { return cache_->shape().NarrowBytes() > 0; }
  // The nodes of the longest beginning that can be resumed.
  std::vector<Node*> Path(const PrefixKey& key, std::span<const TokenId> tokens,
                          std::span<const TokenRole> roles, int32_t limit) const;
  Node* Root(const PrefixKey& key);
  void Hold(Node* node);
  // Shares blocks of a page between its node, which is pinned, and a sequence that computed the
  // same.
  void Share(Node& node, KvPage& own, bool keep_wide);
  // From the node upwards: takes over narrow blocks that the sequence has by now, and drops wide
  // ones of pages up to `last` that nobody resumes behind.
  void Settle(Node* node, int32_t last, KvSequence& sequence);
  // Counts a page that nobody pins any more (sign 1), or that is pinned again or gone (-1).
  void CountEvictable(const KvPage& page, int sign);
  void DropRootIfEmpty(Node* root);

  KvCache* const cache_;
  std::map<PrefixKey, std::unique_ptr<Node>> roots_;
  std::set<std::pair<uint64_t, Node*>> leaves_;  // evictable ones, by their last use
  uint64_t clock_ = 0;                           // counts uses
  int32_t evictable_wide_ = 0;
  int32_t evictable_narrow_ = 0;
  int64_t pages_ = 0;
  uint64_t evictions_ = 0;
};

}  // namespace cogumi
