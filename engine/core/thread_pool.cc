#include "engine/core/thread_pool.h"

#include <immintrin.h>
#include <sched.h>

namespace cogumi {
namespace {

// ~50 us of spinning before the first yield: longer than any gap inside a step, short enough that
// a preempted partner gets the core back at once.
constexpr int kSpins = 2000;
// Yields before a worker sleeps between jobs: gaps between steps (sampling, delivery) are ~10 us.
constexpr int kYieldsBeforeSleep = 50;

}  // namespace

ThreadPool::ThreadPool(int threads)
    : threads_(threads < 1 ? 1 : threads),
      counters_(static_cast<size_t>(kPhases * threads_ * kCounterStride)),
      for_each_(static_cast<size_t>(threads_ * kCounterStride)) {
  for (int i = 1; i < threads_; ++i) workers_.emplace_back([this, i] { Worker(i); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Run(const std::function<void(int)>& fn) {
  if (threads_ == 1) {
    fn(0);
    return;
  }
  job_ = &fn;
  generation_.fetch_add(1, std::memory_order_seq_cst);
  if (sleeping_.load(std::memory_order_seq_cst) > 0) {
    { const std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
  }
  fn(0);
  Barrier();
}

void ThreadPool::Barrier() {
  if (threads_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; phase_.load(std::memory_order_acquire) == phase;) {
    _mm_pause();
    if (++spins >= kSpins) {
      sched_yield();
      spins = 0;
    }
  }
}

void ThreadPool::WaitForJob(uint32_t seen) {
  for (int yields = 0; yields < kYieldsBeforeSleep; ++yields) {
    for (int spins = 0; spins < kSpins; ++spins) {
      if (generation_.load(std::memory_order_acquire) != seen) return;
      _mm_pause();
    }
    sched_yield();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  sleeping_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return generation_.load(std::memory_order_seq_cst) != seen; });
  sleeping_.fetch_sub(1, std::memory_order_seq_cst);
}

void ThreadPool::Worker(int index) {
  for (uint32_t seen = 0;;) {
    WaitForJob(seen);
    ++seen;
    if (stop_.load(std::memory_order_relaxed)) return;  // written before the generation moved
    (*job_)(index);
    Barrier();
  }
}

int ThreadPool::AvailableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  const int cores = CPU_COUNT(&set);
  return cores < 1 ? 1 : cores;
}

}  // namespace cogumi
