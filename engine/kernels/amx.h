// The tile registers of AMX: their configuration and the instructions on them, as assembly because
// the intrinsics of gcc 12 do not tell the compiler that they read and write memory.
#pragma once

#include <cstdint>

namespace cogumi {
namespace {

// Tile i is rows[i] rows of bytes[i] bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

inline void LoadTileConfig(const TileConfig& config) {
  asm volatile("ldtilecfg %0" : : "m"(config));
}

template <int kTile>
inline __attribute__((always_inline)) void LoadTile(const void* base, long stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(base), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
inline __attribute__((always_inline)) void StoreTile(void* base, long stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(base), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
inline __attribute__((always_inline)) void ZeroTile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

// kSum += kSigned * kUnsigned; fours of bytes, 32-bit sums.
template <int kSum, int kSigned, int kUnsigned>
inline __attribute__((always_inline)) void MultiplyTiles() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kSigned), "i"(kUnsigned));
}

}  // namespace
}  // namespace cogumi
