// How the keys and values of a page of 64 tokens lie in its blocks. Both kinds of block are
// [layer][kv_head] of what is described here; offsets are in bytes from there.
//
// wide    | K [head_dim][64] | V [64][head_dim] |  as float32, float16 or int8; K is transposed, so
//         that scores of 64 keys need no horizontal sums. int8 is symmetric with a float32 scale a
//         token: | K scales [64] | V scales [64] | follow.
// narrow  | K codes | V codes | K scales [head_dim] | K minimums [head_dim]
//         | V scales [groups][64] | V minimums [groups][64] |
//         made of a full wide page, value = scale * code + minimum, parameters float16. K has them
//         a channel, V a token and group of 64 dimensions. Eight-bit K codes are [head_dim][64].
//         Four-bit codes lie in units of 64 bytes that hold 64 columns of two rows: in each of the
//         unit's 16 dwords l, nibbles 0-3 are columns l, 16 + l, 32 + l, 48 + l of the even row,
//         nibbles 4-7 those of the odd one; so a register of 16 columns is one shift away. Rows are
//         channels for K, tokens for V: K [head_dim / 2], V [32][groups].
//
// Where rotated_v says so, V lies multiplied by the orthonormal Hadamard matrix over the head's
// dimensions, which spreads outliers; attention turns its result back. rotated_k does the same to
// wide keys, and queries follow; narrow keys, with parameters a channel, lie as they are.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cogumi {

// config.cc refuses more.
inline constexpr int kMaxHeadDim = 512;

enum class KvWide : uint8_t { kF16, kF32, kInt8 };
enum class KvNarrow : uint8_t { kNone, kK4V4, kK8V4 };

struct KvLayout {
  KvWide wide = KvWide::kF16;
  KvNarrow narrow = KvNarrow::kNone;
  int head_dim = 0;
  int kv_heads = 0;
  int layer = 0;
  bool rotated_k = false;  // head_dim must be a power of two
  bool rotated_v = false;

  // A step's K and V go through StoreKv instead of directly from the product into the page.
  bool NeedsStore() const { return wide == KvWide::kInt8 || rotated_k || rotated_v; }
  size_t Dim() const { return static_cast<size_t>(head_dim); }
  size_t Groups() const { return (Dim() + 63) / 64; }

  size_t ElementBytes() const {
    return wide == KvWide::kF32 ? 4 : wide == KvWide::kF16 ? 2 : 1;
  }
  size_t WideV() const { return ElementBytes() * 64 * Dim(); }
  size_t WideScales() const { return 2 * WideV(); }
  size_t WideHeadBytes() const {
    return WideScales() + (wide == KvWide::kInt8 ? 2 * 64 * sizeof(float) : 0);
  }

  size_t NarrowV() const { return narrow == KvNarrow::kK8V4 ? 64 * Dim() : 64 * ((Dim() + 1) / 2); }
  size_t NarrowParameters() const { return NarrowV() + 32 * 64 * Groups(); }
  size_t NarrowVParameters() const { return NarrowParameters() + 4 * Dim(); }
  size_t NarrowHeadBytes() const {
    return narrow == KvNarrow::kNone ? 0 : (NarrowVParameters() + 4 * 64 * Groups() + 63) / 64 * 64;
  }

  // From the start of a block to a KV head of this layer.
  size_t WideOffset(int kv_head) const {
    return static_cast<size_t>(layer * kv_heads + kv_head) * WideHeadBytes();
  }
  size_t NarrowOffset(int kv_head) const {
    return static_cast<size_t>(layer * kv_heads + kv_head) * NarrowHeadBytes();
  }
};

// Where a column of a row lies among units of 64 bytes: `units` units hold a pair of rows.
struct NibblePlace {
  size_t byte;
  int shift;
};
inline NibblePlace NibbleAt(size_t row, size_t column, size_t units) {
  const size_t shift = 4 * (column % 64 / 16 + 4 * (row % 2));
  return {(row / 2 * units + column / 64) * 64 + 4 * (column % 16) + shift / 8,
          static_cast<int>(shift % 8)};
}

// Blocks of a page; null: none.
struct KvPageView {
  std::byte* wide = nullptr;
  std::byte* narrow = nullptr;
};

// Whether a query at `position` sees a page in its narrow form, if the format has one: neither the
// first page nor one of the window's. A rule of absolute positions alone.
inline bool SeesNarrow(int position, int page) {
  return page >= 1 && page <= position / 64 - 2;
}

}  // namespace cogumi
