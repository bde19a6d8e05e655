// A persistent pool: the caller and size()-1 workers run one function together, with barriers.
//
// Workers and barriers spin briefly (a step has ~5 barriers a layer, 30-170 ns each when nobody
// sleeps), then yield, and workers finally sleep on a condition variable when no work comes.
#pragma once

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

  // Runs fn(thread index) on every thread, index 0 on the caller; returns when all are done.
  // One caller at a time.
  void Run(const std::function<void(int)>& fn);
  // Inside Run: waits until every thread has come here.
  void Barrier();

  // Contiguous share [begin, end) of n items for thread t.
  struct Range {
    int begin;
    int end;
  };
  Range Share(int n, int t) const {
    return {static_cast<int>(static_cast<int64_t>(n) * t / threads_),
            static_cast<int>(static_cast<int64_t>(n) * (t + 1) / threads_)};
  }

  // Cores this process may run on.
  static int AvailableCores();

 private:
  void Worker(int index);
  void WaitForJob(uint32_t seen);

  const int threads_;
  std::vector<std::thread> workers_;
  const std::function<void(int)>* job_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};  // of jobs
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};  // of barriers
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace cogumi
