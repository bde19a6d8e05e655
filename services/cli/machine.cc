#include "services/cli/machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "engine/core/clock.h"
#include "engine/core/thread_pool.h"
#include "services/cli/paths.h"

namespace cogumi::cli {
namespace {

constexpr size_t kBufferBytes = size_t{512} << 20;

// The value behind "name :" in a /proc table.
std::string ValueOf(const std::string& table, const std::string& name) {
  for (const absl::string_view line : absl::StrSplit(table, '\n')) {
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 1));
    if (parts.size() == 2 && absl::StripAsciiWhitespace(parts[0]) == name) {
      return std::string(absl::StripAsciiWhitespace(parts[1]));
    }
  }
  return "";
}

int64_t KibibytesOf(const std::string& table, const std::string& name) {
  return std::strtoll(ValueOf(table, name).c_str(), nullptr, 10) * 1024;
}

// Several sums side by side keep enough loads in flight; the compiler makes vectors of them. Memory
// is asked for 4 KiB ahead, since hardware prefetchers stop at a page's end.
uint64_t Sum(const uint64_t* data, size_t count) {
  uint64_t sums[32] = {};
  for (size_t i = 0; i + 32 <= count; i += 32) {
    for (size_t j = 0; j < 32; j += 8) __builtin_prefetch(data + i + 512 + j);
    for (size_t j = 0; j < 32; ++j) sums[j] ^= data[i + j];
  }
  uint64_t all = 0;
  for (const uint64_t sum : sums) all ^= sum;
  return all;
}

}  // namespace

Machine DescribeMachine() {
  Machine machine;
  machine.processor = ValueOf(ReadFile("/proc/cpuinfo").value_or(""), "model name");
  machine.cores = ThreadPool::AvailableCores();
  const std::string memory = ReadFile("/proc/meminfo").value_or("");
  machine.memory_bytes = KibibytesOf(memory, "MemTotal");
  machine.memory_available_bytes = KibibytesOf(memory, "MemAvailable");
#if defined(__x86_64__)
  machine.features = {{"avx2", __builtin_cpu_supports("avx2") != 0},
                      {"fma", __builtin_cpu_supports("fma") != 0},
                      {"avx512f", __builtin_cpu_supports("avx512f") != 0},
                      {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
                      {"avx512vnni", __builtin_cpu_supports("avx512vnni") != 0}};
#endif
  return machine;
}

JsonObject ToJson(const Machine& machine) {
  JsonObject features, all;
  for (const auto& [name, there] : machine.features) features.Add(name, there);
  all.Add("processor", machine.processor)
      .Add("cores", machine.cores)
      .Add("memory_bytes", machine.memory_bytes)
      .Add("memory_available_bytes", machine.memory_available_bytes)
      .Add("features", features);
  return all;
}

double MeasureReadBandwidth(int threads, int rounds) {
  void* memory =
      ::mmap(nullptr, kBufferBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 0;
  auto* data = static_cast<uint64_t*>(memory);
  const size_t count = kBufferBytes / sizeof(uint64_t);
  ThreadPool pool(threads);
  std::atomic<uint64_t> sink{0};
  auto share = [&](int t) {
    const size_t begin = count * static_cast<size_t>(t) / static_cast<size_t>(threads);
    const size_t end = count * (static_cast<size_t>(t) + 1) / static_cast<size_t>(threads);
    return std::pair(data + begin, end - begin);
  };
  pool.Run([&](int t) {  // pages must exist to be read
    const auto [begin, length] = share(t);
    std::memset(begin, t + 1, length * sizeof(uint64_t));
  });
  double best = 0;
  for (int round = 0; round < rounds; ++round) {
    const double start = Clock::Real()->Now();
    pool.Run([&](int t) {
      const auto [begin, length] = share(t);
      sink += Sum(begin, length);
    });
    best = std::max(best, kBufferBytes / (Clock::Real()->Now() - start));
  }
  ::munmap(memory, kBufferBytes);
  return best;
}

}  // namespace cogumi::cli
