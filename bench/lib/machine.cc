#include "bench/lib/machine.h"

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

// As wide as the machine allows, so that the loads and not the additions take the time.
__attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3"))) uint64_t SumWords(
    const uint64_t* words, size_t count) {
  uint64_t sum = 0;
  for (size_t i = 0; i < count; ++i) sum += words[i];
  return sum;
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

}  // namespace cogumi::bench
