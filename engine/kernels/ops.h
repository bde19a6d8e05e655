// The fused operations of a transformer layer: plain arguments, one function each per tier.
//
// Every function computes a share of the work (a range of rows, panels or items), so that the
// caller splits it over threads; the arithmetic of an output element never depends on the split,
// on the number of rows, or on its neighbours. Pointers never overlap unless said.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/kernels/activations.h"
#include "engine/kernels/kv_layout.h"
#include "engine/kernels/lora.h"
#include "engine/kernels/packed_matrix.h"
#include "engine/kernels/vocabulary_ops.h"

namespace cogumi {

// Slots of out = RMSNorm(x) * weight of the rows out->Row(slot), in the forms that `out` wants;
// weight null: no norm, x as it is.
struct NormQuantiseArgs {
  const float* x = nullptr;  // [rows][stride]
  size_t stride = 0;
  const float* weight = nullptr;  // [inputs]
  float epsilon = 0;
  Activations* out = nullptr;
};

// Where the keys and values of a row go and which pages it sees.
struct RowContext {
  const KvPageView* pages = nullptr;  // of its sequence
  int32_t position = 0;
};

// q = RoPE(Wq x) * 1/sqrt(head_dim) into `q`; RoPE(Wk x) and Wv x into wide blocks of the cache, or
// into `kv_rows` where the layout wants them to go through StoreKv.
// RoPE rotates adjacent pairs, as GGUF stores llama's rows. Panels: of Wq, then Wk, then Wv.
struct QkvRopeAppendArgs {
  const PackedMatrix* wq = nullptr;
  const PackedMatrix* wk = nullptr;
  const PackedMatrix* wv = nullptr;
  const Activations* in = nullptr;
  int rows = 0;
  float* q = nullptr;                   // [rows][heads * head_dim]
  const RowContext* context = nullptr;  // [rows]
  const float* cosine = nullptr;        // [rows][rope_dim / 2]
  const float* sine = nullptr;
  int rope_dim = 0;
  float* kv_rows = nullptr;  // [rows]{ K [kv_heads * head_dim], V the same }
  KvLayout kv;
  const LoraSlots* lora = nullptr;  // null: no row has an adapter
};

// Rows of a step that belong into one page, and whether its narrow block is to be made after that:
// then the page is full.
struct StoreKvItem {
  KvPageView page;
  int32_t first_row = 0;
  int32_t rows = 0;
  int32_t first_slot = 0;
  bool make_narrow = false;
};

// Work is counted in pairs of item and KV head.
struct StoreKvArgs {
  const float* rows = nullptr;  // as QkvRopeAppendArgs::kv_rows
  const StoreKvItem* items = nullptr;
  KvLayout kv;
};

// Queries: heads of one KV head, of consecutive rows whose positions lie in one page. Keys: chunks
// [chunk_begin, chunk_end). Either all chunks, and the result goes out, or some, and each leaves
// a partial result for MergeAttention.
struct AttentionItem {
  int32_t first_row = 0;
  int32_t rows = 0;
  int32_t first_head = 0;
  int32_t heads = 0;
  int32_t chunk_begin = 0;
  int32_t chunk_end = 0;
  // Slot of chunk 0 of the first query; chunk c of query i has partial + c * rows * heads + i. -1:
  // all chunks are here.
  int32_t partial = -1;
};

// out = softmax(q K) V over keys 0..position; keys in chunks of kAttentionChunk at fixed absolute
// positions, each with its own maximum, merged in order whoever computed them (online softmax,
// Milakov and Gimelshein 2018, arXiv:1805.02867).
inline constexpr int kAttentionChunk = 256;
struct PagedAttentionArgs {
  const float* q = nullptr;  // [rows][heads * head_dim], scaled
  float* out = nullptr;      // [rows][heads * head_dim]
  const RowContext* context = nullptr;
  const AttentionItem* items = nullptr;  // to merge: those with the last chunk of a split
  float* partials = nullptr;             // [slots][AttentionPartialFloats(head_dim)]
  int heads = 0;
  KvLayout kv;
};
inline int AttentionPartialFloats(int head_dim) { return 16 + (head_dim + 63) / 64 * 64; }

// x += W in. x: [rows][W rows].
struct ProjectResidualArgs {
  const PackedMatrix* w = nullptr;
  const Activations* in = nullptr;
  int rows = 0;
  float* x = nullptr;
  LlamaLinear linear = LlamaLinear::kO;  // which one w is: kO or kDown
  const LoraSlots* lora = nullptr;
};

// out = SiLU(Wgate in) * (Wup in), in the forms that `out` wants.
struct GateUpSwigluArgs {
  const PackedMatrix* gate = nullptr;
  const PackedMatrix* up = nullptr;
  const Activations* in = nullptr;
  int rows = 0;
  Activations* out = nullptr;
  const LoraSlots* lora = nullptr;
};

// logits = W in, of slots [first, first + rows). [slots][W rows]
struct HeadArgs {
  const PackedMatrix* w = nullptr;
  const Activations* in = nullptr;
  int rows = 0;
  float* logits = nullptr;
  int first = 0;
};

// Estimates of W in for a split W from its coarse part, and per panel and slot their maximum and
// the largest value that a logit can have. `in` has a block more than W's inputs, those at W's
// heavy inputs again (CertifiedHead::Gather).
struct ScanHeadArgs {
  const PackedMatrix* w = nullptr;
  const Activations* in = nullptr;
  int rows = 0;
  // How far a slot's estimates may be off, per norm of a weight row (PackedMatrix::Norms). [rows]
  const float* spread = nullptr;
  float* logits = nullptr;  // [slots][W rows]
  float* best = nullptr;    // [panels][rows]
  float* upper = nullptr;   // [panels][rows]
};

// Partial statistics of a fixed chunk of a row of logits.
inline constexpr int kSummaryChunk = 2048;
struct LogitPartial {
  float max = 0;
  float second = 0;
  int32_t argmax = 0;
  float sum_exp = 0;    // of exp(x - max)
  float sum_exp_x = 0;  // of exp(x - max) * (x - max)
  bool finite = true;
};

struct KernelTable {
  const char* name;
  void (*norm_quantise)(const NormQuantiseArgs&, int slot_begin, int slot_end);
  void (*lora_shrink)(const LoraShrinkArgs&, int slot_begin, int slot_end);
  void (*qkv_rope_append)(const QkvRopeAppendArgs&, int panel_begin, int panel_end);
  void (*store_kv)(const StoreKvArgs&, int begin, int end);
  void (*paged_attention)(const PagedAttentionArgs&, int item_begin, int item_end);
  void (*merge_attention)(const PagedAttentionArgs&, int item_begin, int item_end);
  void (*project_residual)(const ProjectResidualArgs&, int panel_begin, int panel_end);
  void (*gate_up_swiglu)(const GateUpSwigluArgs&, int panel_begin, int panel_end);
  void (*head)(const HeadArgs&, int panel_begin, int panel_end);
  void (*scan_head)(const ScanHeadArgs&, int panel_begin, int panel_end);
  LogitPartial (*summarise)(const float* logits, int first, int count);
  VocabularyOps vocabulary;  // of sampling
};

}  // namespace cogumi
