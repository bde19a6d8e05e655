#include "router/confidence.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"

namespace cogumi::router {
namespace {

// Rounding may lift the logarithm of 1 a little.
constexpr float kLogprobSlack = 1e-3f;
constexpr double kCutOffFactor = 0.9;

absl::Status CheckList(const char* name, std::span<const float> values, size_t expected, float low,
                       float high) {
  if (values.size() != expected) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": ", values.size(), " values for ", expected, " tokens"));
  }
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i]) || values[i] < low || values[i] > high) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, "[", i, "]: ", values[i], " is not possible"));
    }
  }
  return absl::OkStatus();
}

double Mean(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double Quantile(std::span<const float> values, double quantile) {
  std::vector<float> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  const double place = quantile * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  const double share = place - static_cast<double>(below);
  return (1 - share) * sorted[below] + share * sorted[above];
}

}  // namespace

absl::StatusOr<float> UncalibratedConfidence(const AnswerFeatures& features) {
  constexpr float kHuge = 1e30f;
  const size_t tokens = features.logprobs.size();
  if (tokens == 0) return absl::InvalidArgumentError("logprobs: empty");
  if (tokens > kMaxTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("logprobs: ", tokens, " values, at most ", kMaxTokens, " are taken"));
  }
  RETURN_IF_ERROR(CheckList("logprobs", features.logprobs, tokens, -kHuge, kLogprobSlack));
  double total = 0;
  double weights = 0;
  const auto add = [&total, &weights](double weight, double value) {
    total += weight * value;
    weights += weight;
  };
  add(0.45, std::exp(Mean(features.logprobs)));
  add(0.30, std::exp(Quantile(features.logprobs, 0.10)));
  if (!features.margins.empty()) {
    RETURN_IF_ERROR(CheckList("margins", features.margins, tokens, 0, kHuge));
    add(0.15, 1 - std::exp(-Quantile(features.margins, 0.25) / 2));
  }
  if (!features.entropies.empty()) {
    RETURN_IF_ERROR(CheckList("entropies", features.entropies, tokens, -kLogprobSlack, kHuge));
    add(0.10, std::exp(-Mean(features.entropies)));
  }
  double confidence = total / weights;
  if (features.cut_off) confidence *= kCutOffFactor;
  return static_cast<float>(std::clamp(confidence, 0.0, 1.0));
}

}  // namespace cogumi::router
