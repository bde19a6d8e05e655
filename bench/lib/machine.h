// What a figure was measured on: the processor, and how fast it reads memory at that moment.
#pragma once

#include <cstdint>
#include <string>

#include "engine/core/thread_pool.h"

namespace cogumi::bench {

struct Bandwidth {
  double median = 0;  // bytes a second, over repeated reads of more than the caches hold
  double best = 0;
};

// Reads `bytes` of memory, divided over the pool's threads, `passes` times.
Bandwidth MeasureReadBandwidth(ThreadPool& pool, size_t bytes, int passes);

// Multiplications of bytes a second in vpdpbusd on 512-bit registers, all threads together: what
// 8-bit matrix products cannot exceed. The median of `passes`; 0 without AVX-512 VNNI.
double MeasureVnniRate(ThreadPool& pool, int passes);

// Seconds of one barrier of the pool: tells whether the cores share a cache.
double MeasureBarrier(ThreadPool& pool);

// The processor's name as the system gives it; "unknown" when it gives none.
std::string CpuName();
// What this process has in memory now.
int64_t ResidentBytes();

}  // namespace cogumi::bench
