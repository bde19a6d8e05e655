#include "engine/core/team_sizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace cogumi {
namespace {

constexpr double kStep = 0.003;  // seconds of a run

// `count` runs in which the threads waited together for `share` of the time.
void Observe(TeamSizer& team, int count, double share) {
  for (int i = 0; i < count; ++i) team.Observe(kStep, share * kStep);
}

// Runs until the size changes, with these waits.
int RunsUntilChange(TeamSizer& team, double share) {
  const int before = team.size();
  for (int runs = 1; runs < 100000; ++runs) {
    Observe(team, 1, share);
    if (team.size() != before) return runs;
  }
  return -1;
}

int Runs(double seconds) { return static_cast<int>(std::lround(seconds / kStep)); }

TEST(TeamSizerTest, KeepsAllThreadsThatRun) {
  TeamSizer team(2);
  Observe(team, 1000, 0.4);  // less than what one of two contributes
  EXPECT_EQ(team.size(), 2);
}

TEST(TeamSizerTest, ShrinksWhenWaitingCostsMoreThanAThreadIsWorth) {
  TeamSizer team(2);
  Observe(team, Runs(TeamSizer::kWindow) - 2, 0.6);
  EXPECT_EQ(team.size(), 2) << "a single window is too short to judge";
  Observe(team, 3, 0.6);
  EXPECT_EQ(team.size(), 1);
}

TEST(TeamSizerTest, OfManyThreadsOneIsWorthLess) {
  TeamSizer team(8);
  Observe(team, Runs(TeamSizer::kWindow) + 1, 7 * 0.2);  // seven wait a fifth of the time
  EXPECT_EQ(team.size(), 7);
}

TEST(TeamSizerTest, TriesAgainAfterARestThatGrows) {
  TeamSizer team(2);
  RunsUntilChange(team, 0.6);
  double rest = TeamSizer::kFirstRest;
  for (int i = 0; i < 5; ++i) {
    const int runs = RunsUntilChange(team, 0);
    EXPECT_EQ(team.size(), 2);
    EXPECT_NEAR(runs, Runs(rest + TeamSizer::kWindow), 2 * Runs(TeamSizer::kWindow)) << i;
    RunsUntilChange(team, 0.6);
    EXPECT_EQ(team.size(), 1);
    rest = std::min(2 * rest, TeamSizer::kLastRest);
  }
}

TEST(TeamSizerTest, ForgetsWhenTheCoreIsFreeAgain) {
  TeamSizer team(2);
  for (int i = 0; i < 6; ++i) RunsUntilChange(team, team.size() == 2 ? 0.6 : 0);
  ASSERT_EQ(team.size(), 2);
  Observe(team, 100, 0);
  RunsUntilChange(team, 0.6);
  EXPECT_NEAR(RunsUntilChange(team, 0), Runs(TeamSizer::kFirstRest + TeamSizer::kWindow),
              2 * Runs(TeamSizer::kWindow));
}

TEST(TeamSizerTest, FollowsSeveralBusyCores) {
  TeamSizer team(4);
  const auto waits = [&] { return team.size() > 2 ? 3.0 : 0.0; };  // two cores are taken
  for (int i = 0; i < 40; ++i) team.Observe(kStep, waits() * kStep);
  EXPECT_EQ(team.size(), 2);
  for (int i = 0; i < 2000; ++i) team.Observe(kStep, 0);
  EXPECT_EQ(team.size(), 4);
}

TEST(TeamSizerTest, OneThreadStaysOne) {
  TeamSizer team(1);
  Observe(team, 1000, 1);
  EXPECT_EQ(team.size(), 1);
}

}  // namespace
}  // namespace cogumi
