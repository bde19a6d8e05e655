// From GGUF's blocks to the kernels' layout, without loss.
#pragma once

#include <cstdint>

#include "engine/io/gguf.h"
#include "engine/kernels/packed_matrix.h"

namespace cogumi {

// The layout that holds every value of the type exactly. K-quants get float32 scales: the product
// of a super-block's fp16 scale and a 6-bit (Q6_K: 8-bit) factor needs 17 (19) bits.
WeightFormat PackedFormatOf(GgmlType type);
// The same for a head, whose lower bits are not always read.
WeightFormat PackedHeadFormatOf(GgmlType type);

// Of a bound of PackedMatrix::Norms, what one of the heavy inputs' rest counts for: it is 0.01-0.02
// of all that is left out.
inline constexpr double kHeavyRest = 32;

// Writes panel `panel` of `matrix` (whose format is one of the two) from the tensor's rows. A split
// matrix's memory is zero before, and its heavy inputs are chosen.
void PackPanel(GgmlType type, const std::byte* tensor_data, const PackedMatrix& matrix, int panel);

}  // namespace cogumi
