#include "engine/decode/draft_allowance.h"

#include "gtest/gtest.h"

namespace cogumi {
namespace {

TEST(DraftAllowance, GrowsByAHundredthOfTheTimeWithout) {
  DraftAllowance allowance;
  EXPECT_TRUE(allowance.Covers(0));
  EXPECT_FALSE(allowance.Covers(1e-9));
  for (int i = 0; i < 100; ++i) allowance.Grow(0.5);
  EXPECT_TRUE(allowance.Covers(0.499));
  EXPECT_FALSE(allowance.Covers(0.501));
}

TEST(DraftAllowance, PaysWhatWasLostFromWhatWasSaved) {
  DraftAllowance allowance;
  allowance.Add(0.2);
  allowance.Add(-0.15);
  EXPECT_TRUE(allowance.Covers(0.049));
  EXPECT_FALSE(allowance.Covers(0.051));
  allowance.Add(-0.1);
  EXPECT_FALSE(allowance.Covers(0));
}

TEST(DraftAllowance, NeitherHoursOfSuccessNorOneStallCountForLong) {
  DraftAllowance allowance;
  for (int i = 0; i < 3600; ++i) allowance.Add(1);
  EXPECT_TRUE(allowance.Covers(3.9));
  EXPECT_FALSE(allowance.Covers(4.1));
  allowance.Add(-100);
  allowance.Add(4.1);
  EXPECT_TRUE(allowance.Covers(0.09));
}

}  // namespace
}  // namespace cogumi
