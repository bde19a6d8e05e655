// AVX-512 with VNNI (Ice Lake, Sapphire Rapids, Zen 4 and later): vpdpbusd on 64-byte tiles.
#include <immintrin.h>

#include "engine/kernels/attention_simd.h"
#include "engine/kernels/fused_ops.h"
#include "engine/kernels/lora_simd.h"
#include "engine/kernels/registry.h"
#include "engine/kernels/simd_ops.h"

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

// Software prefetch ahead in the weight stream when several rows share a record (batch 5:
// 6.05 -> 4.2 ms a step).
constexpr size_t kPrefetchBytes = 16384;

// The same for a row alone, 0: none. Intel's hardware prefetcher stops at every 4 KiB (one thread:
// 105 -> 140 tok/s, Sapphire Rapids); AMD's does better by itself (Zen 4: it costs 5-10 %).
size_t LonePrefetchBytes() {
  static const size_t bytes = __builtin_cpu_is("intel") ? 6144 : 0;
  return bytes;
}

// Walks a panel's records.
template <size_t kRecord>
struct RecordCursor {
  RecordCursor(const PackedMatrix& w, int panel) : p(w.Panel(panel)) {}
  void Next() { p += kRecord; }
  static void PrefetchSecond(size_t) {}
  const uint8_t* p;
};

// Walks a second stream beside it, of so many bytes a record.
template <size_t kRecord, size_t kSecond>
struct PairCursor : RecordCursor<kRecord> {
  PairCursor(const PackedMatrix& w, int panel, const uint8_t* stream)
      : RecordCursor<kRecord>(w, panel), second(stream) {}
  void Next() {
    RecordCursor<kRecord>::Next();
    second += kSecond;
  }
  __attribute__((always_inline)) void PrefetchSecond(size_t ahead) const {
#pragma GCC unroll 8
    for (size_t i = 0; i < kSecond; i += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(second + ahead + i), _MM_HINT_T1);
    }
  }
  const uint8_t* second;
};

template <int kBits, bool kHasMinimum, bool kF32Scales, int kInputs>
struct Format {
  static constexpr bool kMinimum = kHasMinimum;
  static constexpr bool kHighHoldsBoth = kBits == 4;
  static int Zero(const PackedMatrix& w) { return w.format.zero; }
  static constexpr int kGroup = kInputs;  // that share a scale
  static constexpr int kGroups = 32 / kGroup;
  static constexpr size_t kTiles = kBits == 4 ? 512 : 1024;
  static constexpr size_t kScaleStep = kF32Scales ? 64 : 32;  // of 16 rows
  static constexpr size_t kScales = kGroups * 2 * kScaleStep;
  static constexpr size_t kRecord = kTiles + kScales * (kMinimum ? 2 : 1);

  static __m512 Scale(const uint8_t* p) {
    if constexpr (kF32Scales) return _mm512_loadu_ps(p);
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }

  using Cursor = RecordCursor<kRecord>;

  // Scales in registers, codes where they are. Codes of 4 bits of rows 16-31 stay above those of
  // rows 0-15: their products are 16 times too large and contain the others', of which Step takes
  // care. That is one operation a tile instead of three.
  struct Record {
    const uint8_t* tiles;
    __m512 scale[kGroups][2];
    __m512 minimum[kGroups][2];

    __attribute__((always_inline)) explicit Record(const Cursor& cursor) : tiles(cursor.p) {
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          const uint8_t* s = tiles + kTiles + static_cast<size_t>(2 * g + h) * kScaleStep;
          scale[g][h] = Scale(s);
          if constexpr (kMinimum) minimum[g][h] = Scale(s + kScales);
          if (kHighHoldsBoth && h == 1) {
            scale[g][h] = _mm512_mul_ps(scale[g][h], _mm512_set1_ps(1.0f / 16));  // exact
          }
        }
      }
    }
    // Codes of rows 0-15 and 16-31.
    __attribute__((always_inline)) void Tile(int t, __m512i& low, __m512i& high) const {
      if constexpr (kBits == 4) {
        high = _mm512_load_si512(tiles + t * 64);
        low = _mm512_and_si512(high, _mm512_set1_epi8(15));
      } else {
        low = _mm512_load_si512(tiles + t * 64);
        high = _mm512_load_si512(tiles + 512 + t * 64);
      }
    }
  };
};

// What both ways to read a split matrix (packed_matrix.h) share.
struct SplitRecords {
  static constexpr bool kMinimum = false;
  static constexpr bool kHighHoldsBoth = false;
  static constexpr int kGroup = 32;
  static constexpr size_t kRecord = 576;

  struct Codes {
    __m512i low[8];
    __m512i high[8];
    __m512 scale[1][2];

    __attribute__((always_inline)) explicit Codes(const uint8_t* record) {
      for (int h = 0; h < 2; ++h) {
        scale[0][h] = _mm512_cvtph_ps(
            _mm256_load_si256(reinterpret_cast<const __m256i*>(record + 512 + 32 * h)));
      }
    }
    __attribute__((always_inline)) void Tile(int t, __m512i& l, __m512i& h) const {
      l = low[t];
      h = high[t];
    }
  };
};

struct SplitFormat : SplitRecords {
  static int Zero(const PackedMatrix& w) { return w.format.zero; }
  struct Cursor : PairCursor<kRecord, kFineBytes> {
    Cursor(const PackedMatrix& w, int panel) : PairCursor(w, panel, w.Fine(panel)) {}
  };

  struct Record : Codes {
    __attribute__((always_inline)) explicit Record(const Cursor& cursor) : Codes(cursor.p) {
      const __m512i upper = _mm512_set1_epi8(static_cast<char>(0xF0));
      constexpr int kSelect = 0xCA;  // where `upper` is set the second operand, else the third
#pragma GCC unroll 8
      for (int t = 0; t < 8; ++t) {
        const __m512i x = _mm512_load_si512(cursor.p + t * 64);
        const __m512i y = _mm512_load_si512(cursor.second + t * 64);
        low[t] = _mm512_ternarylogic_epi32(upper, _mm512_slli_epi16(x, 4), y, kSelect);
        high[t] = _mm512_ternarylogic_epi32(upper, x, _mm512_srli_epi16(y, 4), kSelect);
      }
    }
  };
};

// Without the lower bits.
struct CoarseFormat : SplitRecords {
  static int Zero(const PackedMatrix&) { return kCoarseZero; }
  struct Cursor : PairCursor<kRecord, kMaskBytes> {
    Cursor(const PackedMatrix& w, int panel) : PairCursor(w, panel, w.Masks(panel)) {}
  };

  struct Record : Codes {
    __attribute__((always_inline)) explicit Record(const Cursor& cursor) : Codes(cursor.p) {
      const __m512i upper = _mm512_set1_epi8(static_cast<char>(0xF0));
      const __m512i third = _mm512_set1_epi8(8);
#pragma GCC unroll 8
      for (int t = 0; t < 8; ++t) {
        const __m512i x = _mm512_load_si512(cursor.p + t * 64);
        const __m512i y = _mm512_and_si512(_mm512_slli_epi16(x, 4), upper);
        const __m512i z = _mm512_and_si512(x, upper);
        low[t] = _mm512_mask_add_epi8(y, Mask(cursor.second + 8 * t), y, third);
        high[t] = _mm512_mask_add_epi8(z, Mask(cursor.second + 64 + 8 * t), z, third);
      }
    }
    static __mmask64 Mask(const uint8_t* p) {
      uint64_t bits;
      __builtin_memcpy(&bits, p, 8);
      return bits;
    }
  };
};

__attribute__((always_inline)) inline __m512i Broadcast(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}

// U activation rows against one record; sums in `low` and `high` (rows 0-15 and 16-31).
template <class Fmt, bool kInt16, int U>
__attribute__((always_inline)) inline void Step(const typename Fmt::Record& w, const Activations& a,
                                                size_t code_at, size_t slot_at, int zero,
                                                __m512* low, __m512* high) {
  constexpr int kPlanes = kInt16 ? 2 : 1;
  constexpr bool kMinimum = Fmt::kMinimum;
  constexpr int kGroup = Fmt::kGroup;
  constexpr int kTiles = kGroup / 4;
#pragma GCC unroll 2
  for (int g = 0; g < 32 / kGroup; ++g) {
    const int8_t* x = a.codes + code_at + g * kGroup;
    // A chain of products for every plane, row and half: with the planes behind each other in one
    // chain, five rows wait for its latency (5 cycles a tile).
    __m512i p[U], q[U], fine_p[U], fine_q[U];
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) p[u] = q[u] = fine_p[u] = fine_q[u] = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int t = 0; t < kTiles; ++t) {
      __m512i codes_low, codes_high;
      w.Tile(g * kTiles + t, codes_low, codes_high);
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) {
        const __m512i v = Broadcast(x + (u * kPlanes * 32) + t * 4);
        p[u] = _mm512_dpbusd_epi32(p[u], codes_low, v);
        q[u] = _mm512_dpbusd_epi32(q[u], codes_high, v);
        if constexpr (kInt16) {
          const __m512i fine = Broadcast(x + (u * kPlanes + 1) * 32 + t * 4);
          fine_p[u] = _mm512_dpbusd_epi32(fine_p[u], codes_low, fine);
          fine_q[u] = _mm512_dpbusd_epi32(fine_q[u], codes_high, fine);
        }
      }
    }
    if constexpr (kInt16) {
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) {
        p[u] = _mm512_add_epi32(_mm512_slli_epi32(p[u], 8), fine_p[u]);
        q[u] = _mm512_add_epi32(_mm512_slli_epi32(q[u], 8), fine_q[u]);
      }
    }
    if constexpr (Fmt::kHighHoldsBoth) {
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) q[u] = _mm512_sub_epi32(q[u], p[u]);
    }
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      const size_t at = slot_at + static_cast<size_t>(u);
      int32_t sum = a.sum[at];
      if constexpr (kGroup == 16) sum = g == 0 ? a.half_sum[at] : sum - a.half_sum[at];
      if constexpr (!kMinimum) {
        const __m512i shift = _mm512_set1_epi32(zero * sum);
        p[u] = _mm512_sub_epi32(p[u], shift);
        q[u] = _mm512_sub_epi32(q[u],
                                Fmt::kHighHoldsBoth ? _mm512_set1_epi32(16 * zero * sum) : shift);
      }
      const __m512 scale = _mm512_set1_ps(a.scale[at]);
      low[u] =
          _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(p[u]), scale), w.scale[g][0], low[u]);
      high[u] =
          _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(q[u]), scale), w.scale[g][1], high[u]);
      if constexpr (kMinimum) {
        const __m512 total =
            _mm512_set1_ps(kGroup == 16 ? a.scale[at] * static_cast<float>(sum) : a.scaled_sum[at]);
        low[u] = _mm512_fmadd_ps(w.minimum[g][0], total, low[u]);
        high[u] = _mm512_fmadd_ps(w.minimum[g][1], total, high[u]);
      }
    }
  }
}

template <class Fmt, bool kInt16>
struct Matmul {
  static constexpr size_t kBytes = kInt16 ? 64 : 32;

  // A few rows: sums stay in registers.
  template <int U>
  static __attribute__((noinline)) void Few(const PackedMatrix& w, int panel, const Activations& a,
                                            int slot, float* tile) {
    typename Fmt::Cursor at(w, panel);
    const int blocks = w.inputs / kBlockInputs;
    const int zero = Fmt::Zero(w);
    const size_t ahead = U > 1 ? kPrefetchBytes : LonePrefetchBytes();
    __m512 low[U];
    __m512 high[U];
    for (int u = 0; u < U; ++u) low[u] = high[u] = _mm512_setzero_ps();
    size_t code_at = a.CodeOffset(slot);
    size_t slot_at = static_cast<size_t>(slot);
    for (int b = 0; b < blocks; ++b, at.Next()) {
      if (ahead != 0) {
#pragma GCC unroll 20
        for (size_t i = 0; i < Fmt::kRecord; i += 64) {
          _mm_prefetch(reinterpret_cast<const char*>(at.p + ahead + i), _MM_HINT_T1);
        }
        at.PrefetchSecond(ahead);
      }
      const typename Fmt::Record record(at);
      Step<Fmt, kInt16, U>(record, a, code_at, slot_at, zero, low, high);
      code_at += a.code_stride;
      slot_at += a.slot_stride;
    }
    for (int u = 0; u < U; ++u) {
      _mm512_store_ps(tile + u * 32, low[u]);
      _mm512_store_ps(tile + u * 32 + 16, high[u]);
    }
  }

  // Rows at once: chains of products fill the registers beside a record's.
  static constexpr int kMostTogether = kInt16 ? 5 : 8;

  // Nothing for more rows than go together.
  template <int U>
  static __attribute__((always_inline)) inline void StepInMemory(const typename Fmt::Record& record,
                                                                 const Activations& a,
                                                                 size_t code_at, size_t slot_at,
                                                                 int zero, float* tile) {
    if constexpr (U <= kMostTogether) {
      __m512 low[U];
      __m512 high[U];
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) {
        low[u] = _mm512_load_ps(tile + u * 32);
        high[u] = _mm512_load_ps(tile + u * 32 + 16);
      }
      Step<Fmt, kInt16, U>(record, a, code_at, slot_at, zero, low, high);
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) {
        _mm512_store_ps(tile + u * 32, low[u]);
        _mm512_store_ps(tile + u * 32 + 16, high[u]);
      }
    }
  }

  // Many rows: in groups of about one size, sums in L1.
  static __attribute__((noinline)) void Many(const PackedMatrix& w, int panel, const Activations& a,
                                             int slot, int n, float* tile) {
    typename Fmt::Cursor cursor(w, panel);
    const int blocks = w.inputs / kBlockInputs;
    const int zero = Fmt::Zero(w);
    __builtin_memset(tile, 0, static_cast<size_t>(n) * 128);
    const int groups = (n + kMostTogether - 1) / kMostTogether;
    const int least = n / groups;
    const int larger = n % groups;  // groups that have one row more
    const int lines = static_cast<int>(Fmt::kRecord / 64) / groups + 1;
    size_t code_at = a.CodeOffset(slot);
    size_t slot_at = static_cast<size_t>(slot);
    for (int b = 0; b < blocks; ++b, cursor.Next()) {
      const typename Fmt::Record record(cursor);
      const uint8_t* ahead = cursor.p + kPrefetchBytes;
      cursor.PrefetchSecond(kPrefetchBytes);
      const uint8_t* ahead_end = ahead + Fmt::kRecord;
      size_t code = code_at;
      size_t at = slot_at;
      float* out = tile;
      for (int g = 0; g < groups; ++g) {
        for (int i = 0; i < lines && ahead < ahead_end; ++i, ahead += 64) {
          _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
        }
        const int together = g < larger ? least + 1 : least;
        switch (together) {
          case 3:
            StepInMemory<3>(record, a, code, at, zero, out);
            break;
          case 4:
            StepInMemory<4>(record, a, code, at, zero, out);
            break;
          case 5:
            StepInMemory<5>(record, a, code, at, zero, out);
            break;
          case 6:
            StepInMemory<6>(record, a, code, at, zero, out);
            break;
          case 7:
            StepInMemory<7>(record, a, code, at, zero, out);
            break;
          default:
            StepInMemory<8>(record, a, code, at, zero, out);
            break;
        }
        code += static_cast<size_t>(together) * kBytes;
        at += static_cast<size_t>(together);
        out += together * 32;
      }
      code_at += a.code_stride;
      slot_at += a.slot_stride;
    }
  }

  static void Run(const PackedMatrix& w, int panel, const Activations& a, int slot, int n,
                  float* tile) {
    switch (n) {
      case 1:
        return Few<1>(w, panel, a, slot, tile);
      case 2:
        return Few<2>(w, panel, a, slot, tile);
      case 3:
        return Few<3>(w, panel, a, slot, tile);
      case 4:
        return Few<4>(w, panel, a, slot, tile);
      case 5:
        return Few<5>(w, panel, a, slot, tile);
      default:
        return Many(w, panel, a, slot, n, tile);
    }
  }
};

template <class Fmt>
void RunMatmul(const PackedMatrix& w, int panel, const Activations& a, int slot, int n,
               float* tile) {
  if (a.Wide(slot)) {
    Matmul<Fmt, true>::Run(w, panel, a, slot, n, tile);
  } else {
    Matmul<Fmt, false>::Run(w, panel, a, slot, n, tile);
  }
}

struct Avx512Vnni : SimdOps<Avx512>, LoraSimd<Avx512> {
  static constexpr VocabularyOps kVocabulary = {BlockMaximaAvx512, SoftmaxWeightsAvx512};
  using Store = KvStore<Avx512>;
  using Attend = Attention<SimdAttention<Avx512>>;

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

constexpr KernelTable kTable = FusedOps<Avx512Vnni>::Table("avx512vnni");

}  // namespace

const KernelTable& Avx512VnniKernels() { return kTable; }

}  // namespace cogumi
