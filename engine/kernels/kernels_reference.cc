// The reference: simple loops, any x86-64, every format, float32 or quantised activations.
#include <cmath>
#include <cstring>

#include "engine/core/half.h"
#include "engine/kernels/attention.h"
#include "engine/kernels/fused_ops.h"
#include "engine/kernels/registry.h"

namespace cogumi {
namespace {

struct HalfConversion {
  static float HalfValue(uint16_t bits) { return HalfToFloat(bits); }
  static uint16_t HalfOf(float x) { return FloatToHalf(x); }
};

// Attention element by element, whatever form a page has.
struct ReferenceAttention {
  struct Tile {
    Tile(const PagedAttentionArgs& args, const TileQueries& tile) : a(args), queries(tile) {}

    void Chunk(int chunk, float* results, size_t stride) const {
      const size_t dim = a.kv.Dim();
      for (int i = 0; i < queries.count; ++i) {
        const RowContext& context = a.context[queries.Row(i)];
        const int head = queries.Head(i);
        const int kv_head = head / (a.heads / a.kv.kv_heads);
        const float* q = a.q + (static_cast<size_t>(queries.Row(i)) * static_cast<size_t>(a.heads) +
                                static_cast<size_t>(head)) *
                                   dim;
        float turned[kMaxHeadDim];
        std::memcpy(turned, q, dim * sizeof(float));
        if (a.kv.rotated_k) Hadamard(turned, a.kv.head_dim);
        float* result = results + static_cast<size_t>(i) * stride;
        std::memset(result, 0, stride * sizeof(float));
        const int first = chunk * kAttentionChunk;
        const int seen = context.position + 1 - first;
        const int n = seen < kAttentionChunk ? seen : kAttentionChunk;
        float score[kAttentionChunk];
        float largest = -INFINITY;
        for (int k = 0; k < n; ++k) {
          score[k] = 0;
          const float* query = Narrow(context, first + k) ? q : turned;
          for (size_t d = 0; d < dim; ++d) {
            score[k] += query[d] * Element(context, first + k, kv_head, d, false);
          }
          largest = std::fmax(largest, score[k]);
        }
        result[0] = largest;
        for (int k = 0; k < n; ++k) {
          const float weight = std::exp(score[k] - largest);
          result[1] += weight;
          for (size_t d = 0; d < dim; ++d) {
            result[kPart + d] += weight * Element(context, first + k, kv_head, d, true);
          }
        }
      }
    }

    bool Narrow(const RowContext& context, int position) const {
      return a.kv.narrow != KvNarrow::kNone && SeesNarrow(context.position, position / 64);
    }

    // Of K or V at a position as the query sees it.
    float Element(const RowContext& context, int position, int kv_head, size_t d, bool is_v) const {
      const KvLayout& kv = a.kv;
      const KvPageView& page = context.pages[position / 64];
      const size_t slot = static_cast<size_t>(position % 64);
      const size_t index = is_v ? slot * kv.Dim() + d : d * 64 + slot;
      if (!Narrow(context, position)) {
        const std::byte* base = page.wide + kv.WideOffset(kv_head);
        const std::byte* data = base + (is_v ? kv.WideV() : 0);
        if (kv.wide == KvWide::kF32) return reinterpret_cast<const float*>(data)[index];
        if (kv.wide == KvWide::kF16) {
          return HalfToFloat(reinterpret_cast<const uint16_t*>(data)[index]);
        }
        const float* scales = reinterpret_cast<const float*>(base + kv.WideScales());
        return scales[is_v ? 64 + slot : slot] *
               static_cast<float>(reinterpret_cast<const int8_t*>(data)[index]);
      }
      const std::byte* base = page.narrow + kv.NarrowOffset(kv_head);
      const uint8_t* codes = reinterpret_cast<const uint8_t*>(base + (is_v ? kv.NarrowV() : 0));
      const uint16_t* scales = reinterpret_cast<const uint16_t*>(
          base + (is_v ? kv.NarrowVParameters() : kv.NarrowParameters()));
      const uint16_t* minimums = scales + (is_v ? 64 * kv.Groups() : kv.Dim());
      const size_t parameter = is_v ? d / 64 * 64 + slot : d;
      int code;
      if (!is_v && kv.narrow == KvNarrow::kK8V4) {
        code = codes[index];
      } else {
        const NibblePlace at = is_v ? NibbleAt(slot, d, kv.Groups()) : NibbleAt(d, slot, 1);
        code = codes[at.byte] >> at.shift & 15;
      }
      return HalfToFloat(scales[parameter]) * static_cast<float>(code) +
             HalfToFloat(minimums[parameter]);
    }

    const PagedAttentionArgs& a;
    TileQueries queries;
  };
};

struct Reference {
  static constexpr VocabularyOps kVocabulary = {BlockMaximaReference, SoftmaxWeightsReference};
  using Store = KvStore<HalfConversion>;
  using Attend = Attention<ReferenceAttention>;

  static float SumOfSquares(const float* x, int n) {
    double sum = 0;
    for (int i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    return static_cast<float>(sum);
  }

  static void StoreBlock(Activations& a, int block, int slot, const float* v, int n) {
    if (a.want_f32) {
      std::memcpy(
          a.f32 + static_cast<size_t>(slot) * static_cast<size_t>(a.inputs) + block * kBlockInputs,
          v, static_cast<size_t>(n) * sizeof(float));
    }
    if (!a.want_quantised) return;
    uint32_t largest = 0;
    for (int i = 0; i < n; ++i) {
      const uint32_t bits = __builtin_bit_cast(uint32_t, std::fabs(v[i]));
      largest = bits > largest ? bits : largest;
    }
    const bool wide = a.Wide(slot);
    const BlockScale block_scale = ScaleOfBlock(wide, largest);
    int8_t* codes = a.Codes(block, slot);
    int sum = 0;
    int half_sum = 0;
    for (int i = 0; i < kBlockInputs; ++i) {
      const int code = i < n && block_scale.finite
                           ? static_cast<int>(std::nearbyint(v[i] * block_scale.inverse))
                           : 0;
      if (wide) {
        const int high = (code + 128) >> 8;
        codes[i] = static_cast<int8_t>(high);
        codes[32 + i] = static_cast<int8_t>(code - 256 * high);
      } else {
        codes[i] = static_cast<int8_t>(code);
      }
      sum += code;
      if (i < 16) half_sum += code;
    }
    const size_t at = a.At(block, slot);
    a.scale[at] = block_scale.scale;
    a.scaled_sum[at] = a.scale[at] * static_cast<float>(sum);
    a.sum[at] = sum;
    a.half_sum[at] = half_sum;
  }

  static void ToHalf(const float* v, uint16_t* out) {
    for (int i = 0; i < kPanelRows; ++i) out[i] = FloatToHalf(v[i]);
  }

  // The weights of a panel's record as codes [32 inputs][32 rows]; `coarse`: of a split matrix
  // without their lower bits.
  static void Codes(const PackedMatrix& w, int panel, size_t block, bool coarse, int32_t* codes) {
    const WeightFormat& f = w.format;
    const uint8_t* record = w.Panel(panel) + block * f.RecordBytes();
    const uint8_t* masks = f.split ? w.Masks(panel) + block * kMaskBytes : nullptr;
    const uint8_t* fine = f.split ? w.Fine(panel) + block * kFineBytes : nullptr;
    for (int i = 0; i < kBlockInputs; ++i) {
      const int tile = i / 4 * 64;
      for (int r = 0; r < kPanelRows; ++r) {
        const int byte = 4 * (r % 16) + i % 4;
        const int shift = r < 16 ? 0 : 4;
        int code;
        if (f.bits == 4 || f.split) {
          code = record[tile + byte] >> shift & 15;
        } else {
          code = record[tile + byte + r / 16 * 512];
        }
        if (f.split && coarse) {
          const int mask = masks[r / 16 * 64 + i / 4 * 8 + byte / 8];
          code = code << 4 | (mask >> byte % 8 & 1) << 3;
        } else if (f.split) {
          code = code << 4 | (fine[tile + byte] >> shift & 15);
        }
        codes[i * 32 + r] = code;
      }
    }
  }

  static void Scales(const WeightFormat& f, const uint8_t* from, float* scales) {
    for (int i = 0; i < 32 * (32 / f.group); ++i) {
      if (f.f32_scales) {
        std::memcpy(scales + i, from + 4 * i, 4);
      } else {
        uint16_t half;
        std::memcpy(&half, from + 2 * i, 2);
        scales[i] = HalfToFloat(half);
      }
    }
  }

  static void MatmulQuantised(const PackedMatrix& w, int panel, const Activations& a, int slot,
                              int n, float* tile, bool coarse = false) {
    const WeightFormat& f = w.format;
    const int zero = coarse ? kCoarseZero : f.zero;
    const bool wide = a.Wide(slot);
    int32_t codes[32 * 32];
    float scale[64];
    float minimum[64] = {};
    const uint8_t* record = w.Panel(panel);
    const int blocks = static_cast<int>(coarse ? w.CoarseBlocks() : w.Blocks());
    for (int b = 0; b < blocks; ++b, record += f.RecordBytes()) {
      Codes(w, panel, static_cast<size_t>(b), coarse, codes);
      Scales(f, record + f.TileBytes(), scale);
      if (f.has_minimum) Scales(f, record + f.TileBytes() + f.ScaleBytes(), minimum);
      for (int c = 0; c < n; ++c) {
        const int8_t* x = a.Codes(b, slot + c);
        const float x_scale = a.scale[a.At(b, slot + c)];
        for (int g = 0; g < 32 / f.group; ++g) {
          int32_t dot[32] = {};
          int32_t sum = 0;
          for (int i = g * f.group; i < (g + 1) * f.group; ++i) {
            const int code = wide ? 256 * x[i] + x[32 + i] : x[i];
            sum += code;
            for (int r = 0; r < 32; ++r) dot[r] += code * codes[i * 32 + r];
          }
          for (int r = 0; r < 32; ++r) {
            const float whole = static_cast<float>(dot[r] - zero * sum) * x_scale;
            float& out = tile[c * 32 + r];
            out += whole * scale[g * 32 + r];
            if (f.has_minimum) out += minimum[g * 32 + r] * (x_scale * static_cast<float>(sum));
          }
        }
      }
    }
  }

  // Float32 activations against dequantised weights.
  static void MatmulFloat(const PackedMatrix& w, int panel, const Activations& a, int slot, int n,
                          float* tile) {
    const WeightFormat& f = w.format;
    const uint8_t* data = w.Panel(panel);
    int32_t codes[32 * 32];
    float scale[64] = {};
    float minimum[64] = {};
    float weights[32 * 32] = {};
    for (int k0 = 0; k0 < w.inputs; k0 += 32) {
      const int m = w.inputs - k0 < 32 ? w.inputs - k0 : 32;
      if (f.kind == WeightKind::kQuantised) {
        Codes(w, panel, static_cast<size_t>(k0 / 32), false, codes);
        Scales(f, data + f.TileBytes(), scale);
        if (f.has_minimum) Scales(f, data + f.TileBytes() + f.ScaleBytes(), minimum);
        data += f.RecordBytes();
        for (int i = 0; i < 32; ++i) {
          const int g = i / f.group;
          for (int r = 0; r < 32; ++r) {
            weights[i * 32 + r] =
                scale[g * 32 + r] * static_cast<float>(codes[i * 32 + r] - f.zero) +
                minimum[g * 32 + r];
          }
        }
      } else {
        for (int i = 0; i < m * 32; ++i) {
          if (f.kind == WeightKind::kF32) {
            std::memcpy(weights + i, data + 4 * i, 4);
          } else {
            uint16_t bits;
            std::memcpy(&bits, data + 2 * i, 2);
            weights[i] = f.kind == WeightKind::kF16 ? HalfToFloat(bits) : Bf16ToFloat(bits);
          }
        }
        data += static_cast<size_t>(m) * 32 * (f.kind == WeightKind::kF32 ? 4 : 2);
      }
      for (int c = 0; c < n; ++c) {
        const float* x = a.f32 + static_cast<size_t>(slot + c) * static_cast<size_t>(a.inputs) + k0;
        float* out = tile + c * 32;
        for (int i = 0; i < m; ++i) {
          for (int r = 0; r < 32; ++r) out[r] += x[i] * weights[i * 32 + r];
        }
      }
    }
  }

  static void MatmulTile(const PackedMatrix& w, int panel, const Activations& a, int slot, int n,
                         float* tile) {
    std::memset(tile, 0, static_cast<size_t>(n) * 32 * sizeof(float));
    if (w.format.kind == WeightKind::kQuantised && a.want_quantised) {
      MatmulQuantised(w, panel, a, slot, n, tile);
    } else {
      MatmulFloat(w, panel, a, slot, n, tile);
    }
  }

  static void ScanTile(const PackedMatrix& w, int panel, const Activations& a, int slot, int n,
                       float* tile) {
    std::memset(tile, 0, static_cast<size_t>(n) * 32 * sizeof(float));
    MatmulQuantised(w, panel, a, slot, n, tile, /*coarse=*/true);
  }

  static void Reach(const float* values, const float* norms, float spread, int count, float* best,
                    float* upper) {
    *best = -INFINITY;
    *upper = -INFINITY;
    for (int i = 0; i < count; ++i) {
      *best = std::fmax(*best, values[i]);
      *upper = std::fmax(*upper, values[i] + spread * norms[i]);
    }
  }

  static float LoraValue(uint16_t half) { return HalfToFloat(half); }
  static float LoraValue(int8_t code) { return code; }

  template <int kRows, int kRanks, class Value>
  static void ShrinkBlock(const float* x, int inputs, const Value* a, const float* scale,
                          float* values) {
    const size_t stride = static_cast<size_t>(inputs);
    const size_t a_stride = static_cast<size_t>(LoraStride(inputs));
    for (size_t r = 0; r < kRows; ++r) {
      for (size_t k = 0; k < kRanks; ++k) {
        double sum = 0;
        for (size_t i = 0; i < stride; ++i) {
          sum += static_cast<double>(LoraValue(a[k * a_stride + i])) *
                 static_cast<double>(x[r * stride + i]);
        }
        values[r * kLoraValues + k] = scale[k] * static_cast<float>(sum);
      }
    }
  }

  template <int kRows, class Value>
  static void ExpandRows(const float* values, int rank, const Value* b, float* tile) {
    for (size_t r = 0; r < kRows; ++r) {
      for (int i = 0; i < kPanelRows; ++i) {
        double sum = 0;
        for (int k = 0; k < rank; ++k) {
          sum += static_cast<double>(LoraValue(b[k * kPanelRows + i])) *
                 static_cast<double>(values[r * kLoraValues + static_cast<size_t>(k)]);
        }
        tile[r * kPanelRows + static_cast<size_t>(i)] += static_cast<float>(sum);
      }
    }
  }

  static void Swiglu(const float* gate, const float* up, float* out) {
    for (int i = 0; i < kPanelRows; ++i) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
  }

  static LogitPartial Summarise(const float* logits, int first, int count) {
    LogitPartial s;
    s.max = -INFINITY;
    s.second = -INFINITY;
    s.argmax = first;
    for (int i = first; i < first + count; ++i) {
      s.finite = s.finite && std::isfinite(logits[i]);
      if (logits[i] > s.max) {
        s.second = s.max;
        s.max = logits[i];
        s.argmax = i;
      } else if (logits[i] > s.second) {
        s.second = logits[i];
      }
    }
    double sum = 0;
    double sum_x = 0;
    for (int i = first; i < first + count; ++i) {
      const double x = static_cast<double>(logits[i]) - static_cast<double>(s.max);
      const double e = std::exp(x);
      sum += e;
      sum_x += e * x;
    }
    s.sum_exp = static_cast<float>(sum);
    s.sum_exp_x = static_cast<float>(sum_x);
    return s;
  }
};

constexpr KernelTable kTable = FusedOps<Reference>::Table("reference");

}  // namespace

const KernelTable& ReferenceKernels() { return kTable; }

}  // namespace cogumi
