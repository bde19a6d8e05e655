// An uncalibrated confidence from the features of an answer's tokens: it orders answers and is no
// probability.
#pragma once

#include <cstddef>
#include <span>

#include "absl/status/statusor.h"

namespace cogumi::router {

inline constexpr size_t kMaxTokens = 1 << 17;

struct AnswerFeatures {
  std::span<const float> logprobs;   // natural logarithm, one per generated token
  std::span<const float> margins;    // difference of the two largest logits; empty: not known
  std::span<const float> entropies;  // nats; empty: not known
  bool cut_off = false;              // the answer ended at its length limit
};

// With P(x) = exp(x), q10 and q25 the lower quantiles (linear interpolation):
//   a = P(mean logprob)                         weight 0.45
//   b = P(q10 of the logprobs)                  weight 0.30
//   c = 1 - P(-q25 of the margins / 2)          weight 0.15, left out when margins are not known
//   d = P(-mean entropy)                        weight 0.10, left out when entropies are not known
//   confidence = weighted mean of what is known, times 0.9 when the answer was cut off; in [0, 1].
// INVALID_ARGUMENT, naming the list and the place: no tokens, too many, lists of other lengths, a
// value that is not finite, a log-probability above 0, a negative margin or entropy.
absl::StatusOr<float> UncalibratedConfidence(const AnswerFeatures& features);

}  // namespace cogumi::router
