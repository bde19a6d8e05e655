// The tiers of kernels and which of them this machine runs.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/kernels/ops.h"

namespace cogumi {

const KernelTable& ReferenceKernels();
const KernelTable& Avx2Kernels();
const KernelTable& Avx512VnniKernels();
const KernelTable& Avx512AmxKernels();

// Every tier, best first, whether or not this CPU can run it.
std::vector<const KernelTable*> AllKernels();
// Tiers that this CPU can run, best first; "reference" always.
std::vector<const KernelTable*> SupportedKernels();

// `name` "" picks the best; the environment's COGUMI_KERNELS comes before an empty name only.
// INVALID_ARGUMENT: unknown name (listing the known), FAILED_PRECONDITION: this CPU lacks it.
absl::StatusOr<const KernelTable*> SelectKernels(std::string_view name);

// Feature bits in words, e.g. "avx2 fma f16c avx512f ... amx-int8".
std::string CpuFeatures();

}  // namespace cogumi
