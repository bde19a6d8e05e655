#include "engine/core/thread_pool.h"

#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <chrono>

namespace cogumi {
namespace {

// ~50 us of spinning before the first yield: longer than any gap inside a step, short enough that
// a preempted partner gets the core back at once.
constexpr int kSpins = 2000;
// Yields before a worker sleeps between jobs: gaps between steps (sampling, delivery) are ~10 us.
constexpr int kYieldsBeforeSleep = 50;

}  // namespace

ThreadPool::ThreadPool(int threads)
    : threads_(std::clamp(threads, 1, (1 << kTeamBits) - 1)),
      counters_(static_cast<size_t>(kPhases * threads_ * kCounterStride)),
      for_each_(static_cast<size_t>(threads_ * kCounterStride)),
      team_(threads_) {
  for (int i = 1; i < threads_; ++i) workers_.emplace_back([this, i] { Worker(i); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true, std::memory_order_relaxed);
    job_.fetch_add(uint64_t{1} << kTeamBits, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Run(int team, const std::function<void(int)>& fn) {
  if (team != team_) ChangeTeam(team);
  if (team == 1) {
    fn(0);
    return;
  }
  function_ = &fn;
  const uint64_t number = (job_.load(std::memory_order_relaxed) >> kTeamBits) + 1;
  job_.store(number << kTeamBits | static_cast<uint64_t>(team), std::memory_order_seq_cst);
  if (sleeping_.load(std::memory_order_seq_cst) > 0) {
    { const std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
  }
  fn(0);
  Barrier();
}

// Threads that sat out have not counted the calls of ForEach since: all begin again. Nobody is
// inside a job here, and the next job publishes this.
void ThreadPool::ChangeTeam(int team) {
  for (std::atomic<int>& counter : counters_) counter.store(0, std::memory_order_relaxed);
  std::fill(for_each_.begin(), for_each_.end(), 0);
  team_ = team;
}

void ThreadPool::Barrier() {
  // Read before the arrival: behind it the others may leave, and the caller change the team.
  const int team = team_;
  if (team == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == team - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; spins < kSpins; ++spins) {
    if (phase_.load(std::memory_order_acquire) != phase) return;
    _mm_pause();
  }
  const auto start = std::chrono::steady_clock::now();
  for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
    if (spins % kSpins == 0) sched_yield();
    _mm_pause();
  }
  waited_nanoseconds_.fetch_add(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                    std::chrono::steady_clock::now() - start)
                                    .count(),
                                std::memory_order_relaxed);
}

double ThreadPool::TakeWaited() {
  return 1e-9 * static_cast<double>(waited_nanoseconds_.exchange(0, std::memory_order_relaxed));
}

uint64_t ThreadPool::WaitForJob(int index, uint64_t seen) {
  const auto is_for_me = [&](uint64_t job) {
    return job != seen && (index < TeamOf(job) || stop_.load(std::memory_order_relaxed));
  };
  for (int yields = 0; yields < kYieldsBeforeSleep; ++yields) {
    for (int spins = 0; spins < kSpins; ++spins) {
      const uint64_t job = job_.load(std::memory_order_acquire);
      if (is_for_me(job)) return job;
      _mm_pause();
    }
    sched_yield();
  }
  uint64_t job = seen;
  std::unique_lock<std::mutex> lock(mutex_);
  sleeping_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [&] { return is_for_me(job = job_.load(std::memory_order_seq_cst)); });
  sleeping_.fetch_sub(1, std::memory_order_seq_cst);
  return job;
}

void ThreadPool::Worker(int index) {
  for (uint64_t seen = 0;;) {
    seen = WaitForJob(index, seen);
    if (stop_.load(std::memory_order_relaxed)) return;  // written before the job's number moved
    (*function_)(index);
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
