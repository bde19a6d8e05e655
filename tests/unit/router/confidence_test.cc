#include "router/confidence.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace cogumi::router {
namespace {

using testing::HasSubstr;

absl::StatusOr<float> Confidence(const std::vector<float>& logprobs,
                                 const std::vector<float>& margins = {},
                                 const std::vector<float>& entropies = {}, bool cut_off = false) {
  return UncalibratedConfidence({logprobs, margins, entropies, cut_off});
}

TEST(ConfidenceTest, FollowsItsFormula) {
  // Two tokens: mean -0.3, 10 % quantile -0.5 + 0.1 * 0.4 = -0.46.
  const double a = std::exp(-0.3);
  const double b = std::exp(-0.46);
  EXPECT_NEAR(*Confidence({-0.5f, -0.1f}), (0.45 * a + 0.30 * b) / 0.75, 1e-6);
  const double c = 1 - std::exp(-1.5 / 2);  // 25 % quantile of {1, 3} is 1.5
  EXPECT_NEAR(*Confidence({-0.5f, -0.1f}, {1, 3}), (0.45 * a + 0.30 * b + 0.15 * c) / 0.90, 1e-6);
  const double d = std::exp(-0.5);
  EXPECT_NEAR(*Confidence({-0.5f, -0.1f}, {1, 3}, {0, 1}),
              0.45 * a + 0.30 * b + 0.15 * c + 0.10 * d, 1e-6);
}

TEST(ConfidenceTest, OrdersAnswers) {
  const float sure = *Confidence({-0.01f, -0.02f}, {8, 9}, {0.1f, 0.1f});
  const float unsure = *Confidence({-1.5f, -2.5f}, {0.1f, 0.4f}, {3, 4});
  EXPECT_GT(sure, 0.9f);
  EXPECT_LT(unsure, 0.3f);
  EXPECT_NEAR(*Confidence({-0.5f}, {}, {}, true), 0.9f * *Confidence({-0.5f}), 1e-6);
}

TEST(ConfidenceTest, StaysInRange) {
  EXPECT_LE(*Confidence({0.0005f}, {1e30f}, {0}), 1.0f);
  EXPECT_GE(*Confidence({-1e30f}, {0}, {1e30f}), 0.0f);
}

TEST(ConfidenceTest, RefusesWhatCannotBe) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  EXPECT_THAT(std::string(Confidence({}).status().message()), HasSubstr("logprobs: empty"));
  for (const float value : {kNan, kInf, -kInf, 0.01f, -2e30f}) {
    const auto result = Confidence({-0.1f, value});
    EXPECT_TRUE(absl::IsInvalidArgument(result.status())) << value;
    EXPECT_THAT(std::string(result.status().message()), HasSubstr("logprobs[1]"));
  }
  for (const float value : {kNan, kInf, -0.5f}) {
    EXPECT_THAT(std::string(Confidence({-0.1f}, {value}).status().message()),
                HasSubstr("margins[0]"));
    EXPECT_THAT(std::string(Confidence({-0.1f}, {}, {value}).status().message()),
                HasSubstr("entropies[0]"));
  }
  EXPECT_THAT(std::string(Confidence({-0.1f, -0.2f}, {1}).status().message()),
              HasSubstr("margins: 1 values for 2 tokens"));
  EXPECT_TRUE(Confidence(std::vector<float>(kMaxTokens, -0.1f)).ok());
  EXPECT_FALSE(Confidence(std::vector<float>(kMaxTokens + 1, -0.1f)).ok());
}

}  // namespace
}  // namespace cogumi::router
