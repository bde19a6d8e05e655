#include "bench/lib/turns.h"

namespace cogumi::bench {

Turns::Turns(double turn_seconds, int first, const Clock* clock)
    : turn_seconds_(turn_seconds), clock_(clock), side_(first), began_(clock->Now()) {}

void Turns::Wait(std::unique_lock<std::mutex>& lock, int side) {
  changed_.wait(lock, [this, side] { return side_ == side; });
}

void Turns::Begin(int side) {
  std::unique_lock<std::mutex> lock(mutex_);
  Wait(lock, side);
}

void Turns::Offer(int side) {
  std::unique_lock<std::mutex> lock(mutex_);
  const int other = 1 - side;
  if (ended_[0] || ended_[1] || Turn() < turn_seconds_) return;
  Next(other);
  Wait(lock, side);
}

void Turns::Finish(int side) {
  const std::lock_guard<std::mutex> lock(mutex_);
  finished_[static_cast<size_t>(side)] = true;
}

bool Turns::Finished(int side) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return finished_[static_cast<size_t>(side)];
}

void Turns::End(int side) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ended_[static_cast<size_t>(side)] = true;
  const int other = 1 - side;
  if (side_ == side && !ended_[static_cast<size_t>(other)]) Next(other);
}

double Turns::Seconds(int side) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return seconds_[static_cast<size_t>(side)] + Turn();
}

double Turns::Turn() const { return clock_->Now() - began_; }

void Turns::Next(int side) {
  seconds_[static_cast<size_t>(side_)] += Turn();
  side_ = side;
  began_ = clock_->Now();
  changed_.notify_all();
}

}  // namespace cogumi::bench
