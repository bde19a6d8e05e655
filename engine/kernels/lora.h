// Low-rank differences of a layer's linears (LoRA): y += B (scale * A x), row by row. Rows lie in
// the slots of their activations.
//
// Every row of a step may have an adapter of its own, or none. `shrink` computes the short vectors
// scale * A x of all linears that read the same input; `expand` adds B times them to a tile of a
// fused operation, before anything else is done with it. A row's bits depend on its input and its
// adapter alone: every sum runs in a fixed order, however many rows are computed together.
//
// A and B are binary16 or int8 with what fills their range taken out (into `scale`); sums are
// float32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/kernels/arrivals.h"
#include "engine/kernels/packed_matrix.h"

namespace cogumi {

inline constexpr int kMaxLoraRank = 64;

// In the order of the forward pass.
enum class LlamaLinear : uint8_t { kQ, kK, kV, kO, kGate, kUp, kDown };
inline constexpr int kLlamaLinears = 7;

// Linears that read the same input; their A lie behind each other.
enum class LoraGroup : uint8_t { kQkv, kO, kGateUp, kDown };
inline constexpr int kLoraGroups = 4;
// Linears of a group, at most.
inline constexpr int kLoraGroupLinears = 3;

// How A and B are held. kF16 takes a power of two a tensor out, which holds 16-bit files exactly;
// kInt8 a factor a rank, with values off by 0.4 % of a rank's largest, in half the bytes.
enum class LoraFormat : uint8_t { kF16, kInt8 };
inline constexpr size_t LoraValueBytes(LoraFormat format) {
  return format == LoraFormat::kInt8 ? 1 : 2;
}

// One adapter's difference to one layer. A view; the adapter owns the memory.
struct LoraLayer {
  struct Shrink {
    const uint8_t* a = nullptr;    // [ranks][LoraStride(inputs)], the rest of a row is zero
    const float* scale = nullptr;  // [ranks]
    int ranks = 0;                 // of all linears of the group; 0: none is changed
  };
  struct Expand {
    const uint8_t* b = nullptr;  // [panels][rank][32 outputs]
    int rank = 0;                // 0: the linear is as it is
    int first = 0;               // its place among the group's ranks
  };
  Shrink shrink[kLoraGroups];
  Expand expand[kLlamaLinears];
};

inline constexpr int LoraStride(int inputs) { return (inputs + 15) / 16 * 16; }

// Consecutive slots with one adapter.
struct LoraRun {
  int32_t first = 0;
  int32_t count = 0;
  const LoraLayer* layers = nullptr;  // [layers of the model]
};

// The adapters of a step's slots, at one layer.
struct LoraSlots {
  const LoraLayer* const* adapters = nullptr;  // [slots] -> [layers of the model]; null: none
  const LoraRun* runs = nullptr;               // the slots that have one
  int run_count = 0;
  int layer = 0;
  LoraFormat format = LoraFormat::kF16;  // of all adapters
  // What shrink has computed of the group at hand: [slots][kLoraValues]. Threads share the work:
  // complete when `awaited` of them have arrived; null: it is.
  float* values = nullptr;
  const Arrivals* shrunk = nullptr;
  int64_t awaited = 0;
};
inline constexpr size_t kLoraValues = kLoraGroupLinears * kMaxLoraRank;

// Ranks [begin, end) of an adapter's group that one of `parts` callers computes, in whole blocks.
struct LoraRanks {
  int begin;
  int end;
};
inline constexpr int kLoraRankBlock = 4;
inline constexpr LoraRanks ShareOfRanks(int ranks, int part, int parts) {
  const int blocks = (ranks + kLoraRankBlock - 1) / kLoraRankBlock;
  const int end = blocks * (part + 1) / parts * kLoraRankBlock;
  return {blocks * part / parts * kLoraRankBlock, end < ranks ? end : ranks};
}

// values = scale * A x, for the slots that have an adapter.
struct LoraShrinkArgs {
  const LoraSlots* lora = nullptr;
  LoraGroup group = LoraGroup::kQkv;
  const float* x = nullptr;  // [slots][inputs]: the linears' input before it was quantised
  int inputs = 0;
  // Of each adapter's ranks, the caller's share; others compute the rest.
  int part = 0;
  int parts = 1;
};

}  // namespace cogumi
