// Attention and the KV formats, in every tier, against simple loops over what the blocks hold
// according to kv_layout.h; and every output independent of how the work is divided.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/core/half.h"
#include "engine/kernels/registry.h"
#include "tests/kernels/every_tier.h"

namespace cogumi {
namespace {

struct Shape {
  int heads;
  int kv_heads;
  int head_dim;
};
constexpr Shape kShapes[] = {{9, 3, 64},  {4, 4, 16}, {4, 1, 24},  {2, 2, 80},
                             {8, 2, 128}, {6, 3, 40}, {7, 1, 512}, {60, 1, 32}};

struct Format {
  const char* name;
  KvWide wide;
  KvNarrow narrow;
  bool rotated_k;
  bool rotated_v;
};
constexpr Format kFormats[] = {
    {"f16", KvWide::kF16, KvNarrow::kNone, false, false},
    {"f32", KvWide::kF32, KvNarrow::kNone, false, false},
    {"int8", KvWide::kInt8, KvNarrow::kNone, true, true},
    {"int8, not rotated", KvWide::kInt8, KvNarrow::kNone, false, false},
    {"int4", KvWide::kInt8, KvNarrow::kK4V4, true, true},
    {"k8v4", KvWide::kInt8, KvNarrow::kK8V4, true, true},
    {"int4 in a window of f16", KvWide::kF16, KvNarrow::kK4V4, false, true},
};

KvLayout LayoutOf(const Shape& shape, const Format& format) {
  KvLayout kv;
  kv.wide = format.wide;
  kv.narrow = format.narrow;
  kv.head_dim = shape.head_dim;
  kv.kv_heads = shape.kv_heads;
  kv.layer = 1;
  const bool power_of_two = std::has_single_bit(static_cast<unsigned>(shape.head_dim));
  kv.rotated_k = format.rotated_k && power_of_two;
  kv.rotated_v = format.rotated_v && power_of_two;
  return kv;
}

// H v, from the definition: element (i, j) is (-1)^popcount(i & j) / sqrt(n).
std::vector<double> Turned(const std::vector<double>& v) {
  std::vector<double> out(v.size());
  for (size_t i = 0; i < v.size(); ++i) {
    for (size_t j = 0; j < v.size(); ++j) out[i] += std::popcount(i & j) % 2 == 0 ? v[j] : -v[j];
    out[i] /= std::sqrt(static_cast<double>(v.size()));
  }
  return out;
}

// Random keys and values of `tokens` tokens in the blocks of a sequence, for one layer in the
// middle of three.
class Pages {
 public:
  // `broken`: this element is given instead of a number.
  struct Broken {
    int position;
    bool is_v;
    int head;
    int d;
    float value;
  };
  Pages(const KvLayout& layout, int tokens, const KernelTable& kernels, unsigned seed,
        const Broken* broken = nullptr)
      : kv(layout) {
    const size_t wide = 3 * kv.WideHeadBytes() * static_cast<size_t>(kv.kv_heads);
    const size_t narrow = 3 * kv.NarrowHeadBytes() * static_cast<size_t>(kv.kv_heads);
    const size_t count = static_cast<size_t>((tokens + 63) / 64);
    // NaN everywhere: what is not written must not be read into a result.
    wide_.assign(wide * count, std::byte{0xFF});
    narrow_.assign(narrow * count, std::byte{0xFF});
    for (size_t i = 0; i < count; ++i) {
      views.push_back({wide_.data() + wide * (count - 1 - i),
                       narrow == 0 ? nullptr : narrow_.data() + narrow * (count - 1 - i)});
    }
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const size_t width = static_cast<size_t>(kv.kv_heads * kv.head_dim);
    rows.resize(static_cast<size_t>(tokens) * 2 * width);
    for (size_t i = 0; i < rows.size(); ++i) {
      // Channels of K differ in size and offset, as those of a model do.
      const size_t at = i % (2 * width);
      const float size = at < width ? 0.5f + static_cast<float>(at % 7) : 1.0f;
      rows[i] = normal(random) * size + (at < width ? static_cast<float>(at % 5) - 2.0f : 0.0f);
    }
    if (broken != nullptr) {
      rows[Index(broken->position, broken->head, broken->d, broken->is_v)] = broken->value;
    }
    std::vector<StoreKvItem> items;
    for (int page = 0; page < static_cast<int>(count); ++page) {
      const int n = std::min(64, tokens - 64 * page);
      const bool full = kv.narrow != KvNarrow::kNone && n == 64;
      items.push_back({views[static_cast<size_t>(page)], 64 * page, n, 0, full});
      if (!kv.NeedsStore()) {
        for (int slot = 0; slot < n; ++slot) Write(page, slot);
        items.back().rows = 0;
      }
    }
    const StoreKvArgs store{rows.data(), items.data(), kv};
    kernels.store_kv(store, 0, static_cast<int>(items.size()) * kv.kv_heads);
  }

  // K or V of a token as it was given.
  float Given(int position, int head, int d, bool is_v) const {
    return rows[Index(position, head, d, is_v)];
  }

  // An element as a block holds it; V in its rotated form.
  double Wide(int position, int head, int d, bool is_v) const {
    const std::byte* base = views[static_cast<size_t>(position / 64)].wide + kv.WideOffset(head);
    const int slot = position % 64;
    const size_t index = static_cast<size_t>(is_v ? slot * kv.head_dim + d : d * 64 + slot);
    const size_t elements = static_cast<size_t>(64 * kv.head_dim);
    const size_t at = (is_v ? elements : 0) + index;
    if (kv.wide == KvWide::kF32) return Read<float>(base, at);
    if (kv.wide == KvWide::kF16) return HalfToFloat(Read<uint16_t>(base, at));
    const float scale =
        Read<float>(base + 2 * elements, static_cast<size_t>((is_v ? 64 : 0) + slot));
    return static_cast<double>(scale) * Read<int8_t>(base, at);
  }
  double Narrow(int position, int head, int d, bool is_v, float* scale_out = nullptr) const {
    const std::byte* base =
        views[static_cast<size_t>(position / 64)].narrow + kv.NarrowOffset(head);
    const size_t slot = static_cast<size_t>(position % 64);
    const size_t dim = static_cast<size_t>(kv.head_dim);
    const size_t groups = (dim + 63) / 64;
    const bool k8 = kv.narrow == KvNarrow::kK8V4;
    const size_t k_bytes = k8 ? dim * 64 : (dim + 1) / 2 * 64;
    const size_t parameters = k_bytes + 32 * groups * 64;
    const size_t column = is_v ? static_cast<size_t>(d) : slot;
    const size_t row = is_v ? slot : static_cast<size_t>(d);
    int code;
    if (!is_v && k8) {
      code = Read<uint8_t>(base, row * 64 + column);
    } else {
      const size_t unit =
          (is_v ? k_bytes : 0) + (row / 2 * (is_v ? groups : 1) + (is_v ? column / 64 : 0)) * 64;
      const uint32_t dword = Read<uint32_t>(base + unit, column % 16);
      code = static_cast<int>(dword >> (4 * (column % 64 / 16 + (row % 2 == 0 ? 0 : 4))) & 15);
    }
    const size_t scale = parameters / 2 + (is_v ? 2 * dim + column / 64 * 64 + slot : row);
    const size_t minimum = scale + (is_v ? groups * 64 : dim);
    const float s = HalfToFloat(Read<uint16_t>(base, scale));
    const float m = HalfToFloat(Read<uint16_t>(base, minimum));
    if (scale_out != nullptr) *scale_out = s;
    return static_cast<double>(s) * code + static_cast<double>(m);
  }
  bool SeenNarrow(int by, int position) const {
    const int page = position / 64;
    return kv.narrow != KvNarrow::kNone && page >= 1 && page <= by / 64 - 2;
  }
  double Seen(int by, int position, int head, int d, bool is_v) const {
    return SeenNarrow(by, position) ? Narrow(position, head, d, is_v)
                                    : Wide(position, head, d, is_v);
  }

  const KvLayout kv;
  std::vector<KvPageView> views;
  std::vector<float> rows;

 private:
  size_t Index(int position, int head, int d, bool is_v) const {
    const int row = (2 * position + is_v) * kv.kv_heads + head;
    return static_cast<size_t>(row * kv.head_dim + d);
  }
  template <class T>
  static T Read(const std::byte* base, size_t index) {
    T value;
    std::memcpy(&value, base + index * sizeof(T), sizeof(T));
    return value;
  }
  // As the product writes formats that need no StoreKv.
  void Write(int page, int slot) {
    for (int head = 0; head < kv.kv_heads; ++head) {
      for (const bool is_v : {false, true}) {
        for (int d = 0; d < kv.head_dim; ++d) {
          const float value = Given(64 * page + slot, head, d, is_v);
          std::byte* base =
              views[static_cast<size_t>(page)].wide + kv.WideOffset(head) + (is_v ? kv.WideV() : 0);
          const int index = is_v ? slot * kv.head_dim + d : d * 64 + slot;
          if (kv.wide == KvWide::kF32) {
            std::memcpy(base + 4 * index, &value, 4);
          } else {
            const uint16_t half = FloatToHalf(value);
            std::memcpy(base + 2 * index, &half, 2);
          }
        }
      }
    }
  }

  std::vector<std::byte> wide_, narrow_;
};

using AttentionConformance = EveryTier;

TEST_P(AttentionConformance, BlocksHoldWhatTheyWereGivenWithinHalfAStep) {
  for (const Format& format : kFormats) {
    for (const Shape& shape : kShapes) {
      SCOPED_TRACE(std::string(format.name) + ", " + std::to_string(shape.head_dim));
      const Pages pages(LayoutOf(shape, format), 130, kernels(), 5);
      const KvLayout& kv = pages.kv;
      for (int position = 0; position < 130; ++position) {
        for (int head = 0; head < kv.kv_heads; ++head) {
          for (const bool is_v : {false, true}) {
            std::vector<double> given;
            for (int d = 0; d < kv.head_dim; ++d) {
              given.push_back(static_cast<double>(pages.Given(position, head, d, is_v)));
            }
            const std::vector<double> plain = given;
            if (is_v ? kv.rotated_v : kv.rotated_k) given = Turned(given);
            double largest = 0;
            for (const double x : given) largest = std::max(largest, std::fabs(x));
            for (int d = 0; d < kv.head_dim; ++d) {
              const double x = given[static_cast<size_t>(d)];
              const double wide = pages.Wide(position, head, d, is_v);
              const double step = kv.wide == KvWide::kInt8 ? largest / 127 : std::fabs(x) / 1024;
              ASSERT_NEAR(wide, x, 0.501 * step + 1e-5);
              if (kv.narrow == KvNarrow::kNone || position >= 128) continue;
              float scale;
              const double narrow = pages.Narrow(position, head, d, is_v, &scale);
              // fp16 minimums are up to half a unit off at the ends of the range.
              // Narrow keys are never rotated: there the wide page's own error comes on top.
              const bool turned_back = !is_v && kv.rotated_k;
              const double from = turned_back ? plain[static_cast<size_t>(d)] : wide;
              const double error = 0.004 + largest / (turned_back ? 30 : 1500);
              ASSERT_NEAR(narrow, from, 0.501 * static_cast<double>(scale) + error);
            }
          }
        }
      }
    }
  }
}

// The last rows of a page of a sequence, their queries and what attention makes of them.
class Queries {
 public:
  Queries(const Pages& from, int query_heads, int last, unsigned seed)
      : pages(from),
        rows(std::min(last % 64 + 1, 17)),
        first(last - rows + 1),
        heads(query_heads),
        group(heads / from.kv.kv_heads),
        chunks(last / kAttentionChunk + 1) {
    for (int r = 0; r < rows; ++r) context_.push_back({pages.views.data(), first + r});
    q_.resize(static_cast<size_t>(rows * heads * pages.kv.head_dim));
    std::mt19937 random(seed);
    const float size = 0.3f / std::sqrt(static_cast<float>(pages.kv.head_dim));
    std::normal_distribution<float> normal(0.0f, size);
    for (float& x : q_) x = normal(random);
  }

  // Runs items, then merges.
  std::vector<float> Run(const KernelTable& kernels, const std::vector<AttentionItem>& items,
                         const std::vector<AttentionItem>& merges = {}) const {
    std::vector<float> out(q_.size(), NAN);
    std::vector<float> partials(static_cast<size_t>(rows * heads * chunks) *
                                    static_cast<size_t>(AttentionPartialFloats(pages.kv.head_dim)),
                                NAN);
    PagedAttentionArgs args;
    args.q = q_.data();
    args.out = out.data();
    args.context = context_.data();
    args.items = items.data();
    args.partials = partials.data();
    args.heads = heads;
    args.kv = pages.kv;
    kernels.paged_attention(args, 0, static_cast<int>(items.size()));
    args.items = merges.data();
    kernels.merge_attention(args, 0, static_cast<int>(merges.size()));
    return out;
  }

  size_t At(int r, int h) const { return static_cast<size_t>((r * heads + h) * pages.kv.head_dim); }
  // Simple loops.
  std::vector<double> Expected(int r, int h) const {
    const KvLayout& kv = pages.kv;
    const int position = first + r;
    const auto begin = q_.begin() + static_cast<std::ptrdiff_t>(At(r, h));
    const std::vector<double> q(begin, begin + kv.head_dim);
    const std::vector<double> wide_q = kv.rotated_k ? Turned(q) : q;
    std::vector<double> out(kv.Dim());
    double sum = 0;
    for (int k = 0; k <= position; ++k) {
      double score = 0;
      for (int d = 0; d < kv.head_dim; ++d) {
        score += (pages.SeenNarrow(position, k) ? q : wide_q)[static_cast<size_t>(d)] *
                 pages.Seen(position, k, h / group, d, false);
      }
      const double weight = std::exp(score);
      sum += weight;
      for (int d = 0; d < kv.head_dim; ++d) {
        out[static_cast<size_t>(d)] += weight * pages.Seen(position, k, h / group, d, true);
      }
    }
    for (double& x : out) x /= sum;
    return kv.rotated_v ? Turned(out) : out;
  }

  const Pages& pages;
  const int rows, first, heads, group, chunks;

 private:
  std::vector<RowContext> context_;
  std::vector<float> q_;
};

TEST_P(AttentionConformance, MatchesSimpleLoopsAndDoesNotDependOnTheDivision) {
  for (const Format& format : kFormats) {
    for (const Shape& shape : kShapes) {
      for (const int last : {0, 1, 63, 64, 191, 192, 254, 256, 300, 700}) {
        // The scalar tier is slow, above all under a sanitizer.
        if (shape.head_dim > 128 && last != 300) continue;
        if (Slow() && last != 63 && last != 300) continue;
        SCOPED_TRACE(std::string(format.name) + ", " + std::to_string(shape.head_dim) + ", last " +
                     std::to_string(last));
        const Pages pages(LayoutOf(shape, format), last + 1, kernels(), 6);
        const Queries queries(pages, shape.heads, last, 9);
        const int rows = queries.rows;
        const int group = queries.group;
        const int chunks = queries.chunks;
        std::vector<AttentionItem> whole, alone, pieces, merges;
        int32_t slot = 0;
        for (int h = 0; h < shape.heads; h += group) {
          whole.push_back({0, rows, h, group, 0, chunks, -1});
          for (int chunk = chunks - 1; chunk >= 0; --chunk) {
            pieces.push_back({0, rows, h, group, chunk, chunk + 1, slot});
          }
          merges.push_back({0, rows, h, group, 0, chunks, slot});
          slot += rows * group * chunks;
        }
        for (int r = 0; r < rows; ++r) {
          for (int h = 0; h < shape.heads; ++h) alone.push_back({r, 1, h, 1, 0, chunks, -1});
        }
        const std::vector<float> got = queries.Run(kernels(), whole);
        for (const int r : {0, rows / 2, rows - 1}) {
          for (const int h : {0, shape.heads - 1}) {
            const std::vector<double> want = queries.Expected(r, h);
            for (size_t d = 0; d < want.size(); ++d) {
              ASSERT_NEAR(got[queries.At(r, h) + d], want[d], 5e-5) << r << ", " << h << ", " << d;
            }
          }
        }
        const size_t bytes = got.size() * sizeof(float);
        ASSERT_EQ(0, std::memcmp(queries.Run(kernels(), alone).data(), got.data(), bytes));
        ASSERT_EQ(0, std::memcmp(queries.Run(kernels(), pieces, merges).data(), got.data(), bytes));
      }
    }
  }
}

TEST_P(AttentionConformance, AKeyOrValueThatIsNotFiniteStaysVisible) {
  const Shape shape = {4, 2, 64};
  constexpr int kLast = 299;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const Format& format : kFormats) {
    for (const int position : {0, 70, kLast}) {
      for (const bool is_v : {false, true}) {
        for (const float value : {nan, infinity}) {
          SCOPED_TRACE(std::string(format.name) + ", position " + std::to_string(position) +
                       (is_v ? ", V" : ", K"));
          // An infinite key may also make a score of minus infinity: a weight of 0.
          if (!is_v && value == infinity && format.wide != KvWide::kInt8) continue;
          const Pages::Broken broken{position, is_v, 0, 3, value};
          const Pages pages(LayoutOf(shape, format), kLast + 1, kernels(), 4, &broken);
          const Queries queries(pages, shape.heads, kLast, 3);
          const int row = queries.rows - 1;
          const std::vector<float> out = queries.Run(
              kernels(),
              {{row, 1, 0, 2, 0, queries.chunks, -1}, {row, 1, 2, 2, 0, queries.chunks, -1}});
          for (int h = 0; h < shape.heads; ++h) {
            for (int d = 0; d < shape.head_dim; ++d) {
              // Of V only one dimension is broken, unless it shares a scale or a rotation.
              const bool alone = is_v && !pages.kv.NeedsStore();
              const bool expected = h < 2 && (!alone || d == 3);
              ASSERT_EQ(std::isfinite(out[queries.At(row, h) + static_cast<size_t>(d)]), !expected)
                  << h << ", " << d;
            }
          }
        }
      }
    }
  }
}

COGUMI_EVERY_TIER(AttentionConformance);

}  // namespace
}  // namespace cogumi
