// Time, injected so that tests need no sleeps.
#pragma once

#include <chrono>

namespace cogumi {

class Clock {
 public:
  virtual ~Clock() = default;
  // Monotonic seconds from an arbitrary origin.
  virtual double Now() const = 0;
  // Seconds since the Unix epoch.
  virtual double UnixNow() const = 0;

  static const Clock* Real();
};

class FakeClock : public Clock {
 public:
  double Now() const override { return now_; }
  double UnixNow() const override { return 1.7e9 + now_; }
  void Advance(double seconds) { now_ += seconds; }

 private:
  double now_ = 0;
};

}  // namespace cogumi
