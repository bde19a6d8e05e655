#include "engine/core/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <vector>

namespace cogumi {
namespace {

constexpr int kThreads = 4;

// Sizes in an order in which each follows each.
constexpr int kTeams[] = {4, 1, 2, 4, 3, 1, 3, 2, 1, 4, 2, 3, 4};

TEST(ThreadPoolTest, ATeamIsTheFirstThreads) {
  ThreadPool pool(kThreads);
  for (const int team : kTeams) {
    std::vector<std::atomic<int>> calls(kThreads);
    pool.Run(team, [&](int thread) { ++calls[static_cast<size_t>(thread)]; });
    for (int t = 0; t < kThreads; ++t) {
      EXPECT_EQ(calls[static_cast<size_t>(t)], t < team ? 1 : 0)
          << "thread " << t << " of " << team;
    }
  }
}

TEST(ThreadPoolTest, ForEachTakesEveryItemOnceWhateverTheTeam) {
  ThreadPool pool(kThreads);
  constexpr int kItems = 37;
  constexpr int kCalls = 5;  // not a multiple of the counters' phases
  for (int round = 0; round < 20; ++round) {
    for (const int team : kTeams) {
      std::vector<std::atomic<int>> taken(kItems * kCalls);
      pool.Run(team, [&](int thread) {
        for (int call = 0; call < kCalls; ++call) {
          pool.ForEach(kItems, thread, [&](int begin, int end) {
            for (int i = begin; i < end; ++i) ++taken[static_cast<size_t>(call * kItems + i)];
          });
        }
      });
      for (size_t i = 0; i < taken.size(); ++i) ASSERT_EQ(taken[i], 1) << i << " of " << team;
    }
  }
}

TEST(ThreadPoolTest, SharesOfATeamCoverAll) {
  ThreadPool pool(kThreads);
  for (const int team : kTeams) {
    std::vector<std::atomic<int>> covered(10);
    pool.Run(team, [&](int thread) {
      const auto [begin, end] = pool.Share(10, thread);
      for (int i = begin; i < end; ++i) ++covered[static_cast<size_t>(i)];
    });
    for (const auto& count : covered) EXPECT_EQ(count, 1);
  }
}

TEST(ThreadPoolTest, BarriersHoldTheTeam) {
  ThreadPool pool(kThreads);
  for (const int team : kTeams) {
    std::atomic<int> arrived{0};
    std::atomic<bool> early{false};
    pool.Run(team, [&](int) {
      for (int i = 1; i <= 50; ++i) {
        ++arrived;
        pool.Barrier();
        if (arrived < i * team) early = true;
        pool.Barrier();
      }
    });
    EXPECT_FALSE(early) << team;
  }
}

TEST(ThreadPoolTest, TellsHowLongThreadsWaited) {
  ThreadPool pool(2);
  pool.TakeWaited();
  pool.Run([](int) {});
  std::atomic<bool> waits{false};
  pool.Run([&](int thread) {
    if (thread == 0) {
      waits = true;
      return;  // into the last barrier
    }
    while (!waits) {
    }
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
    while (std::chrono::steady_clock::now() < until) {
    }
  });
  EXPECT_GT(pool.TakeWaited(), 0);
  EXPECT_EQ(pool.TakeWaited(), 0) << "taken once";
}

TEST(ThreadPoolTest, SleepersAreWokenForTheirTeamAlone) {
  ThreadPool pool(kThreads);
  std::atomic<int> calls{0};
  for (int i = 0; i < 3000; ++i) pool.Run(2, [&](int) { ++calls; });  // others fall asleep
  EXPECT_EQ(calls, 6000);
  pool.Run([&](int) { ++calls; });
  EXPECT_EQ(calls, 6000 + kThreads);
}

}  // namespace
}  // namespace cogumi
