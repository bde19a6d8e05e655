// Which rows the next step computes, and what its results mean for each request. Deterministic,
// without threads, clocks or randomness of its own.
//
// Continuous batching: a request joins between steps as soon as a place and its pages are free.
// A step holds one row of every decoding sequence and at most prefill_chunk rows of prompts; short
// prompts pass beside a long one.
//
// Order: higher priorities first. Inside one, the tenant that was given least comes next, then the
// request that came first; the rows of a chunk are shared evenly among tenants. A tenant without a
// place takes one from a tenant with several.
//
// Memory: what was computed is remembered in the prefix index, and requests take from there what
// they begin with. When pages run out, the index forgets first; then a sequence gives its pages
// back and waits, and later its tokens are computed again in their old roles, so that its answer
// does not change (preemption by recompute). Requests with one prompt compute it once: the others
// wait for the first as long as it gets on.
//
// With a speculator a decoding sequence gives the rows of its draft too, all with logits. Each is
// sampled as if it stood alone, with the draw of its position; the draft is kept as far as it is
// what was chosen, and the rest is cut off the cache before it is committed. So drafts change the
// number of steps, never an answer.
//
// A step: Draft (or not), Plan, the model's Forward, Sample, Commit. Submit and Cancel may come at
// any time between those calls; together with Plan, Commit and the rest they are serialised by the
// caller. Draft and Sample touch only running sequences and need no lock against Submit, Cancel and
// Stats.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cogumi/engine.h"
#include "engine/decode/sampler.h"
#include "engine/decode/speculator.h"
#include "engine/memory/kv_cache.h"
#include "engine/memory/prefix_index.h"
#include "engine/model/model.h"
#include "engine/model/step_plan.h"
#include "engine/runtime/chunk_sizer.h"
#include "engine/runtime/sequence.h"
#include "engine/runtime/tenant_shares.h"
#include "engine/tokenizer/tokenizer.h"

namespace cogumi {

struct SchedulerOptions {
  int32_t vocabulary = 0;
  // One sequence of this length must fit into the cache.
  int32_t context_length = 0;
  int32_t max_running = 32;
  int32_t max_queued = 128;
  int32_t prefill_chunk = 256;
  double step_target_seconds = 0;  // see EngineOptions
  double stream_interval_seconds = 0;      // see EngineOptions
  bool prefix_cache = true;
  // Rows of logits in a step for drafts and for scoring together, beside one per running sequence.
  int32_t extra_logit_rows = 32;
  // Of requests that do not choose.
  Speculation speculation = Speculation::kOff;
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
  // Cache, tokenizer and speculator outlive the scheduler. No speculator: nothing is drafted.
  Scheduler(SchedulerOptions options, KvCache* cache, const Tokenizer* tokenizer,
            Speculator* speculator = nullptr);

  // Checks a request and builds its sequence; const and thread-safe. Errors: INVALID_ARGUMENT
  // naming the field, OUT_OF_RANGE when prompt and max_tokens exceed the context,
  // FAILED_PRECONDITION for a drafter that is not here.
  absl::StatusOr<std::unique_ptr<Sequence>> Prepare(GenerationRequest request,
                                                    std::shared_ptr<ResponseSink> sink) const;
  // RESOURCE_EXHAUSTED when max_running + max_queued requests are here already.
  absl::StatusOr<RequestHandle> Submit(std::unique_ptr<Sequence> sequence, double now);
  // The request ends with CANCELLED at the next Plan. Unknown handles are ignored.
  void Cancel(RequestHandle handle);

  // Drafts for what will decode in the next step.
  void Draft();
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
  void AddRows(Sequence& sequence, int32_t rows, int32_t logits);
  // Delivers what of an answer is not told yet; false when that is nothing.
  bool Tell(Sequence& sequence);
  absl::StatusOr<Speculation> ChooseDrafter(Speculation wanted) const;
  // Room for one more row of running_[index], or no place for that sequence any more.
  void ExtendByPreempting(size_t index);

  // scheduler_memory.cc: who has a place and pages.
  //
  // Puts running_[index] back into the queue; its pages are remembered.
  void Preempt(size_t index);
  // The running sequence that gives way first; for `next`, when one is given, only of its priority
  // or lower and of a tenant with several places, or with one and others waiting for it.
  // running_.size(): nobody.
  size_t Victim(const Sequence* next) const;
  int32_t RunningOf(const TenantShares::Account* account) const;
  // The place in waiting_ of the request that comes next; waiting_ is not empty.
  size_t NextWaiting() const;
  // A place and pages for a tenant that has none, at the expense of one that can spare them.
  void PreemptForNext();
  // Pages for the next token of every decoding sequence.
  void PreemptForDecoding();
  void Admit(double now);
  // Takes what the index knows of a waiting sequence and counts the rest into `promised`; false,
  // and nothing taken, when there is no room.
  bool TakePages(Sequence& sequence, int64_t& promised);
  int64_t Promised() const;
  int64_t RoomBytes() const { return cache_->free_bytes() + index_.evictable_bytes(); }
  // The longest known beginning, in place of a shorter one.
  void TakePrefix(Sequence& sequence);
  void CountCached(Sequence& sequence, int32_t tokens);
  // Remembers the full pages of what is computed.
  void Remember(Sequence& sequence, bool resumable);
  void ReleasePages(Sequence& sequence);
  // When running sequences hold each other up: one gives way. False: there is nothing to give.
  bool RelieveStall();

  // scheduler_prefill.cc: which prompt rows a step holds.
  void PlanPrefill();
  // Takes those out of prefilling_ that wait for another's pages, and gives them what is there.
  void ShareUnderWay();
  // The pages of a running sequence with the same prompt, if one has computed it.
  void ShareTwin(Sequence& sequence);
  // Whether the leader is just computing what the sequence needs next.
  bool WaitsFor(const Sequence& sequence, const Sequence& leader) const;
  // Plans the rows of sequences of one priority, in order; how many.
  int32_t PlanTenants(std::span<Sequence*> sequences, int32_t budget, int32_t& score_budget);
  int32_t PlanTenant(std::span<Sequence*> sequences, int32_t budget, int32_t& score_budget);
  // Plans up to `limit` rows of what a sequence still has to compute; how many.
  int32_t PlanPrompt(Sequence& sequence, int32_t limit, int32_t& score_budget);

  void CommitSequence(Sequence& sequence, double now);
  void DescribeRows(const Model& model, Sequence& sequence);
  void SampleRows(const Model& model, Sequence& sequence);
  void CommitTokens(Sequence& sequence, double now);
  void CountDraft(Sequence& sequence, int32_t accepted);
  void SetBytes(TokenInfo& info) const;
  bool Ends(const Sequence& sequence, TokenId id) const;
  // Frees the pages and announces the end; the owner then drops the sequence.
  void End(Sequence& sequence, absl::Status status, double now);
  void DropEnded(Sequences& sequences);

  const SchedulerOptions options_;
  KvCache* const cache_;
  const Tokenizer* const tokenizer_;
  Speculator* const speculator_;

  PrefixIndex index_;
  TenantShares shares_;
  ChunkSizer sizer_;

  Sequences waiting_;  // in order
  Sequences running_;  // in order
  std::unordered_map<RequestHandle, Sequence*> by_handle_;  // all that have not ended
  RequestHandle next_handle_ = 1;

  StepPlan plan_;
  std::vector<Sequence*> planned_;     // parallel to plan_.sequences
  std::vector<Sequence*> prefilling_;  // reused by PlanPrefill
  int32_t prompt_rows_ = 0;            // of the plan, by PlanPrefill
  std::vector<DraftTarget> targets_;   // reused by Draft
  std::vector<TokenId> chosen_;        // reused by CommitTokens
  int32_t draft_rows_ = 0;             // in the plan
  double planned_at_ = 0;
  SamplerScratch scratch_;
  std::vector<Delivery> deliveries_;
  EngineStats stats_;
};

}  // namespace cogumi
