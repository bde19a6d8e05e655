#include "engine/kernels/registry.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace cogumi {
namespace {

// Not every compiler's __builtin_cpu_supports knows it. Whether the system saves the registers is
// asked with AVX2.
bool HasF16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
}

bool HasAvx512Vnni() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

bool HasAmxInt8() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kTile) != 0 &&
         (edx & kInt8) != 0;
}

// Linux gives the tile registers, 8 KiB a thread, to a process that asks; it refuses where a signal
// stack is too small for them.
bool HasAmx() {
  if (!HasAvx512Vnni() || !HasAmxInt8()) return false;
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

struct Tier {
  const KernelTable& (*table)();
  bool (*supported)();
};

// Best first.
constexpr Tier kTiers[] = {
    {Avx512AmxKernels, HasAmx},
    {Avx512VnniKernels, HasAvx512Vnni},
    {Avx2Kernels, HasAvx2},
    {ReferenceKernels, [] { return true; }},
};

}  // namespace

std::vector<const KernelTable*> AllKernels() {
  std::vector<const KernelTable*> tables;
  for (const Tier& tier : kTiers) tables.push_back(&tier.table());
  return tables;
}

std::vector<const KernelTable*> SupportedKernels() {
  std::vector<const KernelTable*> tables;
  for (const Tier& tier : kTiers) {
    if (tier.supported()) tables.push_back(&tier.table());
  }
  return tables;
}

absl::StatusOr<const KernelTable*> SelectKernels(std::string_view name) {
  std::string wanted(name);
  if (wanted.empty()) {
    if (const char* env = std::getenv("COGUMI_KERNELS"); env != nullptr) wanted = env;
  }
  if (wanted.empty()) return SupportedKernels().front();
  std::vector<std::string> known;
  for (const Tier& tier : kTiers) {
    const KernelTable& table = tier.table();
    known.emplace_back(table.name);
    if (wanted != table.name) continue;
    if (!tier.supported()) {
      return absl::FailedPreconditionError(
          absl::StrCat("kernels: this CPU cannot run '", wanted, "' (it has ", CpuFeatures(), ")"));
    }
    return &table;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("kernels: unknown tier '", wanted, "'; known: ", absl::StrJoin(known, ", ")));
}

std::string CpuFeatures() {
  std::vector<std::string> features;
#define COGUMI_FEATURE(name) \
  if (__builtin_cpu_supports(name)) features.emplace_back(name)
  COGUMI_FEATURE("sse4.2");
  COGUMI_FEATURE("avx2");
  COGUMI_FEATURE("fma");
  if (HasF16c()) features.emplace_back("f16c");
  COGUMI_FEATURE("avx512f");
  COGUMI_FEATURE("avx512bw");
  COGUMI_FEATURE("avx512vl");
  COGUMI_FEATURE("avx512dq");
  COGUMI_FEATURE("avx512vnni");
  COGUMI_FEATURE("avx512vbmi2");
  COGUMI_FEATURE("avx512bf16");
#undef COGUMI_FEATURE
  if (HasAmxInt8()) features.emplace_back("amx-int8");
  return absl::StrJoin(features, " ");
}

}  // namespace cogumi
