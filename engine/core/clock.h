// Time, injected so that tests need no sleeps.
#pragma once

#include <atomic>
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

// Moved by the test, read by the threads under test.
class FakeClock : public Clock {
 public:
  double Now() const override { return now_.load(); }
  double UnixNow() const override { return 1.7e9 + now_.load(); }
  void Advance(double seconds) { now_ += seconds; }

 private:
  std::atomic<double> now_ = 0;
};

}  // namespace cogumi
