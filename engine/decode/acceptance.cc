#include "engine/decode/acceptance.h"

#include <algorithm>

namespace cogumi {
namespace {

constexpr float kPriorWeight = 4;  // cases that the prior, or all sequences, stand for
constexpr float kFadeAll = 0.99f;  // a count, with each further one of its class
constexpr float kFadeOwn = 0.95f;

}  // namespace

int AcceptanceCounts::ClassOf(int32_t evidence) {
  // 0-2, 3, 4, 5-6, 7-9, 10-15, 16-31, 32 and more.
  constexpr std::array<int32_t, kClasses - 1> kFirstOfNext = {3, 4, 5, 7, 10, 16, 32};
  const auto* const next = std::upper_bound(kFirstOfNext.begin(), kFirstOfNext.end(), evidence);
  return static_cast<int>(next - kFirstOfNext.begin());
}

void AcceptanceCounts::Add(int evidence_class, bool accepted, float fade) {
  Count& count = counts_[static_cast<size_t>(evidence_class)];
  count.accepted = count.accepted * fade + (accepted ? 1.0f : 0.0f);
  count.trials = count.trials * fade + 1.0f;
}

void AcceptanceCounts::Fade(float factor) {
  for (Count& count : counts_) {
    count.accepted *= factor;
    count.trials *= factor;
  }
}

float AcceptanceCounts::Rate(int evidence_class, float prior, float weight) const {
  const Count& count = counts_[static_cast<size_t>(evidence_class)];
  return (prior * weight + count.accepted) / (weight + count.trials);
}

float Acceptance::Rate(const AcceptanceCounts& own, int32_t evidence) const {
  const int c = AcceptanceCounts::ClassOf(evidence);
  const float of_all = all_.Rate(c, prior_[static_cast<size_t>(c)], kPriorWeight);
  return own.Rate(c, of_all, kPriorWeight);
}

void Acceptance::Observe(AcceptanceCounts& own, int32_t evidence, bool accepted) {
  const int c = AcceptanceCounts::ClassOf(evidence);
  all_.Add(c, accepted, kFadeAll);
  own.Add(c, accepted, kFadeOwn);
}

}  // namespace cogumi
