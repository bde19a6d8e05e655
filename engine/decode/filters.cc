#include "engine/decode/filters.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "engine/decode/vector_math.h"

namespace cogumi {
namespace {

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

// Cuts the candidates to the fewest, most likely first, whose weights reach `mass` > 0. Halves the
// undecided range each time, so the cost is linear however flat the distribution is.
void KeepMass(std::vector<Candidate>& candidates, double mass) {
  constexpr std::ptrdiff_t kSmall = 32;
  auto low = candidates.begin();
  auto high = candidates.end();
  double reached = 0;
  while (high - low > kSmall) {
    const auto middle = low + (high - low) / 2;
    std::nth_element(low, middle, high, RanksBefore);
    double upper = 0;
    for (auto it = low; it != middle; ++it) upper += static_cast<double>(it->weight);
    if (reached + upper >= mass) {
      high = middle;
    } else {
      reached += upper;
      low = middle;
    }
  }
  std::sort(low, high, RanksBefore);
  while (low != high && reached < mass) {
    reached += static_cast<double>(low->weight);
    ++low;
  }
  candidates.erase(low, candidates.end());
}

// Cuts the candidates to logits of at least `least`.
void KeepFrom(std::vector<Candidate>& candidates, float least) {
  std::erase_if(candidates, [least](const Candidate& c) { return c.logit < least; });
}

}  // namespace

bool RanksBefore(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

void GatherTop(const float* logits, size_t count, size_t k, SamplerScratch& scratch) {
  BlockMaxima(*scratch.vocabulary, logits, count, scratch.blocks);
  // The k-th largest block maximum: at least k logits reach it, and rarely many more.
  float threshold = -std::numeric_limits<float>::infinity();
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
                     candidates.end(), RanksBefore);
    candidates.resize(k);
  }
}

void FilterCandidates(const float* logits, size_t count, float max, const Filters& filters,
                      SamplerScratch& scratch) {
  std::vector<Candidate>& candidates = scratch.candidates;
  // Least logit that min-p leaves: a weight relative to the most likely token's, in logits.
  const float least =
      filters.min_p > 0 ? max + std::log(filters.min_p) / filters.scale
                        : -std::numeric_limits<float>::infinity();
  if (filters.top_k < count) {
    GatherTop(logits, count, filters.top_k, scratch);
  } else if (filters.top_p < 1) {
    SoftmaxWeights(*scratch.vocabulary, logits, count, max, filters.scale, scratch.weights,
                   scratch.blocks);
    double total = 0;
    for (const float sum : scratch.blocks) total += static_cast<double>(sum);
    // Tokens lighter than this weigh less than 1 - top_p together: top-p needs none of them. Half
    // of it, for rounding.
    const float bound =
        static_cast<float>(0.5 * (1 - filters.top_p) * total / static_cast<double>(count));
    candidates.clear();
    for (size_t block = 0; block < scratch.blocks.size(); ++block) {
      if (scratch.blocks[block] < bound) continue;
      const size_t begin = block * kVocabularyBlock;
      const size_t end = std::min(count, begin + kVocabularyBlock);
      for (size_t i = begin; i < end; ++i) {
        const float weight = scratch.weights[i];
        if (weight < bound) continue;
        candidates.push_back({logits[i], static_cast<TokenId>(i), weight});
      }
    }
    KeepMass(candidates, filters.top_p * total);
    KeepFrom(candidates, least);
    return;
  } else {
    BlockMaxima(*scratch.vocabulary, logits, count, scratch.blocks);
    Gather(logits, count, least, scratch.blocks, candidates);
  }
  double total = 0;
  for (Candidate& c : candidates) {
    c.weight = SoftmaxWeight(c.logit, max, filters.scale);
    total += static_cast<double>(c.weight);
  }
  if (filters.top_p < 1) KeepMass(candidates, filters.top_p * total);
  KeepFrom(candidates, least);
}

}  // namespace cogumi
