#include "engine/decode/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/decode/philox.h"
#include "engine/decode/vector_math.h"

namespace cogumi {
namespace {

// Bounds that keep extreme but valid penalties and temperatures finite.
constexpr float kLargestLogit = 1e30f;
constexpr float kLargestScale = 1e30f;

// Most likely first, equals by lowest id.
bool Before(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

// Candidates with a logit of at least `threshold`, by ascending id. `blocks`: their block maxima.
void Gather(const float* logits, size_t count, float threshold, const std::vector<float>& blocks,
            std::vector<Candidate>& out) {
  out.clear();
  for (size_t block = 0; block < blocks.size(); ++block) {
    if (blocks[block] < threshold) continue;
    const size_t begin = block * kVocabularyBlock;
    const size_t end = std::min(count, begin + kVocabularyBlock);
    for (size_t i = begin; i < end; ++i) {
      if (logits[i] >= threshold) out.push_back({logits[i], static_cast<TokenId>(i)});
    }
  }
}

// The k first candidates, in no particular order; k <= count.
void GatherTop(const float* logits, size_t count, size_t k, SamplerScratch& scratch) {
  BlockMaxima(logits, count, scratch.blocks);
  // The k-th largest block maximum: at least k logits reach it, and rarely many more.
  float threshold = -kLargestLogit;
  if (k <= scratch.blocks.size()) {
    scratch.order = scratch.blocks;
    const auto kth = scratch.order.begin() + static_cast<std::ptrdiff_t>(k) - 1;
    std::nth_element(scratch.order.begin(), kth, scratch.order.end(), std::greater<>());
    threshold = *kth;
  }
  std::vector<Candidate>& candidates = scratch.candidates;
  Gather(logits, count, threshold, scratch.blocks, candidates);
  if (candidates.size() > k) {
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(k),
                     candidates.end(), Before);
    candidates.resize(k);
  }
}

// Cuts the candidates to the fewest, most likely first, whose weights reach `mass`. Halves the
// undecided range each time, so the cost is linear however flat the distribution is.
void KeepMass(std::vector<Candidate>& candidates, double mass) {
  constexpr std::ptrdiff_t kSmall = 32;
  const auto first = candidates.begin();
  auto low = first;
  auto high = candidates.end();
  double reached = 0;
  while (high - low > kSmall) {
    const auto middle = low + (high - low) / 2;
    std::nth_element(low, middle, high, Before);
    double upper = 0;
    for (auto it = low; it != middle; ++it) upper += static_cast<double>(it->weight);
    if (reached + upper >= mass) {
      high = middle;
    } else {
      reached += upper;
      low = middle;
    }
  }
  std::sort(low, high, Before);
  while (low != high && (low == first || reached < mass)) {
    reached += static_cast<double>(low->weight);
    ++low;
  }
  candidates.erase(low, candidates.end());
}

}  // namespace

Sampler::Sampler(const SamplingParams& params, uint64_t seed, std::span<const TokenId> prompt,
                 int32_t vocabulary)
    : vocabulary_(vocabulary),
      seed_(seed),
      temperature_(params.temperature),
      scale_(params.temperature > 1 / kLargestScale ? 1 / params.temperature : kLargestScale),
      top_k_(static_cast<size_t>(params.top_k == 0 ? vocabulary : params.top_k)),
      top_p_(static_cast<double>(params.top_p)),
      min_p_(params.min_p),
      presence_(params.presence_penalty),
      frequency_(params.frequency_penalty),
      repetition_(params.repetition_penalty),
      top_logprobs_(params.logprobs ? params.top_logprobs : 0),
      penalises_(params.presence_penalty != 0 || params.frequency_penalty != 0 ||
                 params.repetition_penalty != 1),
      bias_(params.logit_bias) {
  if (repetition_ != 1) {
    for (const TokenId id : prompt) seen_.try_emplace(id);
  }
}

void Sampler::Accept(TokenId id) {
  if (penalises_) ++seen_[id];
}

absl::StatusOr<TokenInfo> Sampler::Sample(const float* logits, const LogitSummary& summary,
                                          int64_t position, SamplerScratch& scratch) const {
  if (!summary.finite) {
    return absl::InternalError(
        absl::StrCat("the model's logits at position ", position, " are not finite"));
  }
  TokenId id = summary.argmax;
  if (Adjusts() || temperature_ > 0) {
    const float* adjusted = logits;
    float max = summary.max;
    const size_t count = static_cast<size_t>(vocabulary_);
    if (Adjusts()) {
      adjusted = Adjust(logits, scratch);
      BlockMaxima(adjusted, count, scratch.blocks);
      const auto block = std::max_element(scratch.blocks.begin(), scratch.blocks.end());
      max = *block;
      const float* begin =
          adjusted + static_cast<size_t>(block - scratch.blocks.begin()) * kVocabularyBlock;
      id = static_cast<TokenId>(std::find(begin, adjusted + count, max) - adjusted);
    }
    if (temperature_ > 0 && top_k_ > 1) {
      const double uniform = PhiloxUniform(seed_, static_cast<uint64_t>(position), 0);
      id = Draw(adjusted, max, uniform, scratch);
    }
  }
  return Describe(id, logits, summary, vocabulary_, top_logprobs_, scratch);
}

const float* Sampler::Adjust(const float* logits, SamplerScratch& scratch) const {
  scratch.logits.assign(logits, logits + vocabulary_);
  std::vector<float>& adjusted = scratch.logits;
  for (const auto& [id, bias] : bias_) adjusted[static_cast<size_t>(id)] += bias;
  for (const auto& [id, generated] : seen_) {
    float& logit = adjusted[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / repetition_ : logit * repetition_;
    if (generated > 0) {
      logit -= presence_ + frequency_ * static_cast<float>(generated);
    }
    logit = std::clamp(logit, -kLargestLogit, kLargestLogit);
  }
  return adjusted.data();
}

TokenId Sampler::Draw(const float* logits, float max, double uniform,
                      SamplerScratch& scratch) const {
  const size_t count = static_cast<size_t>(vocabulary_);
  if (top_k_ < count || top_p_ < 1 || min_p_ > 0) {
    Filter(logits, max, scratch);
    double total = 0;
    for (const Candidate& c : scratch.candidates) total += static_cast<double>(c.weight);
    double left = uniform * total;
    TokenId last = scratch.candidates.front().id;
    for (const Candidate& c : scratch.candidates) {
      if (c.weight == 0) continue;
      last = c.id;
      left -= static_cast<double>(c.weight);
      if (left < 0) break;
    }
    return last;
  }
  // The whole vocabulary: find the block, then the token in it.
  SoftmaxWeights(logits, count, max, scale_, scratch.weights, scratch.blocks);
  double total = 0;
  for (const float sum : scratch.blocks) total += static_cast<double>(sum);
  double left = uniform * total;
  size_t block = 0;
  for (size_t b = 0; b < scratch.blocks.size(); ++b) {
    if (scratch.blocks[b] == 0) continue;
    block = b;
    if (left < static_cast<double>(scratch.blocks[b])) break;
    left -= static_cast<double>(scratch.blocks[b]);
  }
  TokenId last = 0;
  const size_t begin = block * kVocabularyBlock;
  for (size_t i = begin; i < std::min(count, begin + kVocabularyBlock); ++i) {
    if (scratch.weights[i] == 0) continue;
    last = static_cast<TokenId>(i);
    left -= static_cast<double>(scratch.weights[i]);
    if (left < 0) break;
  }
  return last;
}

void Sampler::Filter(const float* logits, float max, SamplerScratch& scratch) const {
  const size_t count = static_cast<size_t>(vocabulary_);
  std::vector<Candidate>& candidates = scratch.candidates;
  // Least logit that min-p leaves: a weight relative to the most likely token's, in logits.
  const float least =
      min_p_ > 0 ? max + std::log(min_p_) / scale_ : -std::numeric_limits<float>::infinity();
  if (top_k_ < count) {
    GatherTop(logits, count, top_k_, scratch);
  } else if (top_p_ < 1) {
    SoftmaxWeights(logits, count, max, scale_, scratch.weights, scratch.blocks);
    double total = 0;
    for (const float sum : scratch.blocks) total += static_cast<double>(sum);
    // Tokens lighter than this weigh less than 1 - top_p together: top-p needs none of them. Half
    // of it, for rounding.
    const double bound = 0.5 * (1 - top_p_) * total / static_cast<double>(count);
    candidates.clear();
    for (size_t i = 0; i < count; ++i) {
      const float weight = scratch.weights[i];
      if (static_cast<double>(weight) < bound) continue;
      candidates.push_back({logits[i], static_cast<TokenId>(i), weight});
    }
    KeepMass(candidates, top_p_ * total);
    if (min_p_ > 0) std::erase_if(candidates, [&](const Candidate& c) { return c.logit < least; });
    return;
  } else {
    BlockMaxima(logits, count, scratch.blocks);
    Gather(logits, count, least, scratch.blocks, candidates);
  }
  double total = 0;
  for (Candidate& c : candidates) {
    c.weight = SoftmaxWeight(c.logit, max, scale_);
    total += static_cast<double>(c.weight);
  }
  if (top_p_ < 1) KeepMass(candidates, top_p_ * total);
  if (min_p_ > 0) std::erase_if(candidates, [&](const Candidate& c) { return c.logit < least; });
}

absl::StatusOr<TokenInfo> Sampler::Describe(TokenId id, const float* logits,
                                            const LogitSummary& summary, int32_t vocabulary,
                                            int32_t top, SamplerScratch& scratch) {
  if (!summary.finite) {
    return absl::InternalError("the model's logits are not finite");
  }
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - summary.log_sum_exp);
  };
  TokenInfo info;
  info.id = id;
  info.logprob = logprob(logits[id]);
  info.margin = summary.max - summary.second;
  info.entropy = static_cast<float>(summary.entropy);
  if (top > 0) {
    const size_t count = static_cast<size_t>(vocabulary);
    GatherTop(logits, count, std::min(static_cast<size_t>(top), count), scratch);
    std::sort(scratch.candidates.begin(), scratch.candidates.end(), Before);
    info.top.reserve(scratch.candidates.size());
    for (const Candidate& c : scratch.candidates) {
      info.top.push_back({c.id, logprob(c.logit), {}});
    }
  }
  return info;
}

}  // namespace cogumi
