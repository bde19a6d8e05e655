#include "engine/runtime/chunk_sizer.h"

#include <algorithm>
#include <limits>

#include "gtest/gtest.h"

namespace cogumi {
namespace {

// A machine: seconds of a step.
struct Machine {
  double others = 0.010;
  double per_row = 0.0005;
  double Seconds(int32_t prompt_rows, bool decoding) const {
    return (decoding ? others : 0) + per_row * prompt_rows;
  }
};

// The rows after `steps` with prompts beside decoding sequences.
int32_t Learn(ChunkSizer& sizer, const Machine& machine, int steps) {
  for (int i = 0; i < steps; ++i) {
    const int32_t rows = sizer.Rows(4);
    sizer.Measured(rows, 4, machine.Seconds(rows, true));
  }
  return sizer.Rows(4);
}

TEST(ChunkSizer, TheTargetAloneWhenNobodyWaits) {
  const Machine machine;
  ChunkSizer sizer(256, 0.05);
  for (int i = 0; i < 5; ++i) sizer.Measured(0, 4, machine.Seconds(0, true));
  Learn(sizer, machine, 20);
  EXPECT_NEAR(sizer.Rows(0), 100, 2);
  ChunkSizer off(256, std::numeric_limits<double>::infinity());
  EXPECT_EQ(off.Rows(0), 256);
}

TEST(ChunkSizer, AStepTakesAboutTheTarget) {
  const Machine machine;
  ChunkSizer sizer(256, 0.05);
  for (int i = 0; i < 5; ++i) sizer.Measured(0, 4, machine.Seconds(0, true));
  EXPECT_LE(sizer.Rows(4), 64);  // careful before it knows
  EXPECT_NEAR(Learn(sizer, machine, 20), 80, 2);
}

TEST(ChunkSizer, FollowsTheMachineBothWays) {
  ChunkSizer sizer(512, 0.05);
  Machine machine;
  EXPECT_NEAR(Learn(sizer, machine, 30), 80, 2);
  machine.per_row = 0.002;
  EXPECT_NEAR(Learn(sizer, machine, 30), 20, 3);
  machine.per_row = 0.0002;
  EXPECT_NEAR(Learn(sizer, machine, 60), 200, 3);
}

TEST(ChunkSizer, AlwaysSomeRowsAndNeverMoreThanTheMost) {
  Machine slow{.others = 0.2, .per_row = 0.02};
  ChunkSizer sizer(256, 0.05);
  for (int i = 0; i < 5; ++i) sizer.Measured(0, 32, 0.2);
  EXPECT_EQ(Learn(sizer, slow, 30), 8);  // the target holds two
  // The others have become few, and no step without prompts shows it.
  EXPECT_GT(Learn(sizer, {.others = 0.001, .per_row = 0.0005}, 60), 80);
  Machine fast{.others = 0, .per_row = 1e-6};
  EXPECT_EQ(Learn(sizer, fast, 60), 256);
  ChunkSizer one(1, 0.05);
  EXPECT_EQ(Learn(one, slow, 10), 1);
  ChunkSizer off(256, std::numeric_limits<double>::infinity());
  Learn(off, slow, 10);
  EXPECT_EQ(off.Rows(4), 256);
}

TEST(ChunkSizer, PromptsTakeAsLongAsDecodingDoes) {
  for (const double others : {0.020, 0.030, 0.045}) {
    const Machine machine{.others = others, .per_row = 0.0005};
    ChunkSizer sizer(256, 0.05);
    for (int i = 0; i < 5; ++i) sizer.Measured(0, 4, machine.Seconds(0, true));
    const int32_t rows = Learn(sizer, machine, 30);
    EXPECT_NEAR(rows, std::max(0.05 - others, others) / 0.0005, 3) << others;
    EXPECT_LE(machine.Seconds(rows, true), 0.1);
  }
  // Nor longer than the target.
  const Machine slow{.others = 0.2, .per_row = 0.0005};
  ChunkSizer sizer(256, 0.05);
  for (int i = 0; i < 5; ++i) sizer.Measured(0, 4, slow.Seconds(0, true));
  EXPECT_LE(Learn(sizer, slow, 30), 100);
  EXPECT_GE(Learn(sizer, slow, 30), 30);
}

TEST(ChunkSizer, OneHiccupIsForgotten) {
  const Machine machine;
  ChunkSizer sizer(256, 0.05);
  const int32_t before = Learn(sizer, machine, 30);
  sizer.Measured(before, 4, 2.0);
  EXPECT_LT(sizer.Rows(4), before);
  EXPECT_NEAR(Learn(sizer, machine, 30), before, 2);
}

TEST(ChunkSizer, AClockThatStandsStillIsNoReasonForAlarm) {
  ChunkSizer sizer(256, 0.05);
  for (int i = 0; i < 10; ++i) sizer.Measured(64, 1, 0);
  EXPECT_EQ(sizer.Rows(1), 64);
}

}  // namespace
}  // namespace cogumi
