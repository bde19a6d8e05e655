// A tier's passes over a vocabulary, into vectors that are reused.
#pragma once

#include <cstddef>
#include <vector>

#include "engine/kernels/vocabulary_ops.h"

namespace cogumi {

inline void BlockMaxima(const VocabularyOps& ops, const float* values, size_t count,
                        std::vector<float>& maxima) {
  maxima.resize(VocabularyBlocks(count));
  ops.block_maxima(values, count, maxima.data());
}

inline void SoftmaxWeights(const VocabularyOps& ops, const float* values, size_t count, float max,
                           float scale, std::vector<float>& weights, std::vector<float>& sums) {
  weights.resize(count);
  sums.resize(VocabularyBlocks(count));
  ops.softmax_weights(values, count, max, scale, weights.data(), sums.data());
}

}  // namespace cogumi
