// Top-k, top-p and min-p over a vocabulary that is never sorted: each selects the few candidates
// that can matter.
#pragma once

#include <cstddef>
#include <vector>

#include "cogumi/types.h"
#include "engine/kernels/registry.h"

namespace cogumi {

struct Candidate {
  float logit = 0;
  TokenId id = 0;
  float weight = 0;  // probability up to a common factor
};

// Most likely first, equals by lowest id.
bool RanksBefore(const Candidate& a, const Candidate& b);

// Reused between rows and sequences, so that a step takes no memory.
struct SamplerScratch {
  // Whose passes over the vocabulary are used: the model's tier.
  const VocabularyOps* vocabulary = &ReferenceKernels().vocabulary;
  std::vector<float> logits;
  std::vector<float> weights;
  std::vector<float> blocks;
  std::vector<float> order;
  std::vector<Candidate> candidates;
};

struct Filters {
  float scale = 1;    // 1 / temperature
  size_t top_k = 0;   // the vocabulary when off
  double top_p = 1;   // 1 when off
  float min_p = 0;    // 0 when off
};

// Fills scratch.candidates, in no particular order, with what the filters leave, and their weights.
//   top-k: the k that rank first.
//   top-p: the fewest, in rank order, whose probabilities (of what top-k left) reach top_p.
//   min-p: those at least min_p times as likely as the most likely one.
// At least one stays. `max`: the largest of the finite logits [count].
void FilterCandidates(const float* logits, size_t count, float max, const Filters& filters,
                      SamplerScratch& scratch);

// Fills scratch.candidates with the k that rank first, in no particular order; weights are not set.
// 1 <= k <= count.
void GatherTop(const float* logits, size_t count, size_t k, SamplerScratch& scratch);

}  // namespace cogumi
