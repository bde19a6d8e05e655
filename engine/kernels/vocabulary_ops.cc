#include "engine/kernels/vocabulary_ops.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

// Bodies are inlined into one function per instruction set. This file is compiled without
// contraction of a*b+c, so that all of them compute the same.
#define COGUMI_INLINE inline __attribute__((always_inline))

namespace cogumi {
namespace {

constexpr size_t kLanes = 16;
static_assert(kVocabularyBlock % kLanes == 0);

// exp(x) for x <= 0: 2^n times a polynomial of degree 6 on [-ln2/2, ln2/2] (Taylor; the last term
// left out is below 1.3e-7 relative). Without branches, so that the compiler takes many at once.
COGUMI_INLINE float Exp(float x) {
  constexpr float kLowest = -85.0f;  // exp of it is a normal number
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;  // 9 bits: n * kLn2High is exact
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float clamped = x < kLowest ? kLowest : x;
  const float shifted = clamped * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const uint32_t exponent = (std::bit_cast<uint32_t>(shifted) + 127u) << 23;
  const float value = p * std::bit_cast<float>(exponent);
  return x < kLowest ? 0.0f : value;
}

COGUMI_INLINE void MaximaBody(const float* values, size_t count, float* maxima) {
  for (size_t begin = 0; begin < count; begin += kVocabularyBlock) {
    const size_t end = std::min(count, begin + kVocabularyBlock);
    float lane[kLanes];
    for (float& value : lane) value = -std::numeric_limits<float>::infinity();
    size_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (size_t k = 0; k < kLanes; ++k) {
        lane[k] = values[i + k] > lane[k] ? values[i + k] : lane[k];
      }
    }
    float max = lane[0];
    for (size_t k = 1; k < kLanes; ++k) max = std::max(max, lane[k]);
    for (; i < end; ++i) max = std::max(max, values[i]);
    *maxima++ = max;
  }
}

COGUMI_INLINE void WeightsBody(const float* values, size_t count, float max, float scale,
                               float* weights, float* sums) {
  for (size_t begin = 0; begin < count; begin += kVocabularyBlock) {
    const size_t end = std::min(count, begin + kVocabularyBlock);
    float lane[kLanes] = {};
    size_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (size_t k = 0; k < kLanes; ++k) {
        const float weight = Exp((values[i + k] - max) * scale);
        weights[i + k] = weight;
        lane[k] += weight;
      }
    }
    float sum = 0;
    for (size_t k = 0; k < kLanes; ++k) sum += lane[k];
    for (; i < end; ++i) {
      weights[i] = Exp((values[i] - max) * scale);
      sum += weights[i];
    }
    *sums++ = sum;
  }
}

}  // namespace

// NOLINTBEGIN(bugprone-macro-parentheses): an attribute stands without.
#define COGUMI_VARIANTS(suffix, attribute)                                                         \
  attribute void BlockMaxima##suffix(const float* values, size_t count, float* maxima) {           \
    MaximaBody(values, count, maxima);                                                             \
  }                                                                                                \
  attribute void SoftmaxWeights##suffix(const float* values, size_t count, float max, float scale, \
                                        float* weights, float* sums) {                             \
    WeightsBody(values, count, max, scale, weights, sums);                                         \
  }
COGUMI_VARIANTS(Reference, )
COGUMI_VARIANTS(Avx2, __attribute__((target("avx2"))))
COGUMI_VARIANTS(Avx512, __attribute__((target("avx512f,prefer-vector-width=512"))))
// NOLINTEND(bugprone-macro-parentheses)
#undef COGUMI_VARIANTS

float SoftmaxWeight(float value, float max, float scale) { return Exp((value - max) * scale); }

}  // namespace cogumi
