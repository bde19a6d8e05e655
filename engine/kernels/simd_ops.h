// Float primitives over a vector type S, shared by the SIMD tiers. S gives: F (a register of
// kLanes floats), Zero, Set, Load, LoadN (rest zero), Store, StoreN, LoadHalf, LoadBf16, StoreHalf,
// Fma (a * b + c), Add, Sub, Mul, Div, Max, Min, Abs, Round, Exp2Int (2^n for integral n),
// KeepFirst (lanes >= n become `other`), ReduceAdd, ReduceMax (in a fixed order).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "engine/kernels/fused_ops.h"

namespace cogumi {
namespace {

template <class S>
struct SimdOps {
  using F = typename S::F;
  static constexpr int kLanes = S::kLanes;

  // exp(x) to about 1 ulp of float32 for x in [-87, 88], clamped outside: range reduction by
  // ln 2 in two parts, then a Taylor polynomial of degree 7 on |r| <= ln(2)/2. NaN stays NaN, since
  // Min and Max give their second operand then.
  static F Exp(F x) {
    x = S::Max(S::Set(-87.0f), S::Min(S::Set(88.0f), x));
    const F n = S::Round(S::Mul(x, S::Set(1.44269504f)));
    F r = S::Fma(n, S::Set(-0.693359375f), x);
    r = S::Fma(n, S::Set(2.12194440e-4f), r);
    F p = S::Set(1.0f / 5040.0f);
    p = S::Fma(p, r, S::Set(1.0f / 720.0f));
    p = S::Fma(p, r, S::Set(1.0f / 120.0f));
    p = S::Fma(p, r, S::Set(1.0f / 24.0f));
    p = S::Fma(p, r, S::Set(1.0f / 6.0f));
    p = S::Fma(p, r, S::Set(0.5f));
    p = S::Fma(p, r, S::Set(1.0f));
    p = S::Fma(p, r, S::Set(1.0f));
    return S::Mul(p, S::Exp2Int(n));
  }

  static float SumOfSquares(const float* x, int n) {
    F a = S::Zero();
    F b = S::Zero();
    int i = 0;
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
      const F u = S::Load(x + i);
      const F v = S::Load(x + i + kLanes);
      a = S::Fma(u, u, a);
      b = S::Fma(v, v, b);
    }
    for (; i < n; i += kLanes) {
      const F u = S::LoadN(x + i, n - i);
      a = S::Fma(u, u, a);
    }
    return S::ReduceAdd(S::Add(a, b));
  }

  static void ToHalf(const float* v, uint16_t* out) {
    for (int i = 0; i < kPanelRows; i += kLanes) S::StoreHalf(out + i, S::Load(v + i));
  }

  static void Swiglu(const float* gate, const float* up, float* out) {
    for (int i = 0; i < kPanelRows; i += kLanes) {
      const F g = S::Load(gate + i);
      const F s = S::Div(g, S::Add(S::Set(1.0f), Exp(S::Sub(S::Zero(), g))));
      S::Store(out + i, S::Mul(s, S::Load(up + i)));
    }
  }

  // Float weights: panel [inputs][32], kVecs registers of rows, U slots of activations at once.
  template <WeightKind kKind, int U>
  static void MatmulFloatRows(const PackedMatrix& w, int panel, const Activations& a, int slot,
                              float* tile) {
    constexpr int kVecs = kPanelRows / kLanes;
    constexpr size_t kBytes = kKind == WeightKind::kF32 ? 4 : 2;
    const uint8_t* data = w.Panel(panel);
    const float* x = a.f32 + static_cast<size_t>(slot) * static_cast<size_t>(a.inputs);
    F sum[U][kVecs];
    for (int u = 0; u < U; ++u) {
      for (int v = 0; v < kVecs; ++v) sum[u][v] = S::Zero();
    }
    for (int k = 0; k < w.inputs; ++k, data += kPanelRows * kBytes) {
      F weight[kVecs];
      for (int v = 0; v < kVecs; ++v) {
        if constexpr (kKind == WeightKind::kF32) {
          weight[v] = S::Load(reinterpret_cast<const float*>(data) + v * kLanes);
        } else if constexpr (kKind == WeightKind::kF16) {
          weight[v] = S::LoadHalf(reinterpret_cast<const uint16_t*>(data) + v * kLanes);
        } else {
          weight[v] = S::LoadBf16(reinterpret_cast<const uint16_t*>(data) + v * kLanes);
        }
      }
      for (int u = 0; u < U; ++u) {
        const F value = S::Set(
            x[static_cast<size_t>(u) * static_cast<size_t>(a.inputs) + static_cast<size_t>(k)]);
        for (int v = 0; v < kVecs; ++v) sum[u][v] = S::Fma(weight[v], value, sum[u][v]);
      }
    }
    for (int u = 0; u < U; ++u) {
      for (int v = 0; v < kVecs; ++v) S::Store(tile + u * kPanelRows + v * kLanes, sum[u][v]);
    }
  }

  template <WeightKind kKind>
  static void MatmulFloatKind(const PackedMatrix& w, int panel, const Activations& a, int slot,
                              int n, float* tile) {
    int i = 0;
    for (; i + S::kFloatRows <= n; i += S::kFloatRows) {
      MatmulFloatRows<kKind, S::kFloatRows>(w, panel, a, slot + i, tile + i * kPanelRows);
    }
    for (; i < n; ++i) MatmulFloatRows<kKind, 1>(w, panel, a, slot + i, tile + i * kPanelRows);
  }

  static void MatmulFloat(const PackedMatrix& w, int panel, const Activations& a, int slot, int n,
                          float* tile) {
    switch (w.format.kind) {
      case WeightKind::kF32:
        return MatmulFloatKind<WeightKind::kF32>(w, panel, a, slot, n, tile);
      case WeightKind::kF16:
        return MatmulFloatKind<WeightKind::kF16>(w, panel, a, slot, n, tile);
      case WeightKind::kBF16:
        return MatmulFloatKind<WeightKind::kBF16>(w, panel, a, slot, n, tile);
      case WeightKind::kQuantised:
        return;
    }
  }

  static void Reach(const float* values, const float* norms, float spread, int count, float* best,
                    float* upper) {
    F largest = S::Set(-INFINITY);
    F furthest = S::Set(-INFINITY);
    for (int i = 0; i < count; i += kLanes) {
      const F v = S::Load(values + i);
      const F end = S::Fma(S::Load(norms + i), S::Set(spread), v);
      largest = S::Max(largest, S::KeepFirst(v, count - i, -INFINITY));
      furthest = S::Max(furthest, S::KeepFirst(end, count - i, -INFINITY));
    }
    *best = S::ReduceMax(largest);
    *upper = S::ReduceMax(furthest);
  }

  static LogitPartial Summarise(const float* logits, int first, int count) {
    const float* x = logits + first;
    LogitPartial s;
    F largest = S::Set(-INFINITY);
    F odd = S::Zero();  // 0 * x is 0 for every finite x, NaN for the others
    for (int i = 0; i < count; i += kLanes) {
      const F v = S::KeepFirst(S::LoadN(x + i, count - i), count - i, -INFINITY);
      largest = S::Max(largest, v);
      odd = S::Fma(S::LoadN(x + i, count - i), S::Zero(), odd);
    }
    s.max = S::ReduceMax(largest);
    s.finite = S::ReduceAdd(odd) == 0.0f;
    s.argmax = first;
    if (s.finite) {
      while (logits[s.argmax] != s.max) ++s.argmax;
    }
    const int skip = s.argmax - first;
    F second = S::Set(-INFINITY);
    F sum = S::Zero();
    F sum_x = S::Zero();
    const F shift = S::Set(s.max);
    for (int i = 0; i < count; i += kLanes) {
      F v = S::LoadN(x + i, count - i);
      const F t = S::Sub(v, shift);
      const F e = S::KeepFirst(Exp(t), count - i, 0.0f);
      sum = S::Add(sum, e);
      sum_x = S::Fma(e, S::Max(t, S::Set(-87.0f)), sum_x);
      v = S::KeepFirst(v, count - i, -INFINITY);
      if (skip >= i && skip < i + kLanes) v = S::Without(v, skip - i);
      second = S::Max(second, v);
    }
    s.second = S::ReduceMax(second);
    s.sum_exp = S::ReduceAdd(sum);
    s.sum_exp_x = S::ReduceAdd(sum_x);
    return s;
  }
};

}  // namespace
}  // namespace cogumi
