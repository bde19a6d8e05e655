// The passes of sampling over a vocabulary: the same bits in every tier.
#include "engine/kernels/vocabulary_ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/kernels/every_tier.h"
#include "tests/unit/decode/logits_for_tests.h"

namespace cogumi {
namespace {

using VocabularyOpsTest = EveryTier;

TEST(SoftmaxWeight, IsTheExponential) {
  for (int i = 0; i < 22600; ++i) {
    const float x = -0.00371f * static_cast<float>(i);  // down to -84
    const double exact = std::exp(static_cast<double>(x));
    ASSERT_NEAR(static_cast<double>(SoftmaxWeight(x, 0, 1)) / exact, 1, 3e-7) << x;
  }
  EXPECT_EQ(SoftmaxWeight(3, 3, 7), 1.0f);
  EXPECT_EQ(SoftmaxWeight(-1e30f, 1e30f, 1e30f), 0.0f);  // -infinity inside
  EXPECT_EQ(SoftmaxWeight(2.5f, 2.5f, 1e30f), 1.0f);
}

TEST_P(VocabularyOpsTest, PassesOverRowsEqualSingleWeightsPlainMaximaAndTheReference) {
  const VocabularyOps& ops = kernels().vocabulary;
  const VocabularyOps& reference = ReferenceKernels().vocabulary;
  for (const size_t count : {1u, 15u, 16u, 17u, 127u, 128u, 129u, 1000u, 49152u}) {
    const std::vector<float> logits = RandomLogits(count, 4, count);
    const float max = *std::max_element(logits.begin(), logits.end());
    const size_t blocks = VocabularyBlocks(count);
    ASSERT_EQ(blocks, (count + 127) / 128);
    std::vector<float> weights(count), sums(blocks), maxima(blocks);
    std::vector<float> want_weights(count), want_sums(blocks), want_maxima(blocks);
    ops.softmax_weights(logits.data(), count, max, 1.25f, weights.data(), sums.data());
    ops.block_maxima(logits.data(), count, maxima.data());
    reference.softmax_weights(logits.data(), count, max, 1.25f, want_weights.data(),
                              want_sums.data());
    reference.block_maxima(logits.data(), count, want_maxima.data());
    ASSERT_EQ(weights, want_weights);
    ASSERT_EQ(sums, want_sums);
    ASSERT_EQ(maxima, want_maxima);
    for (size_t block = 0; block < blocks; ++block) {
      double sum = 0;
      float largest = -1e30f;
      for (size_t i = block * 128; i < std::min(count, block * 128 + 128); ++i) {
        ASSERT_EQ(weights[i], SoftmaxWeight(logits[i], max, 1.25f));
        sum += static_cast<double>(weights[i]);
        largest = std::max(largest, logits[i]);
      }
      ASSERT_NEAR(static_cast<double>(sums[block]) / sum, 1, 1e-5);
      ASSERT_EQ(maxima[block], largest);
    }
  }
}

COGUMI_EVERY_TIER(VocabularyOpsTest);

}  // namespace
}  // namespace cogumi
