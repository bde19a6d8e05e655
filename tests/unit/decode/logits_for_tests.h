// Rows of logits and their summaries, computed the plain way.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "engine/model/model.h"

namespace cogumi {

inline LogitSummary Summarise(const std::vector<float>& logits) {
  LogitSummary summary;
  summary.max = -std::numeric_limits<float>::infinity();
  summary.second = summary.max;
  for (size_t i = 0; i < logits.size(); ++i) {
    summary.finite = summary.finite && std::isfinite(logits[i]);
    if (logits[i] > summary.max) {
      summary.second = summary.max;
      summary.max = logits[i];
      summary.argmax = static_cast<TokenId>(i);
    } else if (logits[i] > summary.second) {
      summary.second = logits[i];
    }
  }
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit - summary.max));
  summary.log_sum_exp = static_cast<double>(summary.max) + std::log(sum);
  for (const float logit : logits) {
    const double logprob = static_cast<double>(logit) - summary.log_sum_exp;
    summary.entropy -= std::exp(logprob) * logprob;
  }
  return summary;
}

// Logits like a language model's: a wide bell, few large ones.
inline std::vector<float> RandomLogits(size_t count, float spread, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

}  // namespace cogumi
