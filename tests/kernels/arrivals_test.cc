#include "engine/kernels/arrivals.h"

#include <gtest/gtest.h>

#include <array>

#include "engine/core/thread_pool.h"

namespace cogumi {
namespace {

TEST(ArrivalsTest, WhoAwaitsSeesWhatAllWroteBeforeTheyArrived) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 500;
  ThreadPool pool(kThreads);
  Arrivals arrivals;
  for (int job = 0; job < 3; ++job) {
    arrivals.Reset();
    std::array<int, kThreads> written{};
    std::array<int, kThreads> wrong{};
    pool.Run([&](int thread) {
      const size_t own = static_cast<size_t>(thread);
      for (int round = 1; round <= kRounds; ++round) {
        written[own] = round;
        arrivals.Arrive();
        arrivals.Await(int64_t{kThreads} * round);
        for (const int value : written) wrong[own] += value != round;
        pool.Barrier();  // before anybody writes again
      }
    });
    for (const int count : wrong) EXPECT_EQ(count, 0);
  }
}

TEST(ArrivalsTest, NobodyIsAwaitedForNothing) {
  Arrivals arrivals;
  arrivals.Await(0);
}

}  // namespace
}  // namespace cogumi
