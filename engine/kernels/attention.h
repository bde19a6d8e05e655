// What attention does with chunks of keys, whoever computes them. T gives
//   T::Tile(args, queries)            a few queries of one KV head, prepared
//   tile.Chunk(chunk, results)        a QueryResult for each of them
#pragma once

#include <cmath>
#include <cstring>

#include "engine/kernels/kv_store.h"
#include "engine/kernels/ops.h"

namespace cogumi {
namespace {

// Queries at once, and what a query's padded dimensions of all of them add up to at most.
constexpr int kTileQueries = 48;
constexpr int kTileFloats = kTileQueries * 128;

// Consecutive queries of an item.
struct TileQueries {
  const AttentionItem* item;
  int first;
  int count;
  int Row(int i) const { return item->first_row + (first + i) / item->heads; }
  int Head(int i) const { return item->first_head + (first + i) % item->heads; }
};

// The result of a query over some keys: maximum, sum of exponentials, then the values' sum from
// kPart on, padded to groups of 64. In memory as a slot of PagedAttentionArgs::partials.
constexpr size_t kPart = 16;

template <class T>
struct Attention {
  static void Attend(const PagedAttentionArgs& a, int begin, int end) {
    const size_t stride = static_cast<size_t>(AttentionPartialFloats(a.kv.head_dim));
    const int padded = static_cast<int>(stride - kPart);
    const int most = kTileFloats / padded < kTileQueries ? kTileFloats / padded : kTileQueries;
    alignas(64) float chunk_result[kTileFloats + kTileQueries * kPart];
    alignas(64) float total[kTileFloats + kTileQueries * kPart];
    for (int i = begin; i < end; ++i) {
      const AttentionItem& item = a.items[i];
      const int queries = item.rows * item.heads;
      for (int first = 0; first < queries; first += most) {
        const TileQueries tile_queries{&item, first,
                                       queries - first < most ? queries - first : most};
        typename T::Tile tile(a, tile_queries);
        for (int q = 0; q < tile_queries.count; ++q) Clear(total + q * stride, padded);
        for (int chunk = item.chunk_begin; chunk < item.chunk_end; ++chunk) {
          if (item.partial >= 0) {
            const size_t slot = static_cast<size_t>(item.partial + chunk * queries + first);
            tile.Chunk(chunk, a.partials + slot * stride, stride);
            continue;
          }
          tile.Chunk(chunk, chunk_result, stride);
          for (int q = 0; q < tile_queries.count; ++q) {
            Fold(chunk_result + q * stride, padded, total + q * stride);
          }
        }
        if (item.partial >= 0) continue;
        for (int q = 0; q < tile_queries.count; ++q) {
          Finish(a, tile_queries.Row(q), tile_queries.Head(q), total + q * stride);
        }
      }
    }
  }

  static void Merge(const PagedAttentionArgs& a, int begin, int end) {
    const size_t stride = static_cast<size_t>(AttentionPartialFloats(a.kv.head_dim));
    const int padded = static_cast<int>(stride - kPart);
    alignas(64) float total[kPart + kMaxHeadDim];
    for (int i = begin; i < end; ++i) {
      const AttentionItem& item = a.items[i];
      const int queries = item.rows * item.heads;
      for (int q = 0; q < queries; ++q) {
        Clear(total, padded);
        for (int chunk = 0; chunk < item.chunk_end; ++chunk) {
          const size_t slot = static_cast<size_t>(item.partial + chunk * queries + q);
          Fold(a.partials + slot * stride, padded, total);
        }
        Finish(a, item.first_row + q / item.heads, item.first_head + q % item.heads, total);
      }
    }
  }

 private:
  static void Clear(float* total, int padded) {
    std::memset(total, 0, (kPart + static_cast<size_t>(padded)) * sizeof(float));
    total[0] = -INFINITY;
  }

  // Not inlined: wherever it is called from, the compiler has fused the same operations.
  [[gnu::noinline]] static void Fold(const float* chunk, int padded, float* total) {
    const float next = total[0] > chunk[0] ? total[0] : chunk[0];
    const float keep = std::exp(total[0] - next);
    const float add = std::exp(chunk[0] - next);
    total[0] = next;
    total[1] = total[1] * keep + chunk[1] * add;
    float* out = total + kPart;
    const float* part = chunk + kPart;
    for (int d = 0; d < padded; ++d) out[d] = out[d] * keep + part[d] * add;
  }

  [[gnu::noinline]] static void Finish(const PagedAttentionArgs& a, int row, int head,
                                       float* total) {
    const int n = a.kv.head_dim;
    const float inverse = 1.0f / total[1];
    float* out = a.out + static_cast<size_t>(row * a.heads + head) * a.kv.Dim();
    for (int d = 0; d < n; ++d) out[d] = total[kPart + static_cast<size_t>(d)] * inverse;
    if (a.kv.rotated_v) Hadamard(out, n);
  }
};

}  // namespace
}  // namespace cogumi
