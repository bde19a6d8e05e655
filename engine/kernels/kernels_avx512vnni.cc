// AVX-512 with VNNI (Ice Lake, Sapphire Rapids, Zen 4 and later).
#include "engine/kernels/avx512_ops.h"
#include "engine/kernels/registry.h"

namespace cogumi {
namespace {

constexpr KernelTable kTable = FusedOps<Avx512Ops<Matmul>>::Table("avx512vnni");

}  // namespace

const KernelTable& Avx512VnniKernels() { return kTable; }

}  // namespace cogumi
