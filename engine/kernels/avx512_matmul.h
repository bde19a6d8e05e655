// Products of quantised weights and activations by vpdpbusd on 64-byte tiles.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "engine/kernels/activations.h"
#include "engine/kernels/packed_matrix.h"

namespace cogumi {
namespace {

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

// Codes of rows 0-15 and of rows 16-31 of a record, eight tiles each.
struct TileRuns {
  const uint8_t* low;
  const uint8_t* high;
};

template <int kBits, bool kHasMinimum, bool kF32Scales, int kInputs>
struct Format {
  static constexpr bool kMinimum = kHasMinimum;
  static constexpr bool kHighHoldsBoth = kBits == 4;
  static int Zero(const PackedMatrix& w) { return w.format.zero; }
  static int Blocks(const PackedMatrix& w) { return static_cast<int>(w.Blocks()); }
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

  struct Scales {
    __m512 scale[kGroups][2];
    __m512 minimum[kGroups][2];

    __attribute__((always_inline)) explicit Scales(const uint8_t* record) {
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          const uint8_t* s = record + kTiles + static_cast<size_t>(2 * g + h) * kScaleStep;
          scale[g][h] = Scale(s);
          if constexpr (kMinimum) minimum[g][h] = Scale(s + kScales);
          if (kHighHoldsBoth && h == 1) {
            scale[g][h] = _mm512_mul_ps(scale[g][h], _mm512_set1_ps(1.0f / 16));  // exact
          }
        }
      }
    }
  };

  // Scales in registers, codes where they are. Codes of 4 bits of rows 16-31 stay above those of
  // rows 0-15: their products are 16 times too large and contain the others', of which FoldRow
  // takes care. That is one operation a tile instead of three.
  struct Record : Scales {
    const uint8_t* tiles;

    __attribute__((always_inline)) explicit Record(const Cursor& cursor)
        : Scales(cursor.p), tiles(cursor.p) {}
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

  // The same codes as two runs of eight tiles, in the record or made in `scratch`.
  static __attribute__((always_inline)) inline TileRuns Runs(const Cursor& cursor,
                                                             uint8_t* scratch) {
    if constexpr (kBits == 8) return {cursor.p, cursor.p + 512};
#pragma GCC unroll 8
    for (int t = 0; t < 512; t += 64) {
      _mm512_store_si512(scratch + t,
                         _mm512_and_si512(_mm512_load_si512(cursor.p + t), _mm512_set1_epi8(15)));
    }
    return {scratch, cursor.p};
  }
};

// What both ways to read a split matrix (packed_matrix.h) share.
struct SplitRecords {
  static constexpr bool kMinimum = false;
  static constexpr bool kHighHoldsBoth = false;
  static constexpr int kGroup = 32;
  static constexpr size_t kRecord = 576;

  struct Scales {
    __m512 scale[1][2];

    __attribute__((always_inline)) explicit Scales(const uint8_t* record) {
      for (int h = 0; h < 2; ++h) {
        scale[0][h] = _mm512_cvtph_ps(
            _mm256_load_si256(reinterpret_cast<const __m256i*>(record + 512 + 32 * h)));
      }
    }
  };

  struct Codes : Scales {
    __m512i low[8];
    __m512i high[8];

    using Scales::Scales;
    __attribute__((always_inline)) void Tile(int t, __m512i& l, __m512i& h) const {
      l = low[t];
      h = high[t];
    }
    __attribute__((always_inline)) TileRuns Store(uint8_t* scratch) const {
#pragma GCC unroll 8
      for (int t = 0; t < 8; ++t) {
        _mm512_store_si512(scratch + 64 * t, low[t]);
        _mm512_store_si512(scratch + 512 + 64 * t, high[t]);
      }
      return {scratch, scratch + 512};
    }
  };
};

struct SplitFormat : SplitRecords {
  static int Zero(const PackedMatrix& w) { return w.format.zero; }
  static int Blocks(const PackedMatrix& w) { return static_cast<int>(w.Blocks()); }
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
  static __attribute__((always_inline)) inline TileRuns Runs(const Cursor& cursor,
                                                             uint8_t* scratch) {
    return Record(cursor).Store(scratch);
  }
};

// Without the lower bits, but with the record of the heavy inputs.
struct CoarseFormat : SplitRecords {
  static int Zero(const PackedMatrix&) { return kCoarseZero; }
  static int Blocks(const PackedMatrix& w) { return static_cast<int>(w.CoarseBlocks()); }
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
  static __attribute__((always_inline)) inline TileRuns Runs(const Cursor& cursor,
                                                             uint8_t* scratch) {
    return Record(cursor).Store(scratch);
  }
};

__attribute__((always_inline)) inline __m512i Broadcast(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}

// Adds the products of slot `at` with group g of a record to its sums: p and q are those of rows
// 0-15 and 16-31 with the codes, or with their upper bytes, fine_p and fine_q with the lower bytes.
template <class Fmt, bool kInt16>
__attribute__((always_inline)) inline void FoldRow(const typename Fmt::Scales& w, int g,
                                                   const Activations& a, size_t at, int zero,
                                                   __m512i p, __m512i q, __m512i fine_p,
                                                   __m512i fine_q, __m512& low, __m512& high) {
  if constexpr (kInt16) {
    p = _mm512_add_epi32(_mm512_slli_epi32(p, 8), fine_p);
    q = _mm512_add_epi32(_mm512_slli_epi32(q, 8), fine_q);
  }
  if constexpr (Fmt::kHighHoldsBoth) q = _mm512_sub_epi32(q, p);
  int32_t sum = a.sum[at];
  if constexpr (Fmt::kGroup == 16) sum = g == 0 ? a.half_sum[at] : sum - a.half_sum[at];
  if constexpr (!Fmt::kMinimum) {
    const __m512i shift = _mm512_set1_epi32(zero * sum);
    p = _mm512_sub_epi32(p, shift);
    q = _mm512_sub_epi32(q, Fmt::kHighHoldsBoth ? _mm512_set1_epi32(16 * zero * sum) : shift);
  }
  const __m512 scale = _mm512_set1_ps(a.scale[at]);
  low = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(p), scale), w.scale[g][0], low);
  high = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(q), scale), w.scale[g][1], high);
  if constexpr (Fmt::kMinimum) {
    const __m512 total = _mm512_set1_ps(Fmt::kGroup == 16 ? a.scale[at] * static_cast<float>(sum)
                                                          : a.scaled_sum[at]);
    low = _mm512_fmadd_ps(w.minimum[g][0], total, low);
    high = _mm512_fmadd_ps(w.minimum[g][1], total, high);
  }
}

// U activation rows against one record; sums in `low` and `high` (rows 0-15 and 16-31).
template <class Fmt, bool kInt16, int U>
__attribute__((always_inline)) inline void Step(const typename Fmt::Record& w, const Activations& a,
                                                size_t code_at, size_t slot_at, int zero,
                                                __m512* low, __m512* high) {
  constexpr int kPlanes = kInt16 ? 2 : 1;
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
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      FoldRow<Fmt, kInt16>(w, g, a, slot_at + static_cast<size_t>(u), zero, p[u], q[u], fine_p[u],
                           fine_q[u], low[u], high[u]);
    }
  }
}

// Of n slots, in as few groups of at most `most` as there can be, sizes at most one apart.
struct SlotGroups {
  SlotGroups(int n, int most) : count((n + most - 1) / most), least(n / count), larger(n % count) {}
  int Size(int i) const { return i < larger ? least + 1 : least; }
  const int count;
  const int least;
  const int larger;  // groups that have one slot more than the least; they come first
};

// Fetches the record that lies so many bytes ahead into the second cache.
template <class Fmt>
__attribute__((always_inline)) inline void PrefetchRecord(const typename Fmt::Cursor& cursor,
                                                          size_t ahead) {
#pragma GCC unroll 20
  for (size_t i = 0; i < Fmt::kRecord; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(cursor.p + ahead + i), _MM_HINT_T1);
  }
  cursor.PrefetchSecond(ahead);
}

template <class Fmt, bool kInt16>
struct Matmul {
  static constexpr size_t kBytes = kInt16 ? 64 : 32;

  // A few rows: sums stay in registers.
  template <int U>
  static __attribute__((noinline)) void Few(const PackedMatrix& w, int panel, const Activations& a,
                                            int slot, float* tile) {
    typename Fmt::Cursor at(w, panel);
    const int blocks = Fmt::Blocks(w);
    const int zero = Fmt::Zero(w);
    const size_t ahead = U > 1 ? kPrefetchBytes : LonePrefetchBytes();
    __m512 low[U];
    __m512 high[U];
    for (int u = 0; u < U; ++u) low[u] = high[u] = _mm512_setzero_ps();
    size_t code_at = a.CodeOffset(slot);
    size_t slot_at = static_cast<size_t>(slot);
    for (int b = 0; b < blocks; ++b, at.Next()) {
      if (ahead != 0) PrefetchRecord<Fmt>(at, ahead);
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
    const int blocks = Fmt::Blocks(w);
    const int zero = Fmt::Zero(w);
    __builtin_memset(tile, 0, static_cast<size_t>(n) * 128);
    const SlotGroups groups(n, kMostTogether);
    const int lines = static_cast<int>(Fmt::kRecord / 64) / groups.count + 1;
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
      for (int g = 0; g < groups.count; ++g) {
        for (int i = 0; i < lines && ahead < ahead_end; ++i, ahead += 64) {
          _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
        }
        const int together = groups.Size(g);
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

}  // namespace
}  // namespace cogumi
