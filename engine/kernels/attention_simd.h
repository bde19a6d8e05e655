// Attention over a vector type S (see simd_ops.h), which also gives Nibbles, LoadInt8, LoadUint8.
//
// A tile is up to 48 queries of one KV head: the heads that share it, of several rows. Scores of 64
// keys a page and sums of 64 dimensions are register blocks of queries x vectors. With few queries
// the loop reads the cache itself; with more, a page is unpacked to float32 once, in the first
// cache. Either way an output is one chain of fused multiply-adds in the order of dimensions (or
// keys), so its bits do not depend on the tile.
//
// Parameters of quantised pages stay out of the loops: K's scales a channel go into the query and
// its minimums into the sum's beginning; scales a token multiply scores, or probabilities.
#pragma once

#include <type_traits>

#include "engine/kernels/attention.h"
#include "engine/kernels/simd_ops.h"

namespace cogumi {
namespace {

template <class S>
struct SimdAttention {
  using F = typename S::F;
  static constexpr int kLanes = S::kLanes;
  static constexpr int kVecs = S::kAttentionVecs;
  // With up to so many queries the loops unpack as they read.
  static constexpr int kDirectQueries = 4;
  static constexpr int kBlockQueries = 6;

  static float HalfValue(uint16_t bits) { return S::HalfValue(bits); }

  // Elements of 64 columns of kRows rows that lie together in kBytes.
  struct F32 {
    static constexpr int kRows = 1;
    static constexpr int kBytes = 256;
    template <int kRow>
    static F Get(const std::byte* p, int column) {
      return S::Load(reinterpret_cast<const float*>(p) + column);
    }
  };
  struct F16 {
    static constexpr int kRows = 1;
    static constexpr int kBytes = 128;
    template <int kRow>
    static F Get(const std::byte* p, int column) {
      return S::LoadHalf(reinterpret_cast<const uint16_t*>(p) + column);
    }
  };
  struct Int8 {
    static constexpr int kRows = 1;
    static constexpr int kBytes = 64;
    template <int kRow>
    static F Get(const std::byte* p, int column) {
      return S::LoadInt8(reinterpret_cast<const int8_t*>(p) + column);
    }
  };
  struct Uint8 {
    static constexpr int kRows = 1;
    static constexpr int kBytes = 64;
    template <int kRow>
    static F Get(const std::byte* p, int column) {
      return S::LoadUint8(reinterpret_cast<const uint8_t*>(p) + column);
    }
  };
  struct Nibble {
    static constexpr int kRows = 2;
    static constexpr int kBytes = 64;
    template <int kRow>
    static F Get(const std::byte* p, int column) {
      return S::template Nibbles<kRow>(reinterpret_cast<const uint8_t*>(p), column);
    }
  };

  // Rows of 64 columns of a block.
  struct Codes {
    const std::byte* at;
    size_t step;           // bytes between groups of kRows rows
    std::ptrdiff_t ahead;  // bytes to what is read after this block, prefetched meanwhile; 0: none
  };

  template <class L>
  static __attribute__((always_inline)) inline void Prefetch(const std::byte* at) {
    for (int i = 0; i < L::kBytes; i += 64) _mm_prefetch(at + i, _MM_HINT_T0);
  }

  // out[n][column + i] = start[n] + sum over rows r of x[n][r] * codes[r][column + i], for V
  // vectors of columns.
  template <class L, int N, int V>
  static __attribute__((always_inline)) inline void Product(const Codes& block, int rows,
                                                            int column, const float* x,
                                                            size_t x_stride, F (&sum)[N][V]) {
    const std::byte* codes = block.at;
    const bool prefetches = block.ahead != 0 && column == 0;
    for (int r = 0; r < rows; r += L::kRows, codes += block.step, x += L::kRows) {
      if (prefetches) Prefetch<L>(codes + block.ahead);
      Row<L, 0, N, V>(codes, column, x, x_stride, sum);
      if constexpr (L::kRows == 2) Row<L, 1, N, V>(codes, column, x, x_stride, sum);
    }
  }
  template <class L, int kRow, int N, int V>
  static __attribute__((always_inline)) inline void Row(const std::byte* codes, int column,
                                                        const float* x, size_t x_stride,
                                                        F (&sum)[N][V]) {
    F value[V];
    for (int i = 0; i < V; ++i) value[i] = L::template Get<kRow>(codes, column + i * kLanes);
    for (int n = 0; n < N; ++n) {
      const F factor = S::Set(x[static_cast<size_t>(n) * x_stride + kRow]);
      for (int i = 0; i < V; ++i) sum[n][i] = S::Fma(value[i], factor, sum[n][i]);
    }
  }

  // Scores of N queries and the first `columns` keys of a page (what lies beyond may be written).
  template <class L, int N>
  static void Scores(const Codes& codes, int rows, int columns, const float* q, size_t q_stride,
                     const float* start, float* out) {
    const auto block = [&]<int V>(int column) __attribute__((always_inline)) {
      F sum[N][V];
      for (int n = 0; n < N; ++n) {
        for (int i = 0; i < V; ++i) sum[n][i] = S::Set(start[n]);
      }
      Product<L, N, V>(codes, rows, column, q, q_stride, sum);
      for (int n = 0; n < N; ++n) {
        for (int i = 0; i < V; ++i) {
          S::Store(out + n * kAttentionChunk + column + i * kLanes, sum[n][i]);
        }
      }
    };
    int column = 0;
    // Many queries at the diagonal: not more columns than they see.
    constexpr int kSpare = N == kBlockQueries ? (kVecs - 1) * kLanes : 0;
    for (; column + kSpare < columns; column += kVecs * kLanes) {
      block.template operator()<kVecs>(column);
    }
    for (; column < columns; column += kLanes) block.template operator()<1>(column);
  }

  // part[n][0..63] += start[n] + weighted sums of `rows` values.
  template <class L, int N>
  static void Values(const Codes& codes, int rows, const float* weights, size_t weight_stride,
                     const float* start, float* part, size_t part_stride) {
    for (int column = 0; column < 64; column += kVecs * kLanes) {
      F sum[N][kVecs];
      for (int n = 0; n < N; ++n) {
        for (int i = 0; i < kVecs; ++i) {
          sum[n][i] = S::Add(S::Set(start[n]),
                             S::Load(part + static_cast<size_t>(n) * part_stride + column +
                                     i * kLanes));
        }
      }
      Product<L, N, kVecs>(codes, rows, column, weights, weight_stride, sum);
      for (int n = 0; n < N; ++n) {
        for (int i = 0; i < kVecs; ++i) {
          S::Store(part + static_cast<size_t>(n) * part_stride + column + i * kLanes, sum[n][i]);
        }
      }
    }
  }

  // fn.template operator()<N>(first) for blocks of queries.
  template <class Fn>
  static void Blocks(int count, const Fn& fn) {
    int i = 0;
    for (; i + kBlockQueries <= count; i += kBlockQueries) {
      fn.template operator()<kBlockQueries>(i);
    }
    switch (count - i) {
      case 1:
        return fn.template operator()<1>(i);
      case 2:
        return fn.template operator()<2>(i);
      case 3:
        return fn.template operator()<3>(i);
      case 4:
        return fn.template operator()<4>(i);
      case 5:
        fn.template operator()<3>(i);
        return fn.template operator()<2>(i + 3);
      default:
        return;
    }
  }

  class Tile {
   public:
    Tile(const PagedAttentionArgs& a, const TileQueries& queries)
        : a_(a), kv_(a.kv), count_(queries.count) {
      const RowContext& first = a.context[queries.Row(0)];
      pages_ = first.pages;
      first_position_ = first.position;
      kv_head_ = queries.Head(0) / (a.heads / kv_.kv_heads);
      stride_ = (kv_.Dim() + 15) / 16 * 16;
      for (int i = 0; i < count_; ++i) {
        const size_t row = static_cast<size_t>(queries.Row(i));
        position_[i] = a.context[row].position;
        float* to = q_ + static_cast<size_t>(i) * stride_;
        std::memcpy(to,
                    a.q + (row * static_cast<size_t>(a.heads) +
                           static_cast<size_t>(queries.Head(i))) *
                              kv_.Dim(),
                    kv_.Dim() * sizeof(float));
        std::memset(to + kv_.Dim(), 0, (stride_ - kv_.Dim()) * sizeof(float));
      }
      wide_q_ = kv_.rotated_k ? nullptr : q_;
    }

    // Maximum, sum and weighted values of every query over the keys of a chunk.
    void Chunk(int chunk, float* results, size_t stride) {
      const int first_page = chunk * (kAttentionChunk / 64);
      const int last_page = position_[count_ - 1] / 64;
      const int end = last_page + 1 < first_page + kAttentionChunk / 64
                          ? last_page + 1
                          : first_page + kAttentionChunk / 64;
      for (int page = first_page; page < end; ++page) {
        PageScores(page, first_page, page + 1 < end ? KeysOf(page + 1) : ValuesOf(first_page));
      }
      Softmax(chunk * kAttentionChunk, results, stride);
      for (int page = first_page; page < end; ++page) {
        // Most often the next chunk is computed next.
        const std::byte* next = page + 1 < end    ? ValuesOf(page + 1)
                                : end <= last_page ? KeysOf(end)
                                                  : nullptr;
        PageValues(page, first_page, next, results + kPart, stride);
      }
    }

   private:
    bool Narrow(int page) const {
      return kv_.narrow != KvNarrow::kNone && SeesNarrow(first_position_, page);
    }
    // Where a page's keys and values begin.
    const std::byte* KeysOf(int page) const {
      return Narrow(page) ? pages_[page].narrow + kv_.NarrowOffset(kv_head_)
                          : pages_[page].wide + kv_.WideOffset(kv_head_);
    }
    const std::byte* ValuesOf(int page) const {
      return KeysOf(page) + (Narrow(page) ? kv_.NarrowV() : kv_.WideV());
    }
    // Keys of a page that query i sees.
    int Visible(int i, int page) const {
      const int n = position_[i] + 1 - page * 64;
      return n < 64 ? n : 64;
    }

    // `next`: what is read after it.
    void PageScores(int page, int first_page, const std::byte* next) {
      float* out = scores_ + (page - first_page) * 64;
      const std::byte* base = KeysOf(page);
      const std::ptrdiff_t ahead = next - base;
      if (Narrow(page)) {
        FoldKeyParameters(base);
        if (kv_.narrow == KvNarrow::kK8V4) {
          AllScores<Uint8>({base, 64, ahead}, page, folded_, out);
        } else {
          AllScores<Nibble>({base, 64, ahead}, page, folded_, out);
        }
        return;
      }
      for (int i = 0; i < count_; ++i) start_[i] = 0;
      if (wide_q_ == nullptr) TurnQueries();
      if (kv_.wide == KvWide::kF16) return AllScores<F16>({base, 128, ahead}, page, wide_q_, out);
      if (kv_.wide == KvWide::kF32) return AllScores<F32>({base, 256, ahead}, page, wide_q_, out);
      AllScores<Int8>({base, 64, ahead}, page, wide_q_, out);
      const float* scales = reinterpret_cast<const float*>(base + kv_.WideScales());
      for (int i = 0; i < count_; ++i) {
        float* row = out + i * kAttentionChunk;
        for (int k = 0; k < 64; k += kLanes) {
          S::Store(row + k, S::Mul(S::Load(row + k), S::Load(scales + k)));
        }
      }
    }

    template <class L>
    void AllScores(Codes codes, int page, const float* q, float* out) {
      const int dim = kv_.head_dim;
      if (count_ <= kDirectQueries) {
        Blocks(count_, [&]<int N>(int i) {
          if constexpr (N <= kDirectQueries) {
            Scores<L, N>(codes, dim, Visible(i + N - 1, page),
                         q + static_cast<size_t>(i) * stride_, stride_, start_ + i,
                         out + i * kAttentionChunk);
          }
        });
        return;
      }
      if constexpr (!std::is_same_v<L, F32>) {
        Unpack<L>(codes, dim);
        codes = Unpacked();
      }
      Blocks(count_, [&]<int N>(int i) {
        Scores<F32, N>(codes, dim, Visible(i + N - 1, page),
                       q + static_cast<size_t>(i) * stride_, stride_, start_ + i,
                       out + i * kAttentionChunk);
      });
    }

    Codes Unpacked() const { return {reinterpret_cast<const std::byte*>(unpacked_), 256, 0}; }

    template <class L>
    void Unpack(const Codes& block, int rows) {
      const std::byte* codes = block.at;
      float* out = unpacked_;
      for (int r = 0; r < rows; r += L::kRows, codes += block.step, out += 64 * L::kRows) {
        if (block.ahead != 0) Prefetch<L>(codes + block.ahead);
        for (int c = 0; c < 64; c += kLanes) {
          S::Store(out + c, L::template Get<0>(codes, c));
          if constexpr (L::kRows == 2) S::Store(out + 64 + c, L::template Get<1>(codes, c));
        }
      }
    }

    // Only once a wide page comes: most pieces of a long sequence have none.
    void TurnQueries() {
      std::memcpy(turned_, q_, static_cast<size_t>(count_) * stride_ * sizeof(float));
      for (int i = 0; i < count_; ++i) {
        Hadamard(turned_ + static_cast<size_t>(i) * stride_, kv_.head_dim);
      }
      wide_q_ = turned_;
    }

    void FoldKeyParameters(const std::byte* base) {
      const uint16_t* scales = reinterpret_cast<const uint16_t*>(base + kv_.NarrowParameters());
      const uint16_t* minimums = scales + kv_.head_dim;
      alignas(64) float scale[kMaxHeadDim];
      alignas(64) float minimum[kMaxHeadDim];
      std::memset(scale + kv_.Dim(), 0, (stride_ - kv_.Dim()) * sizeof(float));
      std::memset(minimum + kv_.Dim(), 0, (stride_ - kv_.Dim()) * sizeof(float));
      for (size_t d = 0; d < kv_.Dim(); ++d) {
        scale[d] = S::HalfValue(scales[d]);
        minimum[d] = S::HalfValue(minimums[d]);
      }
      for (int i = 0; i < count_; ++i) {
        const float* q = q_ + static_cast<size_t>(i) * stride_;
        float* folded = folded_ + static_cast<size_t>(i) * stride_;
        F sum = S::Zero();
        for (size_t d = 0; d < stride_; d += kLanes) {
          const F v = S::Load(q + d);
          S::Store(folded + d, S::Mul(v, S::Load(scale + d)));
          sum = S::Fma(v, S::Load(minimum + d), sum);
        }
        start_[i] = S::ReduceAdd(sum);
      }
    }

    // Scores become exponentials relative to the chunk's maximum, 0 for keys not seen.
    void Softmax(int first_key, float* results, size_t stride) {
      for (int i = 0; i < count_; ++i) {
        float* p = scores_ + i * kAttentionChunk;
        int visible = position_[i] + 1 - first_key;
        visible = visible < kAttentionChunk ? visible : kAttentionChunk;
        F largest = S::Set(-INFINITY);
        for (int k = 0; k < visible; k += kLanes) {
          largest = S::Max(largest, S::KeepFirst(S::Load(p + k), visible - k, -INFINITY));
        }
        const float maximum = S::ReduceMax(largest);
        const F shift = S::Set(maximum);
        F sum = S::Zero();
        // Up to the end of the page, for the queries beside this one.
        for (int k = 0; k < (visible + 63) / 64 * 64; k += kLanes) {
          const F e = S::KeepFirst(SimdOps<S>::Exp(S::Sub(S::Load(p + k), shift)), visible - k,
                                   0.0f);
          S::Store(p + k, e);
          sum = S::Add(sum, e);
        }
        float* result = results + static_cast<size_t>(i) * stride;
        result[0] = maximum;
        result[1] = S::ReduceAdd(sum);
        std::memset(result + kPart, 0, (stride - kPart) * sizeof(float));
      }
    }

    // `next`: what is read after it; null: unknown.
    void PageValues(int page, int first_page, const std::byte* next, float* part, size_t stride) {
      const float* p = scores_ + (page - first_page) * 64;
      const std::byte* base = KeysOf(page);
      const std::byte* codes = ValuesOf(page);
      const std::ptrdiff_t ahead = next == nullptr ? 0 : next - codes;
      if (Narrow(page)) {
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(base + kv_.NarrowVParameters());
        for (size_t g = 0; g < kv_.Groups(); ++g) {
          const uint16_t* minimums = scales + kv_.Groups() * 64;
          for (int i = 0; i < count_; ++i) {
            F sum = S::Zero();
            for (int k = 0; k < 64; k += kLanes) {
              const F weight = S::Load(p + i * kAttentionChunk + k);
              S::Store(weights_ + i * 64 + k,
                       S::Mul(weight, S::LoadHalf(scales + g * 64 + k)));
              sum = S::Fma(weight, S::LoadHalf(minimums + g * 64 + k), sum);
            }
            start_[i] = S::ReduceAdd(sum);
          }
          AllValues<Nibble>({codes + g * 64, 64 * kv_.Groups(), ahead}, page, 64, weights_, 64,
                            part + g * 64, stride);
        }
        return;
      }
      for (int i = 0; i < count_; ++i) start_[i] = 0;
      if (kv_.wide == KvWide::kF16) {
        return WideValues<F16>(codes, ahead, page, p, kAttentionChunk, part, stride);
      }
      if (kv_.wide == KvWide::kF32) {
        return WideValues<F32>(codes, ahead, page, p, kAttentionChunk, part, stride);
      }
      const float* scales = reinterpret_cast<const float*>(base + kv_.WideScales()) + 64;
      // Slots that nothing was written to have no scale.
      const int seen = Visible(count_ - 1, page);
      for (int i = 0; i < count_; ++i) {
        for (int k = 0; k < 64; k += kLanes) {
          const F scale = S::KeepFirst(S::Load(scales + k), seen - k, 0.0f);
          S::Store(weights_ + i * 64 + k, S::Mul(S::Load(p + i * kAttentionChunk + k), scale));
        }
      }
      WideValues<Int8>(codes, ahead, page, weights_, 64, part, stride);
    }

    template <class L>
    void WideValues(const std::byte* codes, std::ptrdiff_t ahead, int page, const float* weights,
                    size_t weight_stride, float* part, size_t stride) {
      const size_t element = kv_.ElementBytes();
      for (size_t g = 0; g < kv_.Groups(); ++g) {
        const int columns = kv_.head_dim - static_cast<int>(64 * g);
        AllValues<L>({codes + 64 * g * element, kv_.Dim() * element, ahead}, page,
                     columns < 64 ? columns : 64, weights, weight_stride, part + 64 * g, stride);
      }
    }

    // `columns` of the 64 are there.
    template <class L>
    void AllValues(const Codes& codes, int page, int columns, const float* weights,
                   size_t weight_stride, float* part, size_t stride) {
      if (count_ <= kDirectQueries && columns == 64) {
        Blocks(count_, [&]<int N>(int i) {
          if constexpr (N <= kDirectQueries) {
            Values<L, N>(codes, Visible(i + N - 1, page),
                         weights + static_cast<size_t>(i) * weight_stride, weight_stride,
                         start_ + i, part + static_cast<size_t>(i) * stride, stride);
          }
        });
        return;
      }
      const int rows = Visible(count_ - 1, page);
      if (columns == 64) {
        Unpack<L>(codes, rows);
      } else {
        UnpackPart(codes, rows, columns);
      }
      Blocks(count_, [&]<int N>(int i) {
        Values<F32, N>(Unpacked(), Visible(i + N - 1, page),
                       weights + static_cast<size_t>(i) * weight_stride, weight_stride, start_ + i,
                       part + static_cast<size_t>(i) * stride, stride);
      });
    }

    // Rows of a wide block that end before their 64 columns do.
    void UnpackPart(const Codes& block, int rows, int columns) {
      const std::byte* codes = block.at;
      for (int r = 0; r < rows; ++r, codes += block.step) {
        float* out = unpacked_ + r * 64;
        for (int c = 0; c < 64; ++c) {
          if (c >= columns) {
            out[c] = 0;
          } else if (kv_.wide == KvWide::kF16) {
            out[c] = S::HalfValue(reinterpret_cast<const uint16_t*>(codes)[c]);
          } else if (kv_.wide == KvWide::kF32) {
            out[c] = reinterpret_cast<const float*>(codes)[c];
          } else {
            out[c] = static_cast<float>(reinterpret_cast<const int8_t*>(codes)[c]);
          }
        }
      }
    }

    const PagedAttentionArgs& a_;
    const KvLayout& kv_;
    const KvPageView* pages_;
    int first_position_;
    int kv_head_;
    int count_;
    size_t stride_;  // of q_ and folded_: padded with zeros
    int position_[kTileQueries];
    alignas(64) float start_[kTileQueries];
    alignas(64) float q_[kTileFloats];
    alignas(64) float folded_[kTileFloats];  // with K's scales of a page
    alignas(64) float turned_[kTileFloats];  // for rotated keys
    const float* wide_q_;                    // what wide pages meet; null: not turned yet
    alignas(64) float scores_[kTileQueries * kAttentionChunk];
    alignas(64) float weights_[kTileQueries * 64];
    alignas(64) float unpacked_[kMaxHeadDim * 64];
  };
};

}  // namespace
}  // namespace cogumi
