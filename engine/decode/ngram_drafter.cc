#include "engine/decode/ngram_drafter.h"

#include <algorithm>

namespace cogumi {
namespace {

constexpr size_t kFirstSlots = 256;
static_assert(kMaxNgram < 8, "a slot has three bits for n");
// A match of so many tokens counts more than one token near the place of the last copy.
constexpr int32_t kSure = 3;

// Takes in one more token on the left; good enough for a table whose entries are compared anyway.
uint64_t Extend(uint64_t hash, TokenId token) {
  return (hash ^ (static_cast<uint64_t>(token) + 0x9E3779B97F4A7C15)) * 0xD6E8FEB86659FD93;
}

size_t First(uint64_t hash) { return static_cast<size_t>(hash ^ (hash >> 32)); }

bool SameEnding(std::span<const TokenId> tokens, int32_t a, int32_t b, int32_t n) {
  for (int32_t i = 0; i < n; ++i) {
    if (tokens[static_cast<size_t>(a - i)] != tokens[static_cast<size_t>(b - i)]) return false;
  }
  return true;
}

}  // namespace

uint32_t& NgramIndex::Slot(std::span<const TokenId> tokens, int32_t end, int32_t n, uint64_t hash) {
  const size_t mask = slots_.size() - 1;
  for (size_t at = First(hash) & mask;; at = (at + 1) & mask) {
    uint32_t& slot = slots_[at];
    if (slot == 0) return slot;
    const int32_t other = static_cast<int32_t>(slot / 8) - 1;
    if (static_cast<int32_t>(slot % 8) == n && SameEnding(tokens, other, end, n)) return slot;
  }
}

void NgramIndex::Add(std::span<const TokenId> tokens, int32_t end) {
  if (2 * (used_ + kMaxNgram) > slots_.size()) Grow(tokens);
  uint64_t hash = 0;
  for (int32_t n = 1; n <= std::min(kMaxNgram, end + 1); ++n) {
    hash = Extend(hash, tokens[static_cast<size_t>(end - n + 1)]);
    if (n < kMinNgram) continue;
    uint32_t& slot = Slot(tokens, end, n, hash);
    if (slot == 0) ++used_;
    slot = (static_cast<uint32_t>(end) + 1) * 8 + static_cast<uint32_t>(n);
  }
}

void NgramIndex::Grow(std::span<const TokenId> tokens) {
  const size_t size = std::max(kFirstSlots, 2 * slots_.size());
  slots_.assign(size, 0);
  used_ = 0;
  for (int32_t end = 0; end < indexed_; ++end) Add(tokens, end);
}

NgramIndex::Match NgramIndex::Find(std::span<const TokenId> tokens) {
  const int32_t last = static_cast<int32_t>(tokens.size()) - 1;
  for (; indexed_ < last; ++indexed_) Add(tokens, indexed_);
  Match match;
  if (slots_.empty()) return match;
  uint64_t hashes[kMaxNgram + 1] = {};
  const int32_t most = std::min(kMaxNgram, last + 1);
  for (int32_t n = 1; n <= most; ++n) {
    hashes[n] = Extend(hashes[n - 1], tokens[static_cast<size_t>(last - n + 1)]);
  }
  for (int32_t n = most; n >= kMinNgram; --n) {
    const uint32_t slot = Slot(tokens, last, n, hashes[n]);
    if (slot == 0) continue;
    match.end = static_cast<int32_t>(slot / 8) - 1;
    match.length = n;
    const int32_t bound = std::min(kLongest, match.end + 1);
    while (match.length < bound && tokens[static_cast<size_t>(match.end - match.length)] ==
                                       tokens[static_cast<size_t>(last - match.length)]) {
      ++match.length;
    }
    break;
  }
  return match;
}

void CopyPlace::Follow(std::span<const TokenId> tokens) {
  if (expected_ < 0) return;
  int32_t copied = 0;
  const int32_t came = static_cast<int32_t>(tokens.size()) - asked_;
  while (copied < came && tokens[static_cast<size_t>(expected_ + copied)] ==
                              tokens[static_cast<size_t>(asked_ + copied)]) {
    ++copied;
  }
  if (copied > 0) place_ = expected_ + copied;
  expected_ = -1;
}

void CopyPlace::Expect(std::span<const TokenId> tokens, int32_t next) {
  expected_ = next;
  asked_ = static_cast<int32_t>(tokens.size());
}

int32_t CopyPlace::FindNear(std::span<const TokenId> tokens) const {
  if (place_ < 0) return -1;
  const int32_t last = static_cast<int32_t>(tokens.size()) - 1;
  for (int32_t at = place_; at < std::min(place_ + kReach, last); ++at) {
    if (tokens[static_cast<size_t>(at)] == tokens[static_cast<size_t>(last)]) return at;
  }
  return -1;
}

int32_t NgramDrafter::Propose(std::span<DraftOrder> orders) {
  for (DraftOrder& order : orders) {
    order.draft->tokens.clear();
    if (order.length < 1) continue;
    const std::span<const TokenId> tokens = order.context.tokens;
    Text& text = texts_[order.context.sequence];
    text.copied.Follow(tokens);
    NgramIndex::Match match = text.index.Find(tokens);
    if (match.length < kSure) {
      const int32_t near = text.copied.FindNear(tokens);
      if (near >= 0) match = {near, 1};
    }
    if (match.end < 0) continue;
    text.copied.Expect(tokens, match.end + 1);
    order.draft->evidence = match.length;
    // What is repeated may reach into the draft itself: the text then goes on in that period.
    const size_t next = static_cast<size_t>(match.end) + 1;
    const size_t period = tokens.size() - next;
    for (size_t i = 0; i < static_cast<size_t>(order.length); ++i) {
      order.draft->tokens.push_back(next + i < tokens.size() ? tokens[next + i]
                                                             : order.draft->tokens[i - period]);
    }
  }
  return 0;
}

}  // namespace cogumi
