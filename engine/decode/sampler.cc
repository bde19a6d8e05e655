#include "engine/decode/sampler.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/decode/philox.h"
#include "engine/decode/vector_math.h"

namespace cogumi {
namespace {

// Bounds that keep extreme but valid penalties and temperatures finite.
constexpr float kLargestLogit = 1e30f;
constexpr float kLargestScale = 1e30f;

}  // namespace

Sampler::Sampler(const SamplingParams& params, uint64_t seed, std::span<const TokenId> prompt,
                 int32_t vocabulary)
    : vocabulary_(vocabulary),
      seed_(seed),
      temperature_(params.temperature),
      filters_{
          params.temperature > 1 / kLargestScale ? 1 / params.temperature : kLargestScale,
          static_cast<size_t>(params.top_k == 0 ? vocabulary : params.top_k),
          static_cast<double>(params.top_p),
          params.min_p,
      },
      presence_(params.presence_penalty),
      frequency_(params.frequency_penalty),
      repetition_(params.repetition_penalty),
      top_logprobs_(params.logprobs ? params.top_logprobs : 0),
      penalises_(params.presence_penalty != 0 || params.frequency_penalty != 0 ||
                 params.repetition_penalty != 1),
      logprobs_(params.logprobs),
      choice_need_((params.temperature > 0 && params.top_k != 1) || penalises_ ||
                           !params.logit_bias.empty()
                       ? LogitNeed::kAll
                       : LogitNeed::kTop),
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
      BlockMaxima(*scratch.vocabulary, adjusted, count, scratch.blocks);
      const auto block = std::max_element(scratch.blocks.begin(), scratch.blocks.end());
      max = *block;
      const float* begin =
          adjusted + static_cast<size_t>(block - scratch.blocks.begin()) * kVocabularyBlock;
      id = static_cast<TokenId>(std::find(begin, adjusted + count, max) - adjusted);
    }
    if (temperature_ > 0 && filters_.top_k > 1) {
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
  if (filters_.top_k < count || filters_.top_p < 1 || filters_.min_p > 0) {
    FilterCandidates(logits, count, max, filters_, scratch);
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
  SoftmaxWeights(*scratch.vocabulary, logits, count, max, filters_.scale, scratch.weights,
                 scratch.blocks);
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
    std::sort(scratch.candidates.begin(), scratch.candidates.end(), RanksBefore);
    info.top.reserve(scratch.candidates.size());
    for (const Candidate& c : scratch.candidates) {
      info.top.push_back({c.id, logprob(c.logit), {}});
    }
  }
  return info;
}

}  // namespace cogumi
