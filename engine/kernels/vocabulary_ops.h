// The two passes over a whole vocabulary that sampling needs. The results are the same bits in
// every tier: the same operations in the same order, only more of them at a time.
#pragma once

#include <cstddef>

namespace cogumi {

// Values of a block of the vocabulary; the last block may be shorter.
inline constexpr size_t kVocabularyBlock = 128;

constexpr size_t VocabularyBlocks(size_t values) {
  return (values + kVocabularyBlock - 1) / kVocabularyBlock;
}

struct VocabularyOps {
  // maxima[b]: the largest of block b. No NaN in `values`.
  void (*block_maxima)(const float* values, size_t count, float* maxima);
  // weights[i] = exp((values[i] - max) * scale), 0 where that is below 1e-37; sums[b]: of block b.
  // values[i] <= max, scale > 0. Relative error of a weight below 3e-7.
  void (*softmax_weights)(const float* values, size_t count, float max, float scale, float* weights,
                          float* sums);
};

// One such weight, with the same bits.
float SoftmaxWeight(float value, float max, float scale);

void BlockMaximaReference(const float* values, size_t count, float* maxima);
void BlockMaximaAvx2(const float* values, size_t count, float* maxima);
void BlockMaximaAvx512(const float* values, size_t count, float* maxima);
void SoftmaxWeightsReference(const float* values, size_t count, float max, float scale,
                             float* weights, float* sums);
void SoftmaxWeightsAvx2(const float* values, size_t count, float max, float scale, float* weights,
                        float* sums);
void SoftmaxWeightsAvx512(const float* values, size_t count, float max, float scale,
                          float* weights, float* sums);

}  // namespace cogumi
