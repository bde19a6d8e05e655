// Drafts by a second model with the same vocabulary, smaller than the one that verifies.
//
// It has its own KV cache with its own byte budget and runs all sequences of a step together, a
// pass a token. Which tokens its cache holds is compared with the sequence at every call: what was
// rejected is cut off, what is missing is computed first, at most a chunk a step, so that a long
// prompt does not hold up the others; such a sequence gets its drafts a few steps later. When the
// budget is used up, the sequence that was drafted for longest ago gives its memory back.
//
// A token is chosen with the sequence's own sampler and the draw of its position: so where the two
// models agree on the distribution they agree on the token, at any temperature.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/decode/drafter.h"
#include "engine/memory/kv_cache.h"
#include "engine/model/model.h"

namespace cogumi {

class DraftModelDrafter : public Drafter {
 public:
  // `model` was loaded with max_rows >= chunk and max_logit_rows >= sequences, of which one call
  // has no more. Errors: RESOURCE_EXHAUSTED when `kv_bytes` hold no page, naming draft_kv_bytes.
  static absl::StatusOr<std::unique_ptr<DraftModelDrafter>> Create(std::unique_ptr<Model> model,
                                                                   int64_t kv_bytes, int32_t chunk);

  int32_t Propose(std::span<DraftOrder> orders) override;
  int32_t Behind(const DraftContext& context) const override;
  void Forget(uint64_t sequence) override;

  const KvCache& cache() const { return *cache_; }

 private:
  struct State {
    std::vector<TokenId> tokens;  // whose keys and values the cache has
    KvSequence kv;
    int64_t used = 0;  // call of Propose
  };
  // A sequence in the pass that is computed.
  struct Active {
    DraftOrder* order = nullptr;
    State* state = nullptr;
    bool drafts = false;  // else it only catches up
  };

  DraftModelDrafter(std::unique_ptr<Model> model, std::unique_ptr<KvCache> cache, int32_t chunk);

  // Adds the order's first rows to the plan; false when there is no room for any.
  bool Begin(DraftOrder& order, int32_t& rows_left);
  bool Extend(State& state, int32_t length);
  void AddRow(const DraftOrder& order, State& state, TokenId token);
  // Asks for the logits of the plan's last row.
  void WantLogits(const DraftOrder& order);
  // Computes the plan and takes one token for every sequence that drafts.
  bool Pass();
  int32_t Common(const State& state, const DraftContext& context) const;

  const std::unique_ptr<Model> model_;
  const std::unique_ptr<KvCache> cache_;
  const int32_t chunk_;
  std::unordered_map<uint64_t, State> states_;
  int64_t calls_ = 0;

  // Of a call.
  StepPlan plan_;
  std::vector<Active> active_;
  SamplerScratch scratch_;
};

}  // namespace cogumi
