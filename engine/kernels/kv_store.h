// Writing keys and values into pages: plain loops, the same for every tier. P gives HalfValue and
// HalfOf, the conversions between float32 and the bits of a float16.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "engine/kernels/ops.h"

namespace cogumi {
namespace {

// v = H v with the orthonormal Hadamard matrix of a power of two; H H = 1.
inline void Hadamard(float* v, int n) {
  int step = 1;
  if (n >= 8) {  // strides below a register's width by shuffles
    typedef float Eight __attribute__((vector_size(32)));
    const Eight one = {1, -1, 1, -1, 1, -1, 1, -1};
    const Eight two = {1, 1, -1, -1, 1, 1, -1, -1};
    const Eight four = {1, 1, 1, 1, -1, -1, -1, -1};
    for (int i = 0; i < n; i += 8) {
      Eight x;
      std::memcpy(&x, v + i, sizeof(x));
      x = x * one + __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
      x = x * two + __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
      x = x * four + __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
      std::memcpy(v + i, &x, sizeof(x));
    }
    step = 8;
  }
  for (; step < n; step *= 2) {
    for (int i = 0; i < n; i += 2 * step) {
      for (int j = i; j < i + step; ++j) {
        const float a = v[j];
        const float b = v[j + step];
        v[j] = a + b;
        v[j + step] = a - b;
      }
    }
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(n));
  for (int i = 0; i < n; ++i) v[i] *= scale;
}

template <class P>
struct KvStore {
  // Item i / kv_heads, KV head i % kv_heads.
  static void Store(const StoreKvArgs& a, int begin, int end) {
    for (int i = begin; i < end; ++i) {
      const StoreKvItem& item = a.items[i / a.kv.kv_heads];
      const int head = i % a.kv.kv_heads;
      std::byte* wide = item.page.wide + a.kv.WideOffset(head);
      if (a.kv.NeedsStore()) {
        for (int r = 0; r < item.rows; ++r) {
          const float* row = a.rows + static_cast<size_t>(item.first_row + r) *
                                          static_cast<size_t>(2 * a.kv.kv_heads) * a.kv.Dim();
          StoreRow(a.kv, row + static_cast<size_t>(head) * a.kv.Dim(),
                   row + static_cast<size_t>(a.kv.kv_heads + head) * a.kv.Dim(),
                   item.first_slot + r, wide);
        }
      }
      if (item.make_narrow) MakeNarrow(a.kv, wide, item.page.narrow + a.kv.NarrowOffset(head));
    }
  }

 private:
  static void StoreRow(const KvLayout& kv, const float* k, const float* v, int slot,
                       std::byte* wide) {
    float turned_k[kMaxHeadDim];
    float turned_v[kMaxHeadDim];
    if (kv.rotated_k) {
      std::memcpy(turned_k, k, kv.Dim() * sizeof(float));
      Hadamard(turned_k, kv.head_dim);
      k = turned_k;
    }
    if (kv.rotated_v) {
      std::memcpy(turned_v, v, kv.Dim() * sizeof(float));
      Hadamard(turned_v, kv.head_dim);
      v = turned_v;
    }
    StoreVector(kv, k, wide, slot, 64, wide + kv.WideScales(), slot);
    StoreVector(kv, v, wide + kv.WideV(), slot * kv.head_dim, 1,
                wide + kv.WideScales() + 64 * sizeof(float), slot);
  }

  // v[i] to element start + i * step.
  static void StoreVector(const KvLayout& kv, const float* v, std::byte* base, int start, int step,
                          std::byte* scales, int slot) {
    const int n = kv.head_dim;
    if (kv.wide == KvWide::kF32) {
      float* out = reinterpret_cast<float*>(base) + start;
      for (int i = 0; i < n; ++i) out[i * step] = v[i];
    } else if (kv.wide == KvWide::kF16) {
      uint16_t* out = reinterpret_cast<uint16_t*>(base) + start;
      for (int i = 0; i < n; ++i) out[i * step] = P::HalfOf(v[i]);
    } else {
      float largest = 0;
      float odd = 0;  // 0 * x is 0 for every finite x, NaN for the others
      for (int i = 0; i < n; ++i) {
        const float x = std::fabs(v[i]);
        largest = x > largest ? x : largest;
        odd += 0.0f * x;
      }
      int8_t* out = reinterpret_cast<int8_t*>(base) + start;
      if (odd != 0.0f) {  // stays visible
        reinterpret_cast<float*>(scales)[slot] = NAN;
        for (int i = 0; i < n; ++i) out[i * step] = 0;
        return;
      }
      const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;  // no overflow
      reinterpret_cast<float*>(scales)[slot] = largest / 127.0f;
      for (int i = 0; i < n; ++i) {
        out[i * step] = static_cast<int8_t>(std::nearbyint(v[i] * inverse));
      }
    }
  }

  // A full page, from what its wide block holds.
  static void MakeNarrow(const KvLayout& kv, const std::byte* wide, std::byte* narrow) {
    const size_t dim = kv.Dim();
    const float* k_scales = reinterpret_cast<const float*>(wide + kv.WideScales());
    const float* v_scales = k_scales + 64;
    uint16_t* parameters = reinterpret_cast<uint16_t*>(narrow + kv.NarrowParameters());
    uint8_t* k_codes = reinterpret_cast<uint8_t*>(narrow);
    const bool k8 = kv.narrow == KvNarrow::kK8V4;
    if (!k8) std::memset(k_codes, 0, kv.NarrowV());
    float keys[kMaxHeadDim * 64];
    for (size_t i = 0; i < dim * 64; ++i) {
      keys[i] = Value(kv.wide, wide, i);
      if (kv.wide == KvWide::kInt8) keys[i] *= k_scales[i % 64];
    }
    if (kv.rotated_k) TurnColumns(keys, dim);
    for (size_t d = 0; d < dim; ++d) {
      uint8_t codes[64];
      Quantise(keys + d * 64, 64, k8 ? 255.0f : 15.0f, codes, parameters + d, parameters + dim + d);
      if (k8) {
        std::memcpy(k_codes + d * 64, codes, 64);
      } else {
        PutRow(k_codes, d, 0, 1, codes, 64);
      }
    }
    uint8_t* v_codes = reinterpret_cast<uint8_t*>(narrow + kv.NarrowV());
    uint16_t* v_parameters = parameters + 2 * dim;
    const size_t groups = kv.Groups();
    std::memset(v_codes, 0, 32 * 64 * groups);
    for (size_t i = 0; i < 64; ++i) {
      for (size_t g = 0; g < groups; ++g) {
        const size_t n = dim - 64 * g < 64 ? dim - 64 * g : 64;
        float x[64] = {};
        for (size_t d = 0; d < n; ++d) {
          x[d] = Value(kv.wide, wide + kv.WideV(), i * dim + 64 * g + d);
          if (kv.wide == KvWide::kInt8) x[d] *= v_scales[i];
        }
        uint8_t codes[64];
        Quantise(x, n, 15.0f, codes, v_parameters + g * 64 + i,
                 v_parameters + (groups + g) * 64 + i);
        PutRow(v_codes, i, g, groups, codes, n);
      }
    }
  }

  // The Hadamard matrix times each column of [n][64].
  static void TurnColumns(float* x, size_t n) {
    for (size_t step = 64; step < n * 64; step *= 2) {
      for (size_t i = 0; i < n * 64; i += 2 * step) {
        for (size_t j = i; j < i + step; ++j) {
          const float a = x[j];
          const float b = x[j + step];
          x[j] = a + b;
          x[j + step] = a - b;
        }
      }
    }
    const float scale = 1.0f / std::sqrt(static_cast<float>(n));
    for (size_t i = 0; i < n * 64; ++i) x[i] *= scale;
  }

  static float Value(KvWide wide, const std::byte* base, size_t index) {
    if (wide == KvWide::kF32) return reinterpret_cast<const float*>(base)[index];
    if (wide == KvWide::kF16) return P::HalfValue(reinterpret_cast<const uint16_t*>(base)[index]);
    return static_cast<float>(reinterpret_cast<const int8_t*>(base)[index]);
  }

  // The codes fit the parameters as they are stored, after their rounding.
  static void Quantise(const float* x, size_t n, float top, uint8_t* codes, uint16_t* scale_bits,
                       uint16_t* minimum_bits) {
    float low = x[0];
    float high = x[0];
    float odd = 0;
    for (size_t i = 0; i < n; ++i) {
      low = x[i] < low ? x[i] : low;
      high = x[i] > high ? x[i] : high;
      odd += 0.0f * x[i];
    }
    if (odd != 0.0f) {
      *scale_bits = *minimum_bits = P::HalfOf(NAN);
      std::memset(codes, 0, n);
      return;
    }
    *minimum_bits = P::HalfOf(low);
    const float minimum = P::HalfValue(*minimum_bits);
    *scale_bits = P::HalfOf((high - minimum) / top);
    const float scale = P::HalfValue(*scale_bits);
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    for (size_t i = 0; i < n; ++i) {
      const float code = std::nearbyint((x[i] - minimum) * inverse);
      codes[i] = static_cast<uint8_t>(code < 0 ? 0.0f : code > top ? top : code);
    }
  }

  static void PutRow(uint8_t* base, size_t row, size_t unit, size_t units, const uint8_t* codes,
                     size_t n) {
    for (size_t i = 0; i < n; ++i) {
      const NibblePlace at = NibbleAt(row, unit * 64 + i, units);
      base[at.byte] = static_cast<uint8_t>(base[at.byte] | codes[i] << at.shift);
    }
  }
};

}  // namespace
}  // namespace cogumi
