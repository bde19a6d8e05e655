// Two sides that take turns on one machine, a few hundredths of a second each.
//
// Whatever slows the machine down for longer than a turn slows both sides down alike, so that their
// ratio holds still where their rates do not: with whole answers in turns of 0.3 s, two sides that
// did the same differed by up to 45 %.
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <mutex>

#include "engine/core/clock.h"

namespace cogumi::bench {

class Turns {
 public:
  // `first`: the side, 0 or 1, that begins. The clock must outlive the turns.
  Turns(double turn_seconds, int first, const Clock* clock = Clock::Real());

  // Waits for the side's first turn.
  void Begin(int side);
  // Hands over if the turn has lasted long enough, and waits for the next. In its turn only.
  void Offer(int side);
  // The side has done what is measured, and goes on with something else until the other has: one
  // that worked alone would find its caches warmer. In its turn only.
  void Finish(int side);
  bool Finished(int side) const;
  // The side does nothing more: the other one goes on alone.
  void End(int side);
  // That the side's turns lasted so far, seconds. In its turn only.
  double Seconds(int side) const;

 private:
  void Wait(std::unique_lock<std::mutex>& lock, int side);
  double Turn() const;  // seconds so far
  // With the lock held: adds up the turn and begins the next one.
  void Next(int side);

  const double turn_seconds_;
  const Clock* const clock_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int side_;  // whose turn it is
  double began_;
  std::array<double, 2> seconds_{};  // without this turn
  std::array<bool, 2> finished_{};
  std::array<bool, 2> ended_{};
};

}  // namespace cogumi::bench
