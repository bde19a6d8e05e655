#include "engine/decode/vector_math.h"

#include <algorithm>
#include <cmath>

#include "gtest/gtest.h"
#include "tests/unit/decode/logits_for_tests.h"

namespace cogumi {
namespace {

TEST(VectorMath, WeightsAreExponentials) {
  for (float x = 0; x > -84; x -= 0.00371f) {
    const double exact = std::exp(static_cast<double>(x));
    ASSERT_NEAR(static_cast<double>(SoftmaxWeight(x, 0, 1)) / exact, 1, 3e-7) << x;
  }
  EXPECT_EQ(SoftmaxWeight(3, 3, 7), 1.0f);
  EXPECT_EQ(SoftmaxWeight(-1e30f, 1e30f, 1e30f), 0.0f);  // -infinity inside
  EXPECT_EQ(SoftmaxWeight(2.5f, 2.5f, 1e30f), 1.0f);
}

TEST(VectorMath, PassesOverRowsEqualSingleWeightsAndPlainMaxima) {
  std::vector<float> weights;
  std::vector<float> sums;
  std::vector<float> maxima;
  for (const size_t count : {1u, 15u, 16u, 17u, 127u, 128u, 129u, 1000u, 49152u}) {
    const std::vector<float> logits = RandomLogits(count, 4, count);
    const float max = *std::max_element(logits.begin(), logits.end());
    SoftmaxWeights(logits.data(), count, max, 1.25f, weights, sums);
    BlockMaxima(logits.data(), count, maxima);
    ASSERT_EQ(weights.size(), count);
    ASSERT_EQ(sums.size(), (count + 127) / 128);
    ASSERT_EQ(maxima.size(), sums.size());
    for (size_t block = 0; block < sums.size(); ++block) {
      double sum = 0;
      float largest = -1e30f;
      for (size_t i = block * 128; i < std::min(count, block * 128 + 128); ++i) {
        ASSERT_EQ(weights[i], SoftmaxWeight(logits[i], max, 1.25f));  // the same bits
        sum += static_cast<double>(weights[i]);
        largest = std::max(largest, logits[i]);
      }
      ASSERT_NEAR(static_cast<double>(sums[block]) / sum, 1, 1e-5);
      ASSERT_EQ(maxima[block], largest);
    }
  }
}

}  // namespace
}  // namespace cogumi
