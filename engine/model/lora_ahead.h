// Fetches early what a thread will read of the adapters' weights: short stretches that no hardware
// prefetcher sees in time. At rank 8 and batch 1 a step becomes 3 % shorter
// (engine/kernels/README.md, "Adapters").
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "engine/kernels/lora.h"

namespace cogumi {

inline constexpr size_t kCacheLine = 64;

// Fetches the B of a linear's panel: of the first that a thread will compute, behind which every
// panel's product fetches the next one's.
inline void FetchLoraPanel(const LoraSlots& lora, LlamaLinear linear, int panel) {
  for (int i = 0; i < lora.run_count; ++i) {
    const LoraLayer::Expand& e = lora.runs[i].layers[lora.layer].expand[static_cast<int>(linear)];
    const size_t bytes = static_cast<size_t>(e.rank) * kPanelRows * LoraValueBytes(lora.format);
    const uint8_t* b = e.b + static_cast<size_t>(panel) * bytes;
    for (size_t at = 0; at < bytes; at += kCacheLine) __builtin_prefetch(b + at);
  }
}

// The thread's share of the next A, piece by piece beside the product before it.
class LoraAhead {
 public:
  // The share `part` of `parts` of the ranks of `group` in `layer`, with so many inputs, in about
  // so many pieces.
  LoraAhead(const LoraSlots& lora, int layer, LoraGroup group, int inputs, int part, int parts,
            int pieces)
      : lora_(lora),
        layer_(layer),
        group_(group),
        stride_(static_cast<size_t>(LoraStride(inputs)) * LoraValueBytes(lora.format)),
        part_(part),
        parts_(parts),
        pieces_(std::max(1, pieces)) {}

  // The next piece.
  void Fetch() {
    if (piece_ >= pieces_) return;
    for (int i = 0; i < lora_.run_count; ++i) {
      const LoraLayer::Shrink& shrink =
          lora_.runs[i].layers[layer_].shrink[static_cast<int>(group_)];
      const LoraRanks ranks = ShareOfRanks(shrink.ranks, part_, parts_);
      const size_t lines =
          (static_cast<size_t>(ranks.end - ranks.begin) * stride_ + kCacheLine - 1) / kCacheLine;
      const uint8_t* a = shrink.a + static_cast<size_t>(ranks.begin) * stride_;
      const size_t end = lines * static_cast<size_t>(piece_ + 1) / static_cast<size_t>(pieces_);
      for (size_t at = lines * static_cast<size_t>(piece_) / static_cast<size_t>(pieces_); at < end;
           ++at) {
        __builtin_prefetch(a + at * kCacheLine, 0, 2);
      }
    }
    ++piece_;
  }

 private:
  const LoraSlots& lora_;
  const int layer_;
  const LoraGroup group_;
  const size_t stride_;  // bytes of a rank
  const int part_, parts_, pieces_;
  int piece_ = 0;
};

}  // namespace cogumi
