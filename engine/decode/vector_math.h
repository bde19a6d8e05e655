// The two passes over a whole vocabulary that sampling needs. The results are the same bits on
// every instruction set: the same operations in the same order, only more of them at a time.
#pragma once

#include <cstddef>
#include <vector>

namespace cogumi {

// Values of a block of the vocabulary; the last block may be shorter.
inline constexpr size_t kVocabularyBlock = 128;

constexpr size_t VocabularyBlocks(size_t values) {
  return (values + kVocabularyBlock - 1) / kVocabularyBlock;
}

// maxima[b]: the largest of block b. No NaN in `values`.
void BlockMaxima(const float* values, size_t count, std::vector<float>& maxima);

// weights[i] = exp((values[i] - max) * scale), 0 where that is below 1e-37; sums[b]: of block b.
// values[i] <= max, scale > 0. Relative error of a weight below 3e-7.
void SoftmaxWeights(const float* values, size_t count, float max, float scale,
                    std::vector<float>& weights, std::vector<float>& sums);

// One such weight, with the same bits.
float SoftmaxWeight(float value, float max, float scale);

}  // namespace cogumi
