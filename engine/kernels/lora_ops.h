// Shrink and expand of lora.h, composed once for every tier from
//
//   T::ShrinkBlock<R, K>(x, inputs, a, scale, values)   R slots x K ranks
//   T::ExpandRows<R>(values, rank, b, tile)             R slots of a tile
//
// whose sums run in an order that does not depend on R and K. `a` and `b` are uint16_t (binary16)
// or int8_t.
#pragma once

#include "engine/kernels/lora.h"

namespace cogumi {
namespace {

template <class T>
struct LoraOps {
  static constexpr int kBlock = kLoraRankBlock;  // slots and ranks at a time

  static void Shrink(const LoraShrinkArgs& args, int slot_begin, int slot_end) {
    if (args.lora->format == LoraFormat::kInt8) {
      ShrinkSlots<int8_t>(args, slot_begin, slot_end);
    } else {
      ShrinkSlots<uint16_t>(args, slot_begin, slot_end);
    }
  }

  // Adds B times the values of slots [slot, slot + n) to a tile of the linear's panel.
  static void Expand(const LoraSlots& lora, LlamaLinear linear, int panel, int panels, int slot,
                     int n, float* tile) {
    if (lora.shrunk != nullptr) lora.shrunk->Await(lora.awaited);
    for (int r = 0; r < n;) {
      const LoraLayer* layers = lora.adapters[slot + r];
      int end = r + 1;
      while (end < n && lora.adapters[slot + end] == layers) ++end;
      if (layers != nullptr) {
        const LoraLayer::Expand& e = layers[lora.layer].expand[static_cast<int>(linear)];
        if (e.rank > 0 && lora.format == LoraFormat::kInt8) {
          ExpandRun<int8_t>(lora, e, panel, panels, slot, r, end, tile);
        } else if (e.rank > 0) {
          ExpandRun<uint16_t>(lora, e, panel, panels, slot, r, end, tile);
        }
      }
      r = end;
    }
  }

 private:
  template <class Value>
  static void ShrinkSlots(const LoraShrinkArgs& args, int slot_begin, int slot_end) {
    const LoraSlots& lora = *args.lora;
    for (int i = 0; i < lora.run_count; ++i) {
      const LoraRun& run = lora.runs[i];
      const LoraLayer::Shrink& shrink = run.layers[lora.layer].shrink[static_cast<int>(args.group)];
      const int begin = slot_begin > run.first ? slot_begin : run.first;
      const int run_end = run.first + run.count;
      const int end = slot_end < run_end ? slot_end : run_end;
      const LoraRanks share = ShareOfRanks(shrink.ranks, args.part, args.parts);
      for (int slot = begin; slot < end; slot += kBlock) {
        const int slots = end - slot < kBlock ? end - slot : kBlock;
        for (int rank = share.begin; rank < share.end; rank += kBlock) {
          const int ranks = share.end - rank < kBlock ? share.end - rank : kBlock;
          ShrinkItem<Value>(args, shrink, slot, slots, rank, ranks);
        }
      }
    }
  }

  template <class Value>
  static void ShrinkItem(const LoraShrinkArgs& args, const LoraLayer::Shrink& shrink, int slot,
                         int slots, int rank, int ranks) {
    const size_t inputs = static_cast<size_t>(args.inputs);
    const size_t a_stride = static_cast<size_t>(LoraStride(args.inputs));
    const float* x = args.x + static_cast<size_t>(slot) * inputs;
    const Value* a =
        reinterpret_cast<const Value*>(shrink.a) + static_cast<size_t>(rank) * a_stride;
    const float* scale = shrink.scale + rank;
    float* values = args.lora->values + static_cast<size_t>(slot) * kLoraValues + rank;
    if (slots == kBlock && ranks == kBlock) {
      return T::template ShrinkBlock<kBlock, kBlock>(x, args.inputs, a, scale, values);
    }
    for (int r = 0; r < slots; ++r, x += inputs, values += kLoraValues) {
      if (ranks == kBlock) {
        T::template ShrinkBlock<1, kBlock>(x, args.inputs, a, scale, values);
        continue;
      }
      for (int k = 0; k < ranks; ++k) {
        T::template ShrinkBlock<1, 1>(x, args.inputs, a + static_cast<size_t>(k) * a_stride,
                                      scale + k, values + k);
      }
    }
  }

  template <class Value>
  static void ExpandRun(const LoraSlots& lora, const LoraLayer::Expand& e, int panel, int panels,
                        int slot, int begin, int end, float* tile) {
    const size_t panel_values = static_cast<size_t>(e.rank) * kPanelRows;
    const Value* b =
        reinterpret_cast<const Value*>(e.b) + static_cast<size_t>(panel) * panel_values;
    const float* values = lora.values + static_cast<size_t>(slot) * kLoraValues + e.first;
    int r = begin;
    for (; r + kBlock <= end; r += kBlock) {
      T::template ExpandRows<kBlock>(values + static_cast<size_t>(r) * kLoraValues, e.rank, b,
                                     tile + r * kPanelRows);
    }
    for (; r < end; ++r) {
      T::template ExpandRows<1>(values + static_cast<size_t>(r) * kLoraValues, e.rank, b,
                                tile + r * kPanelRows);
    }
    // The next panel's B is a short stretch that no hardware prefetcher sees in time beside the
    // long stream of the weights.
    if (panel + 1 == panels) return;
    constexpr size_t kLine = 64 / sizeof(Value);
    for (size_t i = 0; i < panel_values; i += kLine) __builtin_prefetch(b + panel_values + i);
  }
};

}  // namespace
}  // namespace cogumi
