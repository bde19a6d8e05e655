// Which rows the next step computes, and what its results mean for each request. Deterministic,
// without threads, clocks or randomness of its own.
//
// Continuous batching: a request joins between steps as soon as a place and its pages are free.
// A step holds one row of every decoding sequence and at most prefill_chunk rows of prompts, in
// order of priority, then arrival; short prompts pass beside a long one. When pages run out, the
// last sequence in that order gives all of its pages back and waits; later its tokens are computed
// again in their old roles, so its answer does not change (preemption by recompute).
//
// A step: Plan, the model's Forward, Sample, Commit. Submit and Cancel may come at any time between
// those calls; together with Plan, Commit and the rest they are serialised by the caller. Sample
// touches only sequences of the plan and needs no lock against Submit, Cancel and Stats.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cogumi/engine.h"
#include "engine/decode/sampler.h"
#include "engine/memory/kv_cache.h"
#include "engine/model/model.h"
#include "engine/model/step_plan.h"
#include "engine/runtime/sequence.h"
#include "engine/tokenizer/tokenizer.h"

namespace cogumi {

struct SchedulerOptions {
  int32_t vocabulary = 0;
  // One sequence of this length must fit into the cache.
  int32_t context_length = 0;
  int32_t max_running = 32;
  int32_t max_queued = 128;
  int32_t prefill_chunk = 256;
  // Rows of logits that scoring may ask for in a step, beside one per running sequence.
  int32_t score_logit_rows = 32;
  std::function<uint64_t()> seed;  // for requests without one; thread-safe
};

// Something to tell a sink: a chunk or the end.
struct Delivery {
  std::shared_ptr<ResponseSink> sink;
  std::optional<Chunk> chunk;
  std::optional<absl::Status> end;
  Completion completion;  // of an end; receipt: seed, template, adapter only
};

class Scheduler {
 public:
  // Cache and tokenizer outlive the scheduler.
  Scheduler(SchedulerOptions options, KvCache* cache, const Tokenizer* tokenizer);

  // Checks a request and builds its sequence; const and thread-safe. Errors: INVALID_ARGUMENT
  // naming the field, OUT_OF_RANGE when prompt and max_tokens exceed the context.
  absl::StatusOr<std::unique_ptr<Sequence>> Prepare(GenerationRequest request,
                                                    std::shared_ptr<ResponseSink> sink) const;
  // RESOURCE_EXHAUSTED when max_running + max_queued requests are here already.
  absl::StatusOr<RequestHandle> Submit(std::unique_ptr<Sequence> sequence, double now);
  // The request ends with CANCELLED at the next Plan. Unknown handles are ignored.
  void Cancel(RequestHandle handle);

  // Ends what was cancelled or is late, admits, and plans a step. Null: nothing to compute. The
  // plan is valid until Commit, which must follow.
  const StepPlan* Plan(double now);
  // After a successful Forward: chooses tokens and describes scored ones.
  void Sample(const Model& model);
  // Takes the results over; `forward` not OK ends every sequence of the plan with INTERNAL.
  void Commit(const absl::Status& forward, double now);

  // Ends everything that is left.
  void EndAll(const absl::Status& status, double now);

  // Moves what is to be told, in order, to the end of `out`.
  void TakeDeliveries(std::vector<Delivery>& out);
  bool Idle() const { return by_handle_.empty(); }
  EngineStats Stats() const;

 private:
  using Sequences = std::vector<std::unique_ptr<Sequence>>;

  void EndLate(Sequences& sequences, double now);
  void PlanDecode();
  void Admit(double now);
  void PlanPrefill();
  // Plans up to `limit` rows of what a sequence still has to compute; how many.
  int32_t PlanPrompt(Sequence& sequence, int32_t limit, int32_t& score_budget);
  void AddRows(Sequence& sequence, int32_t rows, int32_t logits);
  // Room for one more row of running_[index]; false when that sequence itself was preempted.
  bool ExtendByPreempting(size_t index);
  void PreemptLast();
  void CommitSequence(Sequence& sequence, double now);
  void CommitToken(Sequence& sequence, TokenInfo info, double now);
  void SetBytes(TokenInfo& info) const;
  bool Ends(const Sequence& sequence, TokenId id) const;
  // Frees the pages and announces the end; the owner then drops the sequence.
  void End(Sequence& sequence, absl::Status status, double now);
  void DropEnded(Sequences& sequences);

  const SchedulerOptions options_;
  KvCache* const cache_;
  const Tokenizer* const tokenizer_;

  Sequences waiting_;  // in order
  Sequences running_;  // in order
  std::unordered_map<RequestHandle, Sequence*> by_handle_;  // all that have not ended
  RequestHandle next_handle_ = 1;

  StepPlan plan_;
  std::vector<Sequence*> planned_;     // parallel to plan_.sequences
  std::vector<Sequence*> prefilling_;  // reused by PlanPrefill
  double planned_at_ = 0;
  SamplerScratch scratch_;
  std::vector<Delivery> deliveries_;
  EngineStats stats_;
};

}  // namespace cogumi
