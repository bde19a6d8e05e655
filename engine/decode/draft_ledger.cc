#include "engine/decode/draft_ledger.h"

#include <algorithm>
#include <cmath>

namespace cogumi {
namespace {

// Steps with drafts until they are judged: how many tokens of few sequences are accepted scatters
// more than how long a step takes.
constexpr int32_t WindowOf(int32_t sequences) { return std::max(6, 64 / sequences); }

// Less than this times the rate without drafts is lost; measurements err by as much.
constexpr double kLoss = 0.98;
constexpr int64_t kFirstRest = 64;
constexpr int64_t kLastRest = 2048;
// Drafts that win by less are compared more often.
constexpr double kNarrow = 1.15;
constexpr int64_t kPlainEvery = 256;
constexpr int64_t kPlainEveryIfNarrow = 32;

}  // namespace

size_t DraftLedger::IndexOf(int32_t sequences) {
  return static_cast<size_t>(std::lround(4 * std::log2(static_cast<double>(sequences))));
}

const DraftLedger::Size* DraftLedger::Find(int32_t sequences) const {
  const size_t at = IndexOf(sequences);
  return at < sizes_.size() && sizes_[at].seen ? &sizes_[at] : nullptr;
}

bool DraftLedger::Allows(int32_t sequences) const {
  const Size* size = Find(sequences);
  return size != nullptr && size->left == 0;
}

int64_t DraftLedger::PlainEvery(int32_t sequences) const {
  const Size* size = Find(sequences);
  return size == nullptr || size->narrow ? kPlainEveryIfNarrow : kPlainEvery;
}

double DraftLedger::PlainRate(int32_t sequences) const {
  const Size* size = Find(sequences);
  return size == nullptr ? 0 : size->PlainRate();
}

double DraftLedger::Size::PlainRate() const {
  const int32_t known = std::min(plain_steps, kPlainSteps);
  if (known == 0) return 0;
  std::array<double, kPlainSteps> rates = plain_rates;
  const auto middle = rates.begin() + known / 2;
  std::nth_element(rates.begin(), middle, rates.begin() + known);
  return *middle;
}

void DraftLedger::Observe(int32_t sequences, bool drafted, int32_t tokens, double seconds) {
  const size_t at = IndexOf(sequences);
  if (at >= sizes_.size()) sizes_.resize(at + 1);
  Size& size = sizes_[at];
  if (!size.seen) {
    // A batch that shrinks does not ask everything again.
    const bool next_rests = at + 1 < sizes_.size() && sizes_[at + 1].left > 0;
    if (next_rests) size.rest = size.left = kFirstRest;
    size.seen = true;
  }
  if (!drafted) {
    if (seconds > 0) {
      size.plain_rates[static_cast<size_t>(size.plain_steps % kPlainSteps)] = tokens / seconds;
      ++size.plain_steps;
    }
    size.left = std::max<int64_t>(0, size.left - 1);
    return;
  }
  size.drafted.tokens += tokens;
  size.drafted.seconds += seconds;
  if (++size.window < WindowOf(sequences)) return;
  const double plain = size.PlainRate();
  const double rate = size.drafted.Rate();
  size.narrow = rate < kNarrow * plain;
  if (rate >= kLoss * plain) {
    size.rest = 0;
  } else {
    size.rest = std::clamp(2 * size.rest, kFirstRest, kLastRest);
    size.left = size.rest;
  }
  size.drafted = {};
  size.window = 0;
}

}  // namespace cogumi
