// AVX-512 with AMX (Sapphire Rapids and later): tdpbsud where there are many rows.
#include "engine/kernels/amx.h"
#include "engine/kernels/avx512_ops.h"
#include "engine/kernels/registry.h"

namespace cogumi {
namespace {

// Tile registers. Sums of one group of slots are in two; the next group's go to the other two, so
// that these are stored when they are long done (a product takes 52 cycles).
constexpr int kActivations = 0, kLow = 6, kHigh = 7;
constexpr int kSums = 2;

// For `rows` rows of activations and sums, and weights of `inputs` inputs. A configuration costs
// 0.04-0.1 us and stays with the thread, which is the engine's own.
void Configure(int rows, int inputs) {
  static thread_local int configured = 0;
  const int wanted = rows * 64 + inputs;
  if (configured == wanted) return;
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.bytes[i] = 64;
    config.rows[i] = static_cast<uint8_t>(rows);
  }
  config.bytes[kActivations] = static_cast<uint16_t>(inputs);
  config.rows[kLow] = config.rows[kHigh] = static_cast<uint8_t>(inputs / 4);
  LoadTileConfig(config);
  configured = wanted;
}

// A record's eight tiles of 16 rows are one tile register as they lie, [inputs / 4][16 rows x 4
// inputs]. The codes of up to eight 16-bit slots (both planes) or sixteen 8-bit slots are another,
// [planes x slots][32 inputs]. Products are the integers of vpdpbusd, and FoldRow makes the same
// bits of them: this tier's results are those of `avx512vnni`.
template <class Fmt, bool kInt16>
struct AmxMatmul {
  using Vnni = Matmul<Fmt, kInt16>;
  static constexpr int kPlanes = kInt16 ? 2 : 1;
  static constexpr int kMostTogether = 16 / kPlanes;
  static constexpr int kGroup = Fmt::kGroup;
  // Of a group of slots: [rows 0-15, 16-31][planes x slots][16].
  static constexpr int kHalf = 256;

  // A group of slots beside a record's group of inputs.
  struct Item {
    const uint8_t* record = nullptr;
    int group = 0;
    size_t slot_at = 0;
    int slots = 0;  // 0: there is none
    float* out = nullptr;
  };

  template <int kParity>
  static __attribute__((always_inline)) inline void Multiply(const int8_t* codes) {
    LoadTile<kActivations>(codes, 32);
    // Both before the products: one between them waits for the first (6 against 37 ns).
    ZeroTile<kSums + 2 * kParity>();
    ZeroTile<kSums + 2 * kParity + 1>();
    MultiplyTiles<kSums + 2 * kParity, kActivations, kLow>();
    MultiplyTiles<kSums + 2 * kParity + 1, kActivations, kHigh>();
  }

  template <int kParity>
  static __attribute__((always_inline)) inline void Store(int32_t* sums) {
    StoreTile<kSums + 2 * kParity>(sums, 64);
    StoreTile<kSums + 2 * kParity + 1>(sums + kHalf, 64);
  }

  static __attribute__((always_inline)) inline void Fold(const Item& item, const Activations& a,
                                                         int zero, const int32_t* sums) {
    if (item.slots == 0) return;
    const typename Fmt::Scales scales(item.record);
    float* out = item.out;
#pragma GCC unroll 2
    for (int u = 0; u < item.slots; ++u, out += 32) {
      const int32_t* p = sums + u * kPlanes * 16;
      const int32_t* q = p + kHalf;
      __m512 low = _mm512_load_ps(out);
      __m512 high = _mm512_load_ps(out + 16);
      FoldRow<Fmt, kInt16>(scales, item.group, a, item.slot_at + static_cast<size_t>(u), zero,
                           _mm512_load_si512(p), _mm512_load_si512(q),
                           kInt16 ? _mm512_load_si512(p + 16) : _mm512_setzero_si512(),
                           kInt16 ? _mm512_load_si512(q + 16) : _mm512_setzero_si512(), low, high);
      _mm512_store_ps(out, low);
      _mm512_store_ps(out + 16, high);
    }
  }

  // In groups of about one size. While a group is multiplied the one before is stored and the one
  // before that folded; codes are unpacked a record ahead, since a tile that is loaded right behind
  // its stores waits for them (33 instead of 19 ns a record).
  static __attribute__((noinline)) void Many(const PackedMatrix& w, int panel,
                                             const Activations& activations, int slot, int n,
                                             float* tile) {
    const Activations a = activations;  // a copy, which no store of sums can change
    typename Fmt::Cursor cursor(w, panel);
    const int blocks = Fmt::Blocks(w);
    const int zero = Fmt::Zero(w);
    __builtin_memset(tile, 0, static_cast<size_t>(n) * 128);
    const SlotGroups groups(n, kMostTogether);
    // Smaller groups compute a slot too many, from codes that are the next one's or padding.
    Configure(kPlanes * groups.Size(0), kGroup);
    alignas(64) uint8_t codes[2][1024];
    alignas(64) int32_t sums[2][2 * kHalf];
    Item multiplied;
    Item stored;
    int parity = 0;
    size_t code_at = a.CodeOffset(slot);
    size_t slot_at = static_cast<size_t>(slot);
    TileRuns runs = Fmt::Runs(cursor, codes[0]);
    for (int b = 0; b < blocks; ++b) {
      const uint8_t* record = cursor.p;
      PrefetchRecord<Fmt>(cursor, kPrefetchBytes);
      cursor.Next();
      TileRuns next = runs;
      if (b + 1 < blocks) next = Fmt::Runs(cursor, codes[(b + 1) & 1]);
      for (int g = 0; g < 32 / kGroup; ++g) {
        LoadTile<kLow>(runs.low + g * kGroup * 16, 64);
        LoadTile<kHigh>(runs.high + g * kGroup * 16, 64);
        const int8_t* code = a.codes + code_at + g * kGroup;
        size_t at = slot_at;
        float* out = tile;
        for (int i = 0; i < groups.count; ++i) {
          const int together = groups.Size(i);
          if (parity == 0) {
            Multiply<0>(code);
            Store<1>(sums[1]);
          } else {
            Multiply<1>(code);
            Store<0>(sums[0]);
          }
          Fold(stored, a, zero, sums[parity]);
          stored = multiplied;
          multiplied = {record, g, at, together, out};
          parity ^= 1;
          code += together * kPlanes * 32;
          at += static_cast<size_t>(together);
          out += together * 32;
        }
      }
      runs = next;
      code_at += a.code_stride;
      slot_at += a.slot_stride;
    }
    Fold(stored, a, zero, sums[parity]);
    if (parity == 0) {
      Store<1>(sums[1]);
    } else {
      Store<0>(sums[0]);
    }
    Fold(multiplied, a, zero, sums[parity ^ 1]);
  }

  // What vpdpbusd does with one block of registers it does as fast: five rows of 16 bits 83 and 84
  // us, eight 132 and 109, 256 4,015 and 3,004 (GateUpSwiglu, weights in the second cache).
  static void Run(const PackedMatrix& w, int panel, const Activations& a, int slot, int n,
                  float* tile) {
    if (n > Vnni::kMostTogether) {
      Many(w, panel, a, slot, n, tile);
    } else {
      Vnni::Run(w, panel, a, slot, n, tile);
    }
  }
};

constexpr KernelTable kTable = FusedOps<Avx512Ops<AmxMatmul>>::Table("avx512amx");

}  // namespace

const KernelTable& Avx512AmxKernels() { return kTable; }

}  // namespace cogumi
