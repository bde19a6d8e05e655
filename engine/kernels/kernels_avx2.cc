// AVX2 with FMA and F16C (Haswell, Zen and later): vpmaddubsw on 4-bit halves of the codes.
//
// A code of up to 15 times an activation byte, two of them, over the 8 tiles of a record is at most
// 8 * 2 * 15 * 128 = 30720 and fits the int16 lanes of vpmaddubsw without saturation; 8-bit codes
// are split into two such halves.
#include <immintrin.h>

#include "engine/kernels/attention_simd.h"
#include "engine/kernels/fused_ops.h"
#include "engine/kernels/lora_simd.h"
#include "engine/kernels/registry.h"
#include "engine/kernels/simd_ops.h"

namespace cogumi {
namespace {

struct Avx2 {
  using F = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kFloatRows = 2;
  static constexpr int kAttentionVecs = 2;

  static __m256i First(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static F Zero() { return _mm256_setzero_ps(); }
  static F Set(float x) { return _mm256_set1_ps(x); }
  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static F LoadN(const float* p, int n) {
    return n >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, First(n));
  }
  static void Store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F LoadHalf(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static F LoadBf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
  }
  static void StoreHalf(uint16_t* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static float HalfValue(uint16_t h) { return _cvtsh_ss(h); }
  static uint16_t HalfOf(float x) {
    return static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static F LoadInt8(const int8_t* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static F LoadUint8(const uint8_t* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  // Columns [column, column + 8) of a row of a unit of kv_layout.h.
  template <int kRow>
  static F Nibbles(const uint8_t* unit, int column) {
    const __m256i x =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(unit + 4 * (column % 16)));
    const __m256i code = _mm256_srli_epi32(x, 4 * (column / 16 + 4 * kRow));
    return _mm256_cvtepi32_ps(_mm256_and_si256(code, _mm256_set1_epi32(15)));
  }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static F Min(F a, F b) { return _mm256_min_ps(a, b); }
  static F Round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F Exp2Int(F n) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
  }
  static F KeepFirst(F v, int n, float other) {
    return _mm256_blendv_ps(_mm256_set1_ps(other), v, _mm256_castsi256_ps(First(n)));
  }
  static F Without(F v, int lane) {
    const __m256i at =
        _mm256_cmpeq_epi32(_mm256_set1_epi32(lane), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_blendv_ps(v, _mm256_set1_ps(-INFINITY), _mm256_castsi256_ps(at));
  }
  static float ReduceAdd(F v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  static float ReduceMax(F v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }
};

inline __m256i Broadcast(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return _mm256_set1_epi32(four);
}

// Dot products of tiles [kFirst, kFirst + kTiles) with one activation plane: dot[v] are the sums of
// rows 8v..8v+7.
template <int kBits, int kFirst, int kTiles>
__attribute__((always_inline)) inline void Dot(const uint8_t* record, const int8_t* x,
                                               __m256i* dot) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i ones = _mm256_set1_epi16(1);
  const auto load = [](const uint8_t* p) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
  };
  if constexpr (kBits == 4) {
    __m256i sum[4];
    for (int v = 0; v < 4; ++v) sum[v] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int t = kFirst; t < kFirst + kTiles; ++t) {
      const __m256i b = Broadcast(x + 4 * t);
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const __m256i w = load(record + t * 64 + h * 32);
        sum[h] = _mm256_add_epi16(sum[h], _mm256_maddubs_epi16(_mm256_and_si256(w, nibble), b));
        sum[2 + h] = _mm256_add_epi16(
            sum[2 + h], _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(w, 4), nibble), b));
      }
    }
    for (int v = 0; v < 4; ++v) dot[v] = _mm256_madd_epi16(sum[v], ones);
  } else {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      __m256i low = _mm256_setzero_si256();
      __m256i high = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int t = kFirst; t < kFirst + kTiles; ++t) {
        const __m256i b = Broadcast(x + 4 * t);
        const __m256i w = load(record + (v / 2) * 512 + t * 64 + (v % 2) * 32);
        low = _mm256_add_epi16(low, _mm256_maddubs_epi16(_mm256_and_si256(w, nibble), b));
        high = _mm256_add_epi16(
            high, _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(w, 4), nibble), b));
      }
      dot[v] = _mm256_add_epi32(_mm256_madd_epi16(low, ones),
                                _mm256_slli_epi32(_mm256_madd_epi16(high, ones), 4));
    }
  }
}

template <int kBits, bool kMinimum, bool kF32Scales, int kGroup, bool kInt16>
struct Matmul {
  static constexpr size_t kTiles = kBits == 4 ? 512 : 1024;
  static constexpr size_t kScaleStep = kF32Scales ? 32 : 16;  // of 8 rows
  static constexpr int kGroups = 32 / kGroup;
  static constexpr size_t kScales = kGroups * 4 * kScaleStep;
  static constexpr size_t kRecord = kTiles + kScales * (kMinimum ? 2 : 1);
  static constexpr size_t kBytes = kInt16 ? 64 : 32;

  static __m256 Scale(const uint8_t* p) {
    if constexpr (kF32Scales) return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }

  template <int kGroupIndex>
  static __attribute__((always_inline)) inline void Step(const uint8_t* p, const int8_t* x,
                                                         const Activations& a, size_t at, int zero,
                                                         __m256* total) {
    constexpr int kFirst = kGroupIndex * kGroup / 4;
    __m256i dot[4];
    Dot<kBits, kFirst, kGroup / 4>(p, x, dot);
    if constexpr (kInt16) {
      __m256i fine[4];
      Dot<kBits, kFirst, kGroup / 4>(p, x + 32, fine);
      for (int v = 0; v < 4; ++v) {
        dot[v] = _mm256_add_epi32(_mm256_slli_epi32(dot[v], 8), fine[v]);
      }
    }
    int32_t sum = a.sum[at];
    if constexpr (kGroup == 16) sum = kGroupIndex == 0 ? a.half_sum[at] : sum - a.half_sum[at];
    const __m256 scale = _mm256_set1_ps(a.scale[at]);
    const __m256 sums = _mm256_set1_ps(a.scale[at] * static_cast<float>(sum));
    const uint8_t* s = p + kTiles + kGroupIndex * 4 * kScaleStep;
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      if constexpr (!kMinimum) dot[v] = _mm256_sub_epi32(dot[v], _mm256_set1_epi32(zero * sum));
      total[v] = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(dot[v]), scale),
                                 Scale(s + static_cast<size_t>(v) * kScaleStep), total[v]);
      if constexpr (kMinimum) {
        total[v] = _mm256_fmadd_ps(Scale(s + kScales + static_cast<size_t>(v) * kScaleStep), sums,
                                   total[v]);
      }
    }
  }

  static void Run(const PackedMatrix& w, int panel, const Activations& a, int slot, int n,
                  float* tile) {
    const uint8_t* data = w.Panel(panel);
    const int blocks = w.inputs / kBlockInputs;
    const int zero = w.format.zero;
    for (int c = 0; c < n; ++c) {
      const uint8_t* p = data;
      const int8_t* x = a.codes + a.CodeOffset(slot + c);
      size_t at = static_cast<size_t>(slot + c);
      __m256 total[4];
      for (int v = 0; v < 4; ++v) total[v] = _mm256_setzero_ps();
      for (int b = 0; b < blocks; ++b, p += kRecord, x += a.code_stride, at += a.slot_stride) {
        Step<0>(p, x, a, at, zero, total);
        if constexpr (kGroups == 2) Step<1>(p, x, a, at, zero, total);
      }
      for (int v = 0; v < 4; ++v) _mm256_store_ps(tile + c * 32 + v * 8, total[v]);
    }
  }
};

template <int kBits, bool kMinimum, bool kF32Scales, int kGroup>
void RunMatmul(const PackedMatrix& w, int panel, const Activations& a, int slot, int n,
               float* tile) {
  if (a.Wide(slot)) {
    Matmul<kBits, kMinimum, kF32Scales, kGroup, true>::Run(w, panel, a, slot, n, tile);
  } else {
    Matmul<kBits, kMinimum, kF32Scales, kGroup, false>::Run(w, panel, a, slot, n, tile);
  }
}

// The codes of a split matrix's record as those of an 8-bit one: eight tiles of rows 0-15, eight of
// rows 16-31, and scales.
struct SplitRecord {
  alignas(64) uint8_t bytes[1024 + 64];

  // Bytes of 32 bits that are set: `value`.
  static __m256i Bits(const uint8_t* p, char value) {
    int32_t bits;
    __builtin_memcpy(&bits, p, 4);
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2,
                                            2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i each = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ULL));
    const __m256i set =
        _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread), each);
    return _mm256_and_si256(_mm256_cmpeq_epi8(set, each), _mm256_set1_epi8(value));
  }

  // `second`: the fine record, or with kCoarse the masks.
  template <bool kCoarse>
  void Fill(const uint8_t* record, const uint8_t* second) {
    __builtin_memcpy(bytes + 1024, record + 512, 64);
    const __m256i upper = _mm256_set1_epi8(static_cast<char>(0xF0));
    for (int t = 0; t < 8; ++t) {
      for (int v = 0; v < 2; ++v) {
        const auto load = [at = 64 * t + 32 * v](const uint8_t* p) {
          return _mm256_load_si256(reinterpret_cast<const __m256i*>(p + at));
        };
        const __m256i x = load(record);
        __m256i low = _mm256_and_si256(_mm256_slli_epi16(x, 4), upper);
        __m256i high = _mm256_and_si256(x, upper);
        if constexpr (kCoarse) {
          const uint8_t* masks = second + 8 * t + 4 * v;
          low = _mm256_or_si256(low, Bits(masks, 8));
          high = _mm256_or_si256(high, Bits(masks + 64, 8));
        } else {
          const __m256i y = load(second);
          low = _mm256_or_si256(low, _mm256_andnot_si256(upper, y));
          high = _mm256_or_si256(high, _mm256_andnot_si256(upper, _mm256_srli_epi16(y, 4)));
        }
        _mm256_store_si256(reinterpret_cast<__m256i*>(bytes + 64 * t + 32 * v), low);
        _mm256_store_si256(reinterpret_cast<__m256i*>(bytes + 512 + 64 * t + 32 * v), high);
      }
    }
  }
};

// A split matrix, with kCoarse without its lower bits but with the record of the heavy inputs.
template <bool kCoarse, bool kInt16>
void RunSplit(const PackedMatrix& w, int panel, const Activations& a, int slot, int n,
              float* tile) {
  using Whole = Matmul<8, false, false, 32, kInt16>;
  SplitRecord record;
  static_assert(sizeof(record.bytes) == Whole::kRecord);
  __builtin_memset(tile, 0, static_cast<size_t>(n) * kPanelRows * sizeof(float));
  const int zero = kCoarse ? kCoarseZero : w.format.zero;
  const uint8_t* p = w.Panel(panel);
  const uint8_t* second = kCoarse ? w.Masks(panel) : w.Fine(panel);
  const size_t blocks = kCoarse ? w.CoarseBlocks() : w.Blocks();
  for (size_t b = 0; b < blocks; ++b) {
    record.Fill<kCoarse>(p, second);
    const int8_t* x = a.codes + a.CodeOffset(slot) + b * a.code_stride;
    for (int c = 0; c < n; ++c, x += Whole::kBytes) {
      __m256 total[4];
      for (int v = 0; v < 4; ++v) total[v] = _mm256_load_ps(tile + c * 32 + v * 8);
      Whole::template Step<0>(record.bytes, x, a,
                              b * a.slot_stride + static_cast<size_t>(slot + c), zero, total);
      for (int v = 0; v < 4; ++v) _mm256_store_ps(tile + c * 32 + v * 8, total[v]);
    }
    p += w.format.RecordBytes();
    second += kCoarse ? kMaskBytes : kFineBytes;
  }
}

template <bool kCoarse>
void RunSplit(const PackedMatrix& w, int panel, const Activations& a, int slot, int n,
              float* tile) {
  if (a.Wide(slot)) {
    RunSplit<kCoarse, true>(w, panel, a, slot, n, tile);
  } else {
    RunSplit<kCoarse, false>(w, panel, a, slot, n, tile);
  }
}

struct Avx2Tier : SimdOps<Avx2>, LoraSimd<Avx2> {
  static constexpr VocabularyOps kVocabulary = {BlockMaximaAvx2, SoftmaxWeightsAvx2};
  using Store = KvStore<Avx2>;
  using Attend = Attention<SimdAttention<Avx2>>;

  static void MatmulTile(const PackedMatrix& w, int panel, const Activations& a, int slot, int n,
                         float* tile) {
    const WeightFormat& f = w.format;
    if (f.kind != WeightKind::kQuantised) return MatmulFloat(w, panel, a, slot, n, tile);
    if (f.bits == 4) {
      if (!f.has_minimum) return RunMatmul<4, false, false, 32>(w, panel, a, slot, n, tile);
      if (f.f32_scales) return RunMatmul<4, true, true, 32>(w, panel, a, slot, n, tile);
      return RunMatmul<4, true, false, 32>(w, panel, a, slot, n, tile);
    }
    if (f.split) return RunSplit<false>(w, panel, a, slot, n, tile);
    if (f.group == 16) return RunMatmul<8, false, true, 16>(w, panel, a, slot, n, tile);
    if (!f.has_minimum) return RunMatmul<8, false, false, 32>(w, panel, a, slot, n, tile);
    if (f.f32_scales) return RunMatmul<8, true, true, 32>(w, panel, a, slot, n, tile);
    return RunMatmul<8, true, false, 32>(w, panel, a, slot, n, tile);
  }

  static void ScanTile(const PackedMatrix& w, int panel, const Activations& a, int slot, int n,
                       float* tile) {
    RunSplit<true>(w, panel, a, slot, n, tile);
  }

  // The largest of eight integers, none negative.
  static uint32_t LargestLane(__m256i v) {
    __m128i x = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0b01'00'11'10));
    x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0b10'11'00'01));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(x));
  }

  static void StoreBlock(Activations& a, int block, int slot, const float* v, int n) {
    if (a.want_f32) {
      std::memcpy(
          a.f32 + static_cast<size_t>(slot) * static_cast<size_t>(a.inputs) + block * kBlockInputs,
          v, static_cast<size_t>(n) * sizeof(float));
    }
    if (!a.want_quantised) return;
    __m256 x[4];
    __m256i largest = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) {
      x[i] = Avx2::LoadN(v + 8 * i, n - 8 * i);
      largest = _mm256_max_epi32(
          largest, _mm256_castps_si256(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x[i])));
    }
    const bool wide = a.Wide(slot);
    const BlockScale scale = ScaleOfBlock(wide, LargestLane(largest));
    if (!scale.finite) [[unlikely]] {
      for (__m256& values : x) values = _mm256_setzero_ps();
    }
    const __m256 inverse = _mm256_set1_ps(scale.inverse);
    alignas(32) int32_t codes[32];
    for (int i = 0; i < 4; ++i) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(codes + 8 * i),
                         _mm256_cvtps_epi32(_mm256_mul_ps(x[i], inverse)));
    }
    int8_t* out = a.Codes(block, slot);
    int32_t sum = 0;
    int32_t half = 0;
    for (int i = 0; i < 16; ++i) half += codes[i];
    for (int i = 16; i < 32; ++i) sum += codes[i];
    sum += half;
    for (int i = 0; i < 32; ++i) {
      out[i] = static_cast<int8_t>(wide ? (codes[i] + 128) >> 8 : codes[i]);
    }
    if (wide) {
      for (int i = 0; i < 32; ++i) out[32 + i] = static_cast<int8_t>(codes[i] & 255);
    }
    const size_t at = a.At(block, slot);
    a.scale[at] = scale.scale;
    a.scaled_sum[at] = a.scale[at] * static_cast<float>(sum);
    a.sum[at] = sum;
    a.half_sum[at] = half;
  }
};

constexpr KernelTable kTable = FusedOps<Avx2Tier>::Table("avx2");

}  // namespace

const KernelTable& Avx2Kernels() { return kTable; }

}  // namespace cogumi
