#include "bench/lib/machine.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <vector>

namespace cogumi::bench {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Several sums side by side keep enough loads in flight that memory and not the additions takes
// the time.
inline __attribute__((always_inline)) uint64_t Sum(const uint64_t* words, size_t count) {
  constexpr size_t kSums = 32;
  uint64_t sums[kSums] = {};
  for (size_t i = 0; i + kSums <= count; i += kSums) {
    for (size_t j = 0; j < kSums; ++j) sums[j] += words[i + j];
  }
  uint64_t all = 0;
  for (const uint64_t sum : sums) all += sum;
  return all;
}

#if defined(__x86_64__)
__attribute__((target("avx2"), optimize("O3"))) uint64_t SumAvx2(const uint64_t* words,
                                                                 size_t count) {
  return Sum(words, count);
}
#endif

__attribute__((optimize("O3"))) uint64_t SumWords(const uint64_t* words, size_t count) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) return SumAvx2(words, count);
#endif
  return Sum(words, count);
}

}  // namespace

Bandwidth MeasureReadBandwidth(ThreadPool& pool, size_t bytes, int passes) {
  std::vector<uint64_t> memory(bytes / sizeof(uint64_t), 1);
  std::atomic<uint64_t> sink{0};  // keeps the sums from being optimised away
  std::vector<double> rates;
  for (int pass = 0; pass < passes; ++pass) {
    const double start = Now();
    pool.Run([&](int thread) {
      const size_t share = memory.size() / static_cast<size_t>(pool.size());
      sink += SumWords(memory.data() + share * static_cast<size_t>(thread), share);
    });
    rates.push_back(static_cast<double>(bytes) / (Now() - start));
  }
  std::sort(rates.begin(), rates.end());
  return {rates[rates.size() / 2], rates.back()};
}

double MeasureBarrier(ThreadPool& pool) {
  constexpr int kBarriers = 20000;
  const double start = Now();
  pool.Run([&](int) {
    for (int i = 0; i < kBarriers; ++i) pool.Barrier();
  });
  return (Now() - start) / kBarriers;
}

std::string CpuName() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const size_t colon = line.find(':');
    if (line.starts_with("model name") && colon != std::string::npos) {
      return line.substr(std::min(colon + 2, line.size()));
    }
  }
  return "unknown";
}

int64_t ResidentBytes() {
  std::ifstream pages("/proc/self/statm");
  int64_t size = 0;
  int64_t resident = 0;
  pages >> size >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

}  // namespace cogumi::bench
