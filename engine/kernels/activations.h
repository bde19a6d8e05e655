// Inputs of a matrix: quantised per 32 inputs, in float32, or both, as its weights need.
//
// Quantised values lie [block][row]: 64 bytes (int16 as two signed planes: 32 high, 32 low bytes,
// value = 256 * high + low) or 32 bytes (int8), so that a kernel walks rows inside a weight record.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cogumi {

struct Activations {
  int inputs = 0;
  bool int16 = true;
  bool want_quantised = false;
  bool want_f32 = false;

  int8_t* codes = nullptr;      // [blocks][code_stride bytes]
  float* scale = nullptr;       // [blocks][row_stride]
  float* scaled_sum = nullptr;  // scale * sum of codes
  int32_t* sum = nullptr;       // sum of the 32 codes
  int32_t* half_sum = nullptr;  // sum of the first 16 codes
  size_t code_stride = 0;       // bytes between blocks; padded so that blocks do not share sets
  size_t row_stride = 0;        // entries between blocks
  float* f32 = nullptr;         // [rows][inputs]

  int BytesPerRow() const { return int16 ? 64 : 32; }
};

}  // namespace cogumi
