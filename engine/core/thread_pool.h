// A persistent pool: the caller and size()-1 workers run one function together, with barriers.
// Fewer may be asked for: the rest sleep and are waited for by nobody.
//
// Workers and barriers spin briefly (a step has ~5 barriers a layer, 30-170 ns each when nobody
// sleeps), then yield, and workers finally sleep on a condition variable when no work comes.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace cogumi {

class ThreadPool {
 public:
  // threads >= 1. Workers are started here.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return threads_; }

  // Runs fn(thread index) on a team of so many threads, in [1, size()], index 0 on the caller;
  // returns when all are done. One caller at a time.
  void Run(int team, const std::function<void(int)>& fn);
  void Run(const std::function<void(int)>& fn) { Run(threads_, fn); }
  // Inside Run: waits until the whole team has come here.
  void Barrier();
  // Seconds for which threads together waited in barriers that were not short, since the last call:
  // for others that the system had stopped, or whose work was much longer. Outside Run.
  double TakeWaited();

  // Inside Run: contiguous share [begin, end) of n items for thread t.
  struct Range {
    int begin;
    int end;
  };
  Range Share(int n, int t) const {
    return {static_cast<int>(static_cast<int64_t>(n) * t / team_),
            static_cast<int>(static_cast<int64_t>(n) * (t + 1) / team_)};
  }

  // Inside Run, by every thread in the same order of calls: fn(begin, end) for ranges that together
  // are [0, n). A thread takes its contiguous share item by item (a long one a few at a time), then
  // helps the others with theirs, so that a thread which the system stops or memory slows does not
  // hold up the rest. Ends with a barrier.
  template <class Fn>
  void ForEach(int n, int thread, const Fn& fn) {
    if (team_ == 1) {
      fn(0, n);
      return;
    }
    std::atomic<int>* taken = NextCounters(thread);
    const int most = std::clamp(n / (team_ * kFewestTakes), 1, kMostTaken);
    for (int i = 0; i < team_; ++i) {
      const int owner = thread + i < team_ ? thread + i : thread + i - team_;
      const auto [begin, end] = Share(n, owner);
      std::atomic<int>& next = taken[owner * kCounterStride];
      for (;;) {
        const int item = begin + next.fetch_add(most, std::memory_order_relaxed);
        if (item >= end) break;
        fn(item, std::min(item + most, end));
      }
    }
    Barrier();
  }

  // Cores this process may run on.
  static int AvailableCores();

 private:
  static constexpr int kCounterStride = 64 / sizeof(std::atomic<int>);  // a cache line each
  static constexpr int kPhases = 3;
  // Taking items costs 70 ns, during which nothing overlaps: of a long share some are taken at
  // once.
  static constexpr int kFewestTakes = 12;  // of a share
  static constexpr int kMostTaken = 4;

  // The counters of a thread's next ForEach; makes its own ready for the one after. Three sets in
  // turns: when a set is made ready, everybody has left its last use two barriers ago.
  std::atomic<int>* NextCounters(int thread) {
    const size_t line = static_cast<size_t>(kCounterStride);
    const size_t set = line * static_cast<size_t>(threads_);
    const size_t own = line * static_cast<size_t>(thread);
    const int phase = for_each_[own];
    for_each_[own] = (phase + 1) % kPhases;
    counters_[set * static_cast<size_t>((phase + 1) % kPhases) + own].store(
        0, std::memory_order_relaxed);
    return counters_.data() + set * static_cast<size_t>(phase);
  }

  // A job's number and its team, told apart by one load.
  static constexpr int kTeamBits = 16;
  static int TeamOf(uint64_t job) { return static_cast<int>(job & ((1u << kTeamBits) - 1)); }

  void ChangeTeam(int team);
  void Worker(int index);
  // The next job after `seen` that has work for the worker, or any when the pool ends.
  uint64_t WaitForJob(int index, uint64_t seen);

  const int threads_;
  std::vector<std::atomic<int>> counters_;  // [kPhases][threads] lines: items taken of a share
  std::vector<int> for_each_;               // [threads] lines: calls so far, modulo kPhases
  std::vector<std::thread> workers_;
  int team_;  // of the job
  const std::function<void(int)>* function_ = nullptr;
  std::atomic<int64_t> waited_nanoseconds_{0};
  alignas(64) std::atomic<uint64_t> job_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};  // of barriers
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace cogumi
