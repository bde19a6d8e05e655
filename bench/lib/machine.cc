#include "bench/lib/machine.h"

#include <sys/mman.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <new>
#include <vector>

namespace cogumi::bench {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Several sums side by side keep enough loads in flight that memory and not the additions takes
// the time; and memory is asked for 4 KiB ahead, since hardware prefetchers stop at a page's end
// (8-25 % less without, on Sapphire Rapids).
inline __attribute__((always_inline)) uint64_t Sum(const uint64_t* words, size_t count) {
  constexpr size_t kSums = 32;
  constexpr size_t kLine = 64 / sizeof(uint64_t);
  constexpr size_t kAhead = 4096 / sizeof(uint64_t);
  uint64_t sums[kSums] = {};
  for (size_t i = 0; i + kSums <= count; i += kSums) {
    for (size_t j = 0; j < kSums; j += kLine) __builtin_prefetch(words + i + kAhead + j);
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

// Touched memory on huge pages where the system has them, like the engine's weights: what is
// measured here bounds them.
class HugeBuffer {
 public:
  explicit HugeBuffer(size_t bytes) : count_(bytes / sizeof(uint64_t)) {
    constexpr size_t kPage = size_t{2} << 20;
    const size_t rounded = (bytes + kPage - 1) / kPage * kPage;
    memory_.reset(static_cast<uint64_t*>(std::aligned_alloc(kPage, rounded)));
    if (memory_ == nullptr) throw std::bad_alloc();
    madvise(memory_.get(), rounded, MADV_HUGEPAGE);
    std::fill_n(memory_.get(), count_, uint64_t{1});
  }
  const uint64_t* words() const { return memory_.get(); }
  size_t size() const { return count_; }

 private:
  struct Free {
    void operator()(uint64_t* words) const { std::free(words); }
  };
  const size_t count_;
  std::unique_ptr<uint64_t, Free> memory_;
};

#if defined(__x86_64__)
// `rounds` times sixteen independent dot products, more than any core's latency times width asks
// for; all operands stay in registers. The sum keeps them from being optimised away.
__attribute__((target("avx512f,avx512vnni"), optimize("O3"))) int DotProducts(int64_t rounds,
                                                                              int seed) {
  constexpr int kSums = 16;
  __m512i sums[kSums];
  for (int j = 0; j < kSums; ++j) sums[j] = _mm512_set1_epi32(seed + j);
  const __m512i unsigned_bytes = _mm512_set1_epi8(static_cast<char>(seed + 3));
  const __m512i signed_bytes = _mm512_set1_epi8(static_cast<char>(seed - 2));
  for (int64_t i = 0; i < rounds; ++i) {
    for (int j = 0; j < kSums; ++j) {
      sums[j] = _mm512_dpbusd_epi32(sums[j], unsigned_bytes, signed_bytes);
    }
  }
  for (int j = 1; j < kSums; ++j) sums[0] = _mm512_add_epi32(sums[0], sums[j]);
  alignas(64) int lanes[16];
  _mm512_store_si512(lanes, sums[0]);
  return lanes[0];
}
#endif

}  // namespace

Bandwidth MeasureReadBandwidth(ThreadPool& pool, size_t bytes, int passes) {
  const HugeBuffer memory(bytes);
  std::atomic<uint64_t> sink{0};  // keeps the sums from being optimised away
  std::vector<double> rates;
  for (int pass = 0; pass < passes; ++pass) {
    const double start = Now();
    pool.Run([&](int thread) {
      const size_t share = memory.size() / static_cast<size_t>(pool.size());
      sink += SumWords(memory.words() + share * static_cast<size_t>(thread), share);
    });
    rates.push_back(static_cast<double>(bytes) / (Now() - start));
  }
  std::sort(rates.begin(), rates.end());
  return {rates[rates.size() / 2], rates.back()};
}

double MeasureVnniRate(ThreadPool& pool, int passes) {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512vnni")) return 0;
  constexpr int64_t kRounds = 200'000;          // about 2 ms
  constexpr double kMultiplications = 16 * 64;  // a round: sixteen registers of 64 bytes
  std::atomic<int> sink{0};
  std::vector<double> rates;
  for (int pass = 0; pass < passes; ++pass) {
    const double start = Now();
    pool.Run([&](int thread) { sink += DotProducts(kRounds, thread); });
    rates.push_back(kMultiplications * kRounds * pool.size() / (Now() - start));
  }
  std::sort(rates.begin(), rates.end());
  return rates[rates.size() / 2];
#else
  (void)pool, (void)passes;
  return 0;
#endif
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
