// The fused operations, composed once for every tier from a tier's primitives:
//
//   T::StoreBlock(act, block, slot, v, n)    quantise and/or keep n <= 32 values of a slot
//   T::SumOfSquares(x, n)                    in an order that depends on n only
//   T::MatmulTile(w, panel, act, slot, n, tile)
//                                            tile[n][32] = 32 outputs of n <= 64 slots of a kind
//   T::ScanTile(w, panel, act, slot, n, tile)
//                                            as MatmulTile, from the coarse part of a split matrix
//   T::Reach(values, norms, spread, count, best, upper)
//                                            largest of count <= 32 values, and of values + spread
//                                            * norms; anything when one is NaN
//   T::ShrinkBlock, T::ExpandRows            see lora_ops.h
//   T::ToHalf(v, out)                        32 floats -> binary16
//   T::Swiglu(gate, up, out)                 32 values
//   T::Store, T::Attend                      see kv_store.h and attention.h
//   T::Summarise(logits, first, count)
//   T::kVocabulary                           the passes of sampling
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "engine/kernels/lora_ops.h"
#include "engine/kernels/ops.h"

namespace cogumi {
namespace {

// Codes of a block fill this range. 32512 = 127 * 256: the high plane stays within int8 after
// rounding up the low one.
inline float LargestCode(bool wide) { return wide ? 32512.0f : 127.0f; }

// Scale and factor of a block whose largest magnitude has the bit pattern `bits`: of floats without
// their sign the integer order is the order of the values, with infinity and NaN above all.
// Where one value is not finite the scale is NaN and all codes must be 0, so that the whole product
// becomes NaN instead of a number that hides it. Below `kLeast` the factor would overflow.
struct BlockScale {
  float scale = 0;
  float inverse = 0;
  bool finite = true;
};
inline BlockScale ScaleOfBlock(bool wide, uint32_t bits) {
  constexpr uint32_t kInfinity = 0x7F800000u;
  constexpr float kLeast = 1e-30f;
  if (bits >= kInfinity) return {NAN, 0.0f, false};
  const float largest = __builtin_bit_cast(float, bits);
  const float top = LargestCode(wide);
  return {largest / top, largest > kLeast ? top / largest : 0.0f, true};
}

constexpr int kTileSlots = 64;

template <class T>
struct FusedOps {
  static void NormQuantise(const NormQuantiseArgs& a, int slot_begin, int slot_end) {
    const int n = a.out->inputs;
    alignas(64) float y[kBlockInputs];
    for (int slot = slot_begin; slot < slot_end; ++slot) {
      const float* x = a.x + static_cast<size_t>(a.out->Row(slot)) * a.stride;
      float inverse = 1.0f;
      if (a.weight != nullptr) {
        const float mean = T::SumOfSquares(x, n) / static_cast<float>(n);
        inverse = 1.0f / std::sqrt(mean + a.epsilon);
      }
      for (int i = 0; i < n; i += kBlockInputs) {
        const int m = n - i < kBlockInputs ? n - i : kBlockInputs;
        const float* v = x + i;
        if (a.weight != nullptr) {
          for (int j = 0; j < m; ++j) y[j] = v[j] * inverse * a.weight[i + j];
          v = y;
        }
        T::StoreBlock(*a.out, i / kBlockInputs, slot, v, m);
      }
    }
  }

  // Adds what the adapters of rows [row, row + n) change in a tile.
  static void AddLora(const LoraSlots* lora, LlamaLinear linear, const PackedMatrix& w, int panel,
                      int row, int n, float* tile) {
    if (lora != nullptr) LoraOps<T>::Expand(*lora, linear, panel, w.Panels(), row, n, tile);
  }

  // Rotates the adjacent pairs of `v` = outputs [first, first + 32) of a q or k matrix.
  static void Rope(const QkvRopeAppendArgs& a, int row, int first, int count, float* v) {
    const int half = a.rope_dim / 2;
    const float* cosine = a.cosine + static_cast<size_t>(row) * static_cast<size_t>(half);
    const float* sine = a.sine + static_cast<size_t>(row) * static_cast<size_t>(half);
    int pair = (first % a.kv.head_dim) / 2;
    for (int i = 0; i + 1 < count; i += 2) {
      if (pair < half) {
        const float x = v[i];
        const float y = v[i + 1];
        v[i] = x * cosine[pair] - y * sine[pair];
        v[i + 1] = x * sine[pair] + y * cosine[pair];
      }
      if (++pair == a.kv.head_dim / 2) pair = 0;
    }
  }

  // Writes outputs [first, first + count) of K (or V) of a row into its page, or aside.
  static void AppendKv(const QkvRopeAppendArgs& a, int row, int first, int count, bool is_v,
                       const float* v) {
    if (a.kv.NeedsStore()) {
      const size_t width = static_cast<size_t>(a.kv.kv_heads) * a.kv.Dim();
      std::memcpy(a.kv_rows + (2 * static_cast<size_t>(row) + (is_v ? 1 : 0)) * width +
                      static_cast<size_t>(first),
                  v, static_cast<size_t>(count) * sizeof(float));
      return;
    }
    const RowContext& context = a.context[row];
    const int slot = context.position % 64;
    std::byte* wide = context.pages[context.position / 64].wide;
    alignas(64) uint16_t half[kPanelRows];
    const bool f32 = a.kv.wide == KvWide::kF32;
    if (!f32) T::ToHalf(v, half);
    for (int i = 0; i < count;) {
      const int head = (first + i) / a.kv.head_dim;
      const int d0 = (first + i) % a.kv.head_dim;
      const int run = count - i < a.kv.head_dim - d0 ? count - i : a.kv.head_dim - d0;
      std::byte* base = wide + a.kv.WideOffset(head) + (is_v ? a.kv.WideV() : 0);
      // K is [head_dim][64], V is [64][head_dim].
      const int start = is_v ? slot * a.kv.head_dim + d0 : d0 * 64 + slot;
      const int step = is_v ? 1 : 64;
      if (f32) {
        float* out = reinterpret_cast<float*>(base) + start;
        for (int j = 0; j < run; ++j) out[j * step] = v[i + j];
      } else {
        uint16_t* out = reinterpret_cast<uint16_t*>(base) + start;
        for (int j = 0; j < run; ++j) out[j * step] = half[i + j];
      }
      i += run;
    }
  }

  static void QkvRopeAppend(const QkvRopeAppendArgs& a, int panel_begin, int panel_end) {
    alignas(64) float tile[kTileSlots * kPanelRows];
    const int q_panels = a.wq->Panels();
    const int k_panels = a.wk->Panels();
    const float scale = 1.0f / std::sqrt(static_cast<float>(a.kv.head_dim));
    for (int p = panel_begin; p < panel_end; ++p) {
      const bool is_q = p < q_panels;
      const bool is_v = p >= q_panels + k_panels;
      const PackedMatrix& w = is_q ? *a.wq : is_v ? *a.wv : *a.wk;
      const int panel = is_q ? p : is_v ? p - q_panels - k_panels : p - q_panels;
      const int first = panel * kPanelRows;
      const int count = w.rows - first < kPanelRows ? w.rows - first : kPanelRows;
      for (int s0 = 0, n; s0 < a.rows; s0 += n) {
        n = a.in->Run(s0, a.rows, kTileSlots);
        T::MatmulTile(w, panel, *a.in, s0, n, tile);
        AddLora(a.lora,
                is_q   ? LlamaLinear::kQ
                : is_v ? LlamaLinear::kV
                       : LlamaLinear::kK,
                w, panel, s0, n, tile);
        for (int r = 0; r < n; ++r) {
          float* v = tile + r * kPanelRows;
          const int row = a.in->Row(s0 + r);
          if (!is_v) Rope(a, row, first, count, v);
          if (is_q) {
            float* q = a.q + static_cast<size_t>(row) * static_cast<size_t>(w.rows) + first;
            for (int i = 0; i < count; ++i) q[i] = v[i] * scale;
          } else {
            AppendKv(a, row, first, count, is_v, v);
          }
        }
      }
    }
  }

  static void ProjectResidual(const ProjectResidualArgs& a, int panel_begin, int panel_end) {
    alignas(64) float tile[kTileSlots * kPanelRows];
    for (int p = panel_begin; p < panel_end; ++p) {
      const int first = p * kPanelRows;
      const int count = a.w->rows - first < kPanelRows ? a.w->rows - first : kPanelRows;
      for (int s0 = 0, n; s0 < a.rows; s0 += n) {
        n = a.in->Run(s0, a.rows, kTileSlots);
        T::MatmulTile(*a.w, p, *a.in, s0, n, tile);
        AddLora(a.lora, a.linear, *a.w, p, s0, n, tile);
        for (int r = 0; r < n; ++r) {
          const size_t row = static_cast<size_t>(a.in->Row(s0 + r));
          float* x = a.x + row * static_cast<size_t>(a.w->rows) + first;
          for (int i = 0; i < count; ++i) x[i] += tile[r * kPanelRows + i];
        }
      }
    }
  }

  static void GateUpSwiglu(const GateUpSwigluArgs& a, int panel_begin, int panel_end) {
    alignas(64) float gate[kTileSlots * kPanelRows];
    alignas(64) float up[kTileSlots * kPanelRows];
    for (int p = panel_begin; p < panel_end; ++p) {
      const int first = p * kPanelRows;
      const int count = a.gate->rows - first < kPanelRows ? a.gate->rows - first : kPanelRows;
      for (int s0 = 0, n; s0 < a.rows; s0 += n) {
        n = a.in->Run(s0, a.rows, kTileSlots);
        T::MatmulTile(*a.gate, p, *a.in, s0, n, gate);
        T::MatmulTile(*a.up, p, *a.in, s0, n, up);
        AddLora(a.lora, LlamaLinear::kGate, *a.gate, p, s0, n, gate);
        AddLora(a.lora, LlamaLinear::kUp, *a.up, p, s0, n, up);
        for (int r = 0; r < n; ++r) {
          float* v = gate + r * kPanelRows;
          T::Swiglu(v, up + r * kPanelRows, v);
          T::StoreBlock(*a.out, p, s0 + r, v, count);
        }
      }
    }
  }

  // Writes tiles of panels [panel_begin, panel_end), each made by `compute`, into rows of logits;
  // `seen` is told the panel, the slot, the values and how many there are.
  template <class Compute, class Seen>
  static void WriteLogits(const HeadArgs& a, int panel_begin, int panel_end, const Compute& compute,
                          const Seen& seen) {
    alignas(64) float tile[kTileSlots * kPanelRows];
    for (int p = panel_begin; p < panel_end; ++p) {
      const int first = p * kPanelRows;
      const int count = a.w->rows - first < kPanelRows ? a.w->rows - first : kPanelRows;
      for (int s0 = a.first, n; s0 < a.first + a.rows; s0 += n) {
        n = a.in->Run(s0, a.first + a.rows, kTileSlots);
        compute(*a.w, p, *a.in, s0, n, tile);
        for (int r = 0; r < n; ++r) {
          const float* values = tile + r * kPanelRows;
          seen(p, s0 + r, values, count);
          std::memcpy(
              a.logits + static_cast<size_t>(s0 + r) * static_cast<size_t>(a.w->rows) + first,
              values, static_cast<size_t>(count) * sizeof(float));
        }
      }
    }
  }

  static void Head(const HeadArgs& a, int panel_begin, int panel_end) {
    WriteLogits(a, panel_begin, panel_end, T::MatmulTile, [](int, int, const float*, int) {});
  }

  static void ScanHead(const ScanHeadArgs& a, int panel_begin, int panel_end) {
    const HeadArgs head{a.w, a.in, a.rows, a.logits};
    WriteLogits(head, panel_begin, panel_end, T::ScanTile,
                [&a](int panel, int slot, const float* values, int count) {
                  const size_t row = static_cast<size_t>(slot);
                  const size_t at = static_cast<size_t>(panel) * static_cast<size_t>(a.rows) + row;
                  T::Reach(values, a.w->Norms(panel), a.spread[row], count, a.best + at,
                           a.upper + at);
                });
  }

  static constexpr KernelTable Table(const char* name) {
    return {name,
            NormQuantise,
            LoraOps<T>::Shrink,
            QkvRopeAppend,
            T::Store::Store,
            T::Attend::Attend,
            T::Attend::Merge,
            ProjectResidual,
            GateUpSwiglu,
            Head,
            ScanHead,
            T::Summarise,
            T::kVocabulary};
  }
};

}  // namespace
}  // namespace cogumi
