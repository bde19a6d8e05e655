#include "engine/decode/philox.h"

#include <set>

#include "gtest/gtest.h"

namespace cogumi {
namespace {

// kat_vectors of Random123: "philox4x32 10 <counter> <key> <result>".
TEST(Philox, MatchesKnownAnswers) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
                       {0xffffffff, 0xffffffff}),
            (PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                       {0xa4093822, 0x299f31d0}),
            (PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformDependsOnEveryBitOfSeedPositionAndDraw) {
  std::set<double> values;
  for (int bit = 0; bit < 64; ++bit) {
    values.insert(PhiloxUniform(uint64_t{1} << bit, 0, 0));
    values.insert(PhiloxUniform(0, uint64_t{1} << bit, 0));
  }
  for (int bit = 0; bit < 32; ++bit) values.insert(PhiloxUniform(0, 0, uint32_t{1} << bit));
  values.insert(PhiloxUniform(0, 0, 0));
  EXPECT_EQ(values.size(), 64u + 64u + 32u + 1u);
}

TEST(Philox, UniformIsInTheHalfOpenUnitIntervalWithTheRightMoments) {
  constexpr int kDraws = 100000;
  double sum = 0;
  double squares = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double u = PhiloxUniform(7, static_cast<uint64_t>(i), 0);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += u;
    squares += u * u;
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 0.004);
  EXPECT_NEAR(squares / kDraws, 1.0 / 3, 0.004);
}

}  // namespace
}  // namespace cogumi
