// How many threads take part in a run: one fewer as long as another process takes a core.
//
// A thread that the system stops holds up all others at the next barrier, for a whole time slice.
// Threads that wait for more of the time than one of them contributes are better off without it: on
// two cores, one of them busy, both together decode at 0.37 of their speed and one alone at 0.5.
// From time to time one more is tried. Deterministic given what is observed.
#pragma once

#include <algorithm>

namespace cogumi {

class TeamSizer {
 public:
  // Seconds of runs that are judged together.
  static constexpr double kWindow = 0.03;
  // Seconds of runs until one more is tried: twice as many each time in vain, up to the last.
  static constexpr double kFirstRest = 0.25;
  static constexpr double kLastRest = 1.0;

  // threads >= 1.
  explicit TeamSizer(int threads) : threads_(threads), size_(threads) {}

  // Threads of the next run, in [1, threads].
  int size() const { return size_; }

  // A run of that size took `seconds`; its threads together waited `waited` seconds for others that
  // did not run.
  void Observe(double seconds, double waited) {
    seconds_ += seconds;
    waited_ += waited;
    if (seconds_ < kWindow) return;
    if (size_ > 1 && waited_ * size_ > seconds_ * (size_ - 1)) {
      rest_ = std::clamp(2 * rest_, kFirstRest, kLastRest);
      left_ = rest_;
      --size_;
    } else if (left_ > 0) {
      left_ -= seconds_;
    } else if (size_ < threads_) {
      ++size_;
    } else {
      rest_ = 0;
    }
    seconds_ = waited_ = 0;
  }

 private:
  const int threads_;
  int size_;
  double seconds_ = 0;  // of this window
  double waited_ = 0;
  double rest_ = 0;
  double left_ = 0;  // of the rest
};

}  // namespace cogumi
