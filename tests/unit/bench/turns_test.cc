#include "bench/lib/turns.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>

#include "engine/core/clock.h"

namespace cogumi::bench {
namespace {

// What two sides of so many steps did, in order; a turn is over after each step.
std::string Order(int first, int steps_of_0, int steps_of_1) {
  Turns turns(0, first);
  std::string order;  // guarded by the turns
  const auto work = [&](int side, int steps) {
    turns.Begin(side);
    for (int i = 0; i < steps; ++i) {
      order += side == 0 ? 'a' : 'b';
      turns.Offer(side);
    }
    turns.End(side);
  };
  std::thread other(work, 1, steps_of_1);
  work(0, steps_of_0);
  other.join();
  return order;
}

TEST(Turns, SidesAlternateFromTheOneThatIsFirst) {
  EXPECT_EQ(Order(0, 3, 3), "ababab");
  EXPECT_EQ(Order(1, 3, 3), "bababa");
}

TEST(Turns, WhoEndsLeavesTheRestToTheOther) {
  EXPECT_EQ(Order(0, 1, 4), "abbbb");
  EXPECT_EQ(Order(1, 4, 1), "baaaa");
}

TEST(Turns, WhoHasFinishedStillTakesTurns) {
  Turns turns(0, 0);
  std::string order;
  std::thread other([&] {
    turns.Begin(1);
    for (int i = 0; i < 3; ++i) {
      order += 'b';
      turns.Offer(1);
    }
    turns.Finish(1);
    turns.End(1);
  });
  turns.Begin(0);
  order += 'a';
  turns.Finish(0);
  EXPECT_TRUE(turns.Finished(0));
  EXPECT_FALSE(turns.Finished(1));
  while (!turns.Finished(1)) {
    order += '-';
    turns.Offer(0);
  }
  turns.End(0);
  other.join();
  EXPECT_EQ(order, "a-b-b-b-");
}

TEST(Turns, ATurnLastsAsLongAsItIsMeantTo) {
  FakeClock clock;
  Turns turns(0.02, 0, &clock);
  std::thread other([&] {
    turns.Begin(1);
    EXPECT_DOUBLE_EQ(turns.Seconds(1), 0);
    clock.Advance(0.5);
    EXPECT_DOUBLE_EQ(turns.Seconds(1), 0.5);
    turns.End(1);
  });
  turns.Begin(0);
  clock.Advance(0.0199);
  turns.Offer(0);  // too early, so this side goes on
  EXPECT_DOUBLE_EQ(turns.Seconds(0), 0.0199);
  clock.Advance(0.0101);
  turns.Offer(0);  // comes back when the other side has ended
  EXPECT_DOUBLE_EQ(turns.Seconds(0), 0.03) << "only own turns count";
  turns.End(0);
  other.join();
}

}  // namespace
}  // namespace cogumi::bench
