// Sixteen floats and what the kernels do with them (AVX-512 F, BW, VL, DQ): the vector type of
// simd_ops.h, attention_simd.h and lora_simd.h.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>

namespace cogumi {
namespace {

struct Avx512 {
  using F = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kFloatRows = 4;
  static constexpr int kAttentionVecs = 4;

  static __mmask16 First(int n) {
    return n >= 16  ? static_cast<__mmask16>(0xFFFF)
           : n <= 0 ? static_cast<__mmask16>(0)
                    : static_cast<__mmask16>((1u << n) - 1);
  }
  static F Zero() { return _mm512_setzero_ps(); }
  static F Set(float x) { return _mm512_set1_ps(x); }
  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static F LoadN(const float* p, int n) { return _mm512_maskz_loadu_ps(First(n), p); }
  static void Store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F LoadHalf(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F LoadBf16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
  }
  static void StoreHalf(uint16_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static float HalfValue(uint16_t h) { return _cvtsh_ss(h); }
  static uint16_t HalfOf(float x) {
    return static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static F LoadInt8(const int8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static F LoadUint8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  // Columns [column, column + 16) of a row of a unit of kv_layout.h. The permutation looks at the
  // low four bits of its indices only: a table of the sixteen codes as floats.
  template <int kRow>
  static F Nibbles(const uint8_t* unit, int column) {
    const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i x = _mm512_loadu_si512(unit);
    return _mm512_permutexvar_ps(
        _mm512_srli_epi32(x, static_cast<unsigned>(4 * (column / 16 + 4 * kRow))), codes);
  }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }
  static F Round(F a) { return _mm512_roundscale_ps(a, 0); }
  static F Exp2Int(F n) { return _mm512_scalef_ps(_mm512_set1_ps(1.0f), n); }
  static F KeepFirst(F v, int n, float other) {
    return _mm512_mask_blend_ps(First(n), _mm512_set1_ps(other), v);
  }
  static F Without(F v, int lane) {
    return _mm512_mask_blend_ps(static_cast<__mmask16>(1u << lane), v, _mm512_set1_ps(-INFINITY));
  }
  static float ReduceAdd(F v) { return _mm512_reduce_add_ps(v); }
  static float ReduceMax(F v) { return _mm512_reduce_max_ps(v); }
};

}  // namespace
}  // namespace cogumi
