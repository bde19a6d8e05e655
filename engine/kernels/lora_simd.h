// The blocks of lora_ops.h over the vector type S of simd_ops.h.
#pragma once

#include "engine/kernels/lora.h"

namespace cogumi {
namespace {

template <class S>
struct LoraSimd {
  using F = typename S::F;

  static F Load(const uint16_t* p) { return S::LoadHalf(p); }
  static F Load(const int8_t* p) { return S::LoadInt8(p); }

  // values[r][k] = scale[k] * sum of a[k] * x[r].
  template <int kRows, int kRanks, class Value>
  static void ShrinkBlock(const float* x, int inputs, const Value* a, const float* scale,
                          float* values) {
    const size_t stride = static_cast<size_t>(inputs);
    const size_t a_stride = static_cast<size_t>(LoraStride(inputs));
    F sum[kRows][kRanks];
    for (int r = 0; r < kRows; ++r) {
      for (int k = 0; k < kRanks; ++k) sum[r][k] = S::Zero();
    }
    int i = 0;
    for (; i + S::kLanes <= inputs; i += S::kLanes) {
      F in[kRows];
      for (int r = 0; r < kRows; ++r) in[r] = S::Load(x + static_cast<size_t>(r) * stride + i);
      for (int k = 0; k < kRanks; ++k) {
        const F w = Load(a + static_cast<size_t>(k) * a_stride + i);
        for (int r = 0; r < kRows; ++r) sum[r][k] = S::Fma(w, in[r], sum[r][k]);
      }
    }
    if (i < inputs) {  // A is zero there, but the floats behind a row are not
      for (int r = 0; r < kRows; ++r) {
        const F in = S::LoadN(x + static_cast<size_t>(r) * stride + i, inputs - i);
        for (int k = 0; k < kRanks; ++k) {
          const F w = Load(a + static_cast<size_t>(k) * a_stride + i);
          sum[r][k] = S::Fma(w, in, sum[r][k]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int k = 0; k < kRanks; ++k) {
        values[static_cast<size_t>(r) * kLoraValues + static_cast<size_t>(k)] =
            scale[k] * S::ReduceAdd(sum[r][k]);
      }
    }
  }

  template <int kRows, class Value>
  static void ExpandRows(const float* values, int rank, const Value* b, float* tile) {
    constexpr int kVecs = kPanelRows / S::kLanes;
    // Vectors whose sums run side by side: a row alone would wait for its multiply-adds.
    constexpr int kBeside = kRows == 1 ? 2 : 1;
    for (int v = 0; v < kVecs; v += kBeside) {
      const Value* column = b + v * S::kLanes;
      F sum[kRows][kBeside];
      for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kBeside; ++i) sum[r][i] = S::Zero();
      }
#pragma GCC unroll 4
      for (int k = 0; k < rank; ++k) {
        F w[kBeside];
        for (int i = 0; i < kBeside; ++i) w[i] = Load(column + k * kPanelRows + i * S::kLanes);
        for (int r = 0; r < kRows; ++r) {
          const F value =
              S::Set(values[static_cast<size_t>(r) * kLoraValues + static_cast<size_t>(k)]);
          for (int i = 0; i < kBeside; ++i) sum[r][i] = S::Fma(w[i], value, sum[r][i]);
        }
      }
      for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kBeside; ++i) {
          float* out = tile + r * kPanelRows + (v + i) * S::kLanes;
          S::Store(out, S::Add(S::Load(out), sum[r][i]));
        }
      }
    }
  }
};

}  // namespace
}  // namespace cogumi
