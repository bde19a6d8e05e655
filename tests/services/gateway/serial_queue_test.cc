#include "services/gateway/serial_queue.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace cogumi::gateway {
namespace {

TEST(SerialQueueTest, KeepsOrderAndNeverOverlaps) {
  SerialQueue queue;
  std::atomic<int> inside{0};
  std::vector<int> per_thread[4];
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 2000; ++i) {
        queue.Post([&, t, i] {
          EXPECT_EQ(inside.fetch_add(1), 0);
          per_thread[t].push_back(i);
          inside.fetch_sub(1);
        });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& list : per_thread) {
    ASSERT_EQ(list.size(), 2000u);
    EXPECT_TRUE(std::is_sorted(list.begin(), list.end()));
  }
  // A task that posts runs it after itself.
  std::string order;
  queue.Post([&] {
    queue.Post([&] { order += "b"; });
    order += "a";
  });
  EXPECT_EQ(order, "ab");
}

}  // namespace
}  // namespace cogumi::gateway
