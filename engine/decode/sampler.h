// How the next token is chosen out of one row of logits.
//
// Order: logit bias (added), repetition penalty (positive logits divided by it, others multiplied;
// tokens of the prompt and the answer), presence and frequency penalty (subtracted; tokens of the
// answer), temperature, top-k, top-p (of what top-k left, renormalised), min-p (relative to the
// most likely token), draw. Equal logits rank by lowest id. Temperature 0 takes the largest logit
// after bias and penalties. A draw is a function of seed, position and logits alone.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "cogumi/types.h"
#include "engine/decode/filters.h"
#include "engine/model/model.h"

namespace cogumi {

class Sampler {
 public:
  // `params` have passed ValidateSampling; `prompt` counts for the repetition penalty.
  Sampler(const SamplingParams& params, uint64_t seed, std::span<const TokenId> prompt,
          int32_t vocabulary);

  // Chooses the token of `position` from logits [vocabulary] and describes it (without bytes).
  // INTERNAL when the logits are not finite. The penalties do not
  // count it before Accept.
  absl::StatusOr<TokenInfo> Sample(const float* logits, const LogitSummary& summary,
                                   int64_t position, SamplerScratch& scratch) const;

  // A token was added to the answer: it counts for the penalties from now on.
  void Accept(TokenId id);

  // A given token in a row of raw logits, with the `top` most likely ones beside it.
  static absl::StatusOr<TokenInfo> Describe(TokenId id, const float* logits,
                                            const LogitSummary& summary, int32_t vocabulary,
                                            int32_t top, SamplerScratch& scratch);

  // The greedy choice among raw logits needs the largest alone.
  LogitNeed choice_need() const { return choice_need_; }
  // Of the choice and what is told of it: log-probabilities need all.
  LogitNeed need() const { return logprobs_ ? LogitNeed::kAll : choice_need_; }
  uint64_t seed() const { return seed_; }

 private:
  bool Adjusts() const { return !bias_.empty() || penalises_; }
  const float* Adjust(const float* logits, SamplerScratch& scratch) const;
  TokenId Draw(const float* logits, float max, double uniform, SamplerScratch& scratch) const;

  const int32_t vocabulary_;
  const uint64_t seed_;
  const float temperature_;
  const Filters filters_;
  const float presence_;
  const float frequency_;
  const float repetition_;
  const int32_t top_logprobs_;
  const bool penalises_;
  const bool logprobs_;
  const LogitNeed choice_need_;
  const std::vector<std::pair<TokenId, float>> bias_;
  // Tokens that penalties apply to, with how often the answer has them. Empty without penalties.
  std::unordered_map<TokenId, int32_t> seen_;
};

}  // namespace cogumi
