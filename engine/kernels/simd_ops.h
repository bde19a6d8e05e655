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

  template <bool kF32>
  static F LoadKv(const std::byte* base, int index) {
    if constexpr (kF32) {
      return S::Load(reinterpret_cast<const float*>(base) + index);
    } else {
      return S::LoadHalf(reinterpret_cast<const uint16_t*>(base) + index);
    }
  }

  // Up to kMaxHeadDim dimensions: config.cc refuses more.
  static constexpr int kMaxHeadDim = 512;

  template <bool kF32, int N>
  static void AttendN(const PagedAttentionArgs& a, const QueryVector* vectors) {
    constexpr int kVecs = S::kAttentionVecs;
    const int head_dim = a.kv.head_dim;
    const size_t head = 2 * static_cast<size_t>(vectors[0].head / (a.heads / a.kv.kv_heads));
    const float* q[N];
    int position[N];
    int last = 0;
    for (int v = 0; v < N; ++v) {
      q[v] = a.q + static_cast<size_t>(vectors[v].row) * static_cast<size_t>(a.heads * head_dim) +
             static_cast<size_t>(vectors[v].head * head_dim);
      position[v] = a.context[vectors[v].row].position;
      last = position[v] > last ? position[v] : last;
    }
    std::byte* const* pages = a.context[vectors[0].row].pages;
    alignas(64) float p[N][kAttentionChunk];
    alignas(64) float out[N][kMaxHeadDim];
    float running_max[N];
    float running_sum[N];
    for (int v = 0; v < N; ++v) {
      running_max[v] = -INFINITY;
      running_sum[v] = 0;
      std::memset(out[v], 0, static_cast<size_t>(head_dim) * sizeof(float));
    }
    for (int k0 = 0; k0 <= last; k0 += kAttentionChunk) {
      const int n = last + 1 - k0 < kAttentionChunk ? last + 1 - k0 : kAttentionChunk;
      for (int j = 0; j < n; j += kVecs * kLanes) {  // divides 64: never leaves the page
        const std::byte* keys = pages[(k0 + j) / 64] + a.kv.layer_offset + head * a.kv.head_bytes;
        F score[N][kVecs];
        for (int v = 0; v < N; ++v) {
          for (int i = 0; i < kVecs; ++i) score[v][i] = S::Zero();
        }
        for (int d = 0; d < head_dim; ++d) {
          F key[kVecs];
          for (int i = 0; i < kVecs; ++i) {
            key[i] = LoadKv<kF32>(keys, d * 64 + j % 64 + i * kLanes);
          }
          for (int v = 0; v < N; ++v) {
            const F value = S::Set(q[v][d]);
            for (int i = 0; i < kVecs; ++i) score[v][i] = S::Fma(key[i], value, score[v][i]);
          }
        }
        for (int v = 0; v < N; ++v) {
          for (int i = 0; i < kVecs; ++i) S::Store(p[v] + j + i * kLanes, score[v][i]);
        }
      }
      float keep[N];
      float add[N];
      for (int v = 0; v < N; ++v) {
        int visible = position[v] + 1 - k0;
        visible = visible < 0 ? 0 : visible > n ? n : visible;
        F largest = S::Set(-INFINITY);
        for (int k = 0; k < visible; k += kLanes) {
          largest = S::Max(largest, S::KeepFirst(S::Load(p[v] + k), visible - k, -INFINITY));
        }
        const float chunk_max = visible > 0 ? S::ReduceMax(largest) : 0.0f;
        const F shift = S::Set(chunk_max);
        F sum = S::Zero();
        for (int k = 0; k < n; k += kLanes) {
          const F e = S::KeepFirst(Exp(S::Sub(S::Load(p[v] + k), shift)), visible - k, 0.0f);
          S::Store(p[v] + k, e);
          sum = S::Add(sum, e);
        }
        if (visible == 0) {
          keep[v] = 1.0f;
          add[v] = 0.0f;
          continue;
        }
        const float next_max = running_max[v] > chunk_max ? running_max[v] : chunk_max;
        keep[v] = std::exp(running_max[v] - next_max);
        add[v] = std::exp(chunk_max - next_max);
        running_sum[v] = running_sum[v] * keep[v] + S::ReduceAdd(sum) * add[v];
        running_max[v] = next_max;
      }
      for (int d = 0; d < head_dim; d += kVecs * kLanes) {
        const int width = head_dim - d;
        if (width >= kVecs * kLanes) {
          F part[N][kVecs];
          for (int v = 0; v < N; ++v) {
            for (int i = 0; i < kVecs; ++i) part[v][i] = S::Zero();
          }
          for (int k = 0; k < n; ++k) {
            const std::byte* values =
                pages[(k0 + k) / 64] + a.kv.layer_offset + (head + 1) * a.kv.head_bytes;
            F value[kVecs];
            for (int i = 0; i < kVecs; ++i) {
              value[i] = LoadKv<kF32>(values, (k % 64) * head_dim + d + i * kLanes);
            }
            for (int v = 0; v < N; ++v) {
              const F weight = S::Set(p[v][k]);
              for (int i = 0; i < kVecs; ++i) part[v][i] = S::Fma(value[i], weight, part[v][i]);
            }
          }
          for (int v = 0; v < N; ++v) {
            for (int i = 0; i < kVecs; ++i) {
              float* o = out[v] + d + i * kLanes;
              S::Store(o, S::Fma(part[v][i], S::Set(add[v]), S::Mul(S::Load(o), S::Set(keep[v]))));
            }
          }
        } else {
          AttendTail<kF32, N>(a, pages, head, k0, n, d, p, keep, add, out);
        }
      }
    }
    for (int v = 0; v < N; ++v) {
      float* o = a.out +
                 static_cast<size_t>(vectors[v].row) * static_cast<size_t>(a.heads * head_dim) +
                 static_cast<size_t>(vectors[v].head * head_dim);
      const float inverse = 1.0f / running_sum[v];
      for (int d = 0; d < head_dim; ++d) o[d] = out[v][d] * inverse;
    }
  }

  // The last dimensions of a head that fill no whole registers: plain loops.
  template <bool kF32, int N>
  static void AttendTail(const PagedAttentionArgs& a, std::byte* const* pages, size_t head, int k0,
                         int n, int first, const float (*p)[kAttentionChunk], const float* keep,
                         const float* add, float (*out)[kMaxHeadDim]) {
    const int head_dim = a.kv.head_dim;
    for (int d = first; d < head_dim; ++d) {
      float part[N] = {};
      for (int k = 0; k < n; ++k) {
        const std::byte* values =
            pages[(k0 + k) / 64] + a.kv.layer_offset + (head + 1) * a.kv.head_bytes;
        const int index = (k % 64) * head_dim + d;
        float value;
        if constexpr (kF32) {
          value = reinterpret_cast<const float*>(values)[index];
        } else {
          value = S::HalfValue(reinterpret_cast<const uint16_t*>(values)[index]);
        }
        for (int v = 0; v < N; ++v) part[v] += value * p[v][k];
      }
      for (int v = 0; v < N; ++v) out[v][d] = part[v] * add[v] + out[v][d] * keep[v];
    }
  }

  static constexpr int kAttendVectors = 4;

  static void Attend(const PagedAttentionArgs& a, const QueryVector* vectors, int count) {
    static_assert(kAttendVectors == 4);
    if (a.kv.f32) {
      switch (count) {
        case 1:
          return AttendN<true, 1>(a, vectors);
        case 2:
          return AttendN<true, 2>(a, vectors);
        case 3:
          return AttendN<true, 3>(a, vectors);
        default:
          return AttendN<true, 4>(a, vectors);
      }
    }
    switch (count) {
      case 1:
        return AttendN<false, 1>(a, vectors);
      case 2:
        return AttendN<false, 2>(a, vectors);
      case 3:
        return AttendN<false, 3>(a, vectors);
      default:
        return AttendN<false, 4>(a, vectors);
    }
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
