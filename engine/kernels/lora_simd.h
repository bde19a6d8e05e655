// The blocks of lora_ops.h over the vector type S of simd_ops.h.
#pragma once

#include "engine/kernels/lora.h"

namespace cogumi {
namespace {

template <class S>
struct LoraSimd {
  using F = typename S::F;

  // values[r][k] = scale[k] * sum of a[k] * x[r].
  template <int kRows, int kRanks>
  static void ShrinkBlock(const float* x, int inputs, const uint16_t* a, const float* scale,
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
        const F w = S::LoadHalf(a + static_cast<size_t>(k) * a_stride + i);
        for (int r = 0; r < kRows; ++r) sum[r][k] = S::Fma(w, in[r], sum[r][k]);
      }
    }
    if (i < inputs) {  // A is zero there, but the floats behind a row are not
      for (int r = 0; r < kRows; ++r) {
        const F in = S::LoadN(x + static_cast<size_t>(r) * stride + i, inputs - i);
        for (int k = 0; k < kRanks; ++k) {
          const F w = S::LoadHalf(a + static_cast<size_t>(k) * a_stride + i);
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

  template <int kRows>
  static void ExpandRows(const float* values, int rank, const uint16_t* b, float* tile) {
    constexpr int kVecs = kPanelRows / S::kLanes;
    for (int v = 0; v < kVecs; ++v) {
      F sum[kRows];
      for (int r = 0; r < kRows; ++r) sum[r] = S::Zero();
      for (int k = 0; k < rank; ++k) {
        const F w = S::LoadHalf(b + k * kPanelRows + v * S::kLanes);
        for (int r = 0; r < kRows; ++r) {
          sum[r] = S::Fma(w, S::Set(values[static_cast<size_t>(r) * kLoraValues +
                                           static_cast<size_t>(k)]),
                          sum[r]);
        }
      }
      for (int r = 0; r < kRows; ++r) {
        float* out = tile + r * kPanelRows + v * S::kLanes;
        S::Store(out, S::Add(S::Load(out), sum[r]));
      }
    }
  }
};

}  // namespace
}  // namespace cogumi
