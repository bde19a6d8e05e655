#include "engine/kernels/packed_matrix.h"

#include <cstring>

#include "engine/core/half.h"

namespace cogumi {
namespace {

float LoadScale(const uint8_t* base, bool f32, int index) {
  if (f32) {
    float value;
    std::memcpy(&value, base + 4 * index, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, base + 2 * index, 2);
  return HalfToFloat(half);
}

}  // namespace

void UnpackRow(const PackedMatrix& matrix, int row, float* out) {
  const WeightFormat& f = matrix.format;
  const uint8_t* panel = matrix.Panel(row / kPanelRows);
  const int r = row % kPanelRows;
  if (f.kind == WeightKind::kF32) {
    for (int k = 0; k < matrix.inputs; ++k) {
      std::memcpy(out + k,
                  panel + 4 * (static_cast<size_t>(k) * kPanelRows + static_cast<size_t>(r)), 4);
    }
    return;
  }
  if (f.kind != WeightKind::kQuantised) {
    for (int k = 0; k < matrix.inputs; ++k) {
      uint16_t bits;
      std::memcpy(&bits, panel + 2 * (static_cast<size_t>(k) * kPanelRows + static_cast<size_t>(r)),
                  2);
      out[k] = f.kind == WeightKind::kF16 ? HalfToFloat(bits) : Bf16ToFloat(bits);
    }
    return;
  }
  const uint8_t* fine = f.split ? matrix.Fine(row / kPanelRows) : nullptr;
  for (int b = 0; b < matrix.inputs / kBlockInputs; ++b, panel += f.RecordBytes()) {
    const uint8_t* scales = panel + f.TileBytes();
    for (int i = 0; i < kBlockInputs; ++i) {
      const int tile = i / 4;
      const int byte = (r % 16) * 4 + i % 4;
      int code;
      if (f.bits == 4 || f.split) {
        const int shift = r < 16 ? 0 : 4;
        code = panel[tile * 64 + byte] >> shift & 15;
        if (f.split) {
          const size_t at = static_cast<size_t>(b) * kFineBytes;
          code = code << 4 | (fine[at + static_cast<size_t>(tile * 64 + byte)] >> shift & 15);
        }
      } else {
        code = panel[(r / 16) * 512 + tile * 64 + byte];
      }
      const int g = i / f.group;
      const float scale = LoadScale(scales, f.f32_scales, g * 32 + r);
      out[b * kBlockInputs + i] =
          f.has_minimum ? scale * static_cast<float>(code) +
                              LoadScale(scales + f.ScaleBytes(), f.f32_scales, g * 32 + r)
                        : scale * static_cast<float>(code - f.zero);
    }
  }
}

}  // namespace cogumi
