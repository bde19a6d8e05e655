// The primitives of fused_ops.h in AVX-512, but for the products of quantised matrices:
// Product<Format, kInt16>::Run(w, panel, a, slot, n, tile) computes those of n <= 64 slots, all of
// 16 or all of 8 bits.
#pragma once

#include "engine/kernels/attention_simd.h"
#include "engine/kernels/avx512.h"
#include "engine/kernels/avx512_matmul.h"
#include "engine/kernels/fused_ops.h"
#include "engine/kernels/lora_simd.h"
#include "engine/kernels/simd_ops.h"

namespace cogumi {
namespace {

template <template <class Fmt, bool kInt16> class Product>
struct Avx512Ops : SimdOps<Avx512>, LoraSimd<Avx512> {
  static constexpr VocabularyOps kVocabulary = {BlockMaximaAvx512, SoftmaxWeightsAvx512};
  using Store = KvStore<Avx512>;
  using Attend = Attention<SimdAttention<Avx512>>;

  template <class Fmt>
  static void RunMatmul(const PackedMatrix& w, int panel, const Activations& a, int slot, int n,
                        float* tile) {
    if (a.Wide(slot)) {
      Product<Fmt, true>::Run(w, panel, a, slot, n, tile);
    } else {
      Product<Fmt, false>::Run(w, panel, a, slot, n, tile);
    }
  }

  static void MatmulTile(const PackedMatrix& w, int panel, const Activations& a, int slot, int n,
                         float* tile) {
    const WeightFormat& f = w.format;
    if (f.kind != WeightKind::kQuantised) return MatmulFloat(w, panel, a, slot, n, tile);
    if (f.bits == 4) {
      if (!f.has_minimum) return RunMatmul<Format<4, false, false, 32>>(w, panel, a, slot, n, tile);
      if (f.f32_scales) return RunMatmul<Format<4, true, true, 32>>(w, panel, a, slot, n, tile);
      return RunMatmul<Format<4, true, false, 32>>(w, panel, a, slot, n, tile);
    }
    if (f.split) return RunMatmul<SplitFormat>(w, panel, a, slot, n, tile);
    if (f.group == 16) return RunMatmul<Format<8, false, true, 16>>(w, panel, a, slot, n, tile);
    if (!f.has_minimum) return RunMatmul<Format<8, false, false, 32>>(w, panel, a, slot, n, tile);
    if (f.f32_scales) return RunMatmul<Format<8, true, true, 32>>(w, panel, a, slot, n, tile);
    return RunMatmul<Format<8, true, false, 32>>(w, panel, a, slot, n, tile);
  }

  static void ScanTile(const PackedMatrix& w, int panel, const Activations& a, int slot, int n,
                       float* tile) {
    RunMatmul<CoarseFormat>(w, panel, a, slot, n, tile);
  }

  static void StoreBlock(Activations& a, int block, int slot, const float* v, int n) {
    __m512 x = Avx512::LoadN(v, n);
    __m512 y = Avx512::LoadN(v + 16, n - 16);
    if (a.want_f32) {
      float* out =
          a.f32 + static_cast<size_t>(slot) * static_cast<size_t>(a.inputs) + block * kBlockInputs;
      _mm512_mask_storeu_ps(out, Avx512::First(n), x);
      _mm512_mask_storeu_ps(out + 16, Avx512::First(n - 16), y);
    }
    if (!a.want_quantised) return;
    const bool wide = a.Wide(slot);
    const BlockScale scale = ScaleOfBlock(
        wide, _mm512_reduce_max_epu32(_mm512_max_epu32(_mm512_castps_si512(_mm512_abs_ps(x)),
                                                       _mm512_castps_si512(_mm512_abs_ps(y)))));
    if (!scale.finite) [[unlikely]] {
      x = _mm512_setzero_ps();
      y = _mm512_setzero_ps();
    }
    const __m512 inverse = _mm512_set1_ps(scale.inverse);
    const __m512i cx = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
    const __m512i cy = _mm512_cvtps_epi32(_mm512_mul_ps(y, inverse));
    int8_t* codes = a.Codes(block, slot);
    const auto store = [codes](int at, __m512i c) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + at), _mm512_cvtepi32_epi8(c));
    };
    if (wide) {
      const __m512i round = _mm512_set1_epi32(128);
      store(0, _mm512_srai_epi32(_mm512_add_epi32(cx, round), 8));
      store(16, _mm512_srai_epi32(_mm512_add_epi32(cy, round), 8));
      store(32, cx);
      store(48, cy);
    } else {
      store(0, cx);
      store(16, cy);
    }
    const int half = _mm512_reduce_add_epi32(cx);
    const int sum = half + _mm512_reduce_add_epi32(cy);
    const size_t at = a.At(block, slot);
    a.scale[at] = scale.scale;
    a.scaled_sum[at] = a.scale[at] * static_cast<float>(sum);
    a.sum[at] = sum;
    a.half_sum[at] = half;
  }
};

}  // namespace
}  // namespace cogumi
