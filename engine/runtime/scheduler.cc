#include "engine/runtime/scheduler.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/decode/validate_sampling.h"

namespace cogumi {
namespace {

// Only the last token's row is still to be computed: the next one is chosen from it.
bool Decodes(const Sequence& sequence) {
  return !sequence.request.score && sequence.Remaining() == 1;
}

absl::Status CheckLength(const GenerationRequest& request, int32_t context) {
  const size_t prompt = request.tokens.size();
  if (prompt == 0) {
    return absl::InvalidArgumentError("tokens: the prompt is empty");
  }
  const size_t limit = static_cast<size_t>(context);
  if (request.score) {
    if (prompt <= limit) return absl::OkStatus();
    return absl::OutOfRangeError(
        absl::StrCat("text of ", prompt, " tokens exceeds the context of ", context));
  }
  if (request.sampling.max_tokens.has_value()) {
    const size_t wanted = static_cast<size_t>(*request.sampling.max_tokens);
    if (prompt + wanted <= limit) return absl::OkStatus();
    return absl::OutOfRangeError(absl::StrCat("prompt of ", prompt, " tokens and max_tokens ",
                                              wanted, " exceed the context of ", context));
  }
  if (prompt < limit) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat("prompt of ", prompt,
                                            " tokens leaves no room for an answer in the context"
                                            " of ",
                                            context));
}

}  // namespace

Scheduler::Scheduler(SchedulerOptions options, KvCache* cache, const Tokenizer* tokenizer,
                     Speculator* speculator)
    : options_(std::move(options)),
      cache_(cache),
      tokenizer_(tokenizer),
      speculator_(speculator),
      index_(cache),
      sizer_(options_.prefill_chunk, options_.step_target_seconds > 0
                                         ? options_.step_target_seconds
                                         : std::numeric_limits<double>::infinity()) {
  stats_.kv_pages = cache_->wide().capacity();
  stats_.kv_tokens = cache_->LongestSequence();
  stats_.kv_bytes = cache_->budget_bytes();
  stats_.accepted_per_position.resize(static_cast<size_t>(kMaxDraft));
}

absl::StatusOr<std::unique_ptr<Sequence>> Scheduler::Prepare(
    GenerationRequest request, std::shared_ptr<ResponseSink> sink) const {
  if (request.priority < -100 || request.priority > 100) {
    return absl::InvalidArgumentError(
        absl::StrCat("priority: ", request.priority, " is outside [-100, 100]"));
  }
  if (!(request.deadline >= 0 && std::isfinite(request.deadline))) {
    return absl::InvalidArgumentError(
        absl::StrCat("deadline: ", request.deadline, " is not a time"));
  }
  if (request.score) {
    request.sampling.logprobs = true;
  }
  RETURN_IF_ERROR(ValidateSampling(request.sampling, options_.vocabulary, options_.context_length));
  RETURN_IF_ERROR(CheckLength(request, options_.context_length));
  ASSIGN_OR_RETURN(const Speculation drafter, ChooseDrafter(request.speculation));
  for (size_t i = 0; i < request.tokens.size(); ++i) {
    const TokenId id = request.tokens[i];
    if (id < 0 || id >= options_.vocabulary) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokens[", i, "]: ", id, " is outside [0, ", options_.vocabulary - 1, "]"));
    }
  }
  if (!request.roles.empty() && request.roles.size() != request.tokens.size()) {
    return absl::InvalidArgumentError(absl::StrCat("roles: ", request.roles.size(), " roles of ",
                                                   request.tokens.size(), " tokens"));
  }
  std::sort(request.sampling.stop_token_ids.begin(), request.sampling.stop_token_ids.end());
  const int32_t left = options_.context_length - static_cast<int32_t>(request.tokens.size());
  const int32_t max_tokens = request.sampling.max_tokens.value_or(left);
  const uint64_t seed =
      request.sampling.seed.has_value() ? *request.sampling.seed : options_.seed();
  auto sequence = std::make_unique<Sequence>(std::move(request), std::move(sink), seed,
                                             options_.vocabulary, max_tokens);
  sequence->drafter = drafter;
  return sequence;
}

absl::StatusOr<Speculation> Scheduler::ChooseDrafter(Speculation wanted) const {
  const Speculation drafter = wanted == Speculation::kDefault ? options_.speculation : wanted;
  if (drafter == Speculation::kOff || (speculator_ != nullptr && speculator_->Has(drafter))) {
    return drafter;
  }
  return absl::FailedPreconditionError(
      absl::StrCat("speculation: this engine has no ",
                   drafter == Speculation::kNgram ? "n-gram lookup" : "draft model"));
}

absl::StatusOr<RequestHandle> Scheduler::Submit(std::unique_ptr<Sequence> sequence, double now) {
  // Counted together, so that the answer does not depend on when the next step admits.
  const size_t places =
      static_cast<size_t>(options_.max_running) + static_cast<size_t>(options_.max_queued);
  if (by_handle_.size() >= places) {
    ++stats_.rejected;
    return absl::ResourceExhaustedError(absl::StrCat("the queue is full: ", options_.max_running,
                                                     " requests may run and ", options_.max_queued,
                                                     " wait"));
  }
  sequence->handle = next_handle_++;
  sequence->account = shares_.Enter(sequence->request.priority, sequence->request.tenant);
  sequence->submitted = now;
  const RequestHandle handle = sequence->handle;
  by_handle_.emplace(handle, sequence.get());
  InsertInOrder(waiting_, std::move(sequence));
  return handle;
}

void Scheduler::Cancel(RequestHandle handle) {
  const auto found = by_handle_.find(handle);
  if (found != by_handle_.end()) found->second->cancelled = true;
}

void Scheduler::Draft() {
  if (speculator_ == nullptr) return;
  targets_.clear();
  bool scores = false;
  bool drafts = false;
  for (const auto& sequence : running_) {
    sequence->draft.clear();
    scores = scores || sequence->request.score;
    if (!Decodes(*sequence)) continue;
    DraftTarget& target = targets_.emplace_back();
    target.context = {sequence->handle, sequence->tokens, sequence->roles, &sequence->sampler};
    target.drafter = sequence->drafter;
    // The token behind a draft is chosen in the same step.
    target.limit = sequence->max_tokens - sequence->Generated() - 1;
    target.draft = &sequence->draft;
    drafts = drafts || target.drafter != Speculation::kOff;
  }
  if (!drafts) targets_.clear();
  const int32_t most = options_.extra_logit_rows;
  speculator_->Speculate(targets_, scores ? most / 2 : most);
}

const StepPlan* Scheduler::Plan(double now) {
  plan_.tokens.clear();
  plan_.roles.clear();
  plan_.sequences.clear();
  plan_.logit_rows.clear();
  plan_.logit_needs.clear();
  planned_.clear();
  planned_at_ = now;
  draft_rows_ = 0;
  EndLate(waiting_, now);
  EndLate(running_, now);
  PreemptForNext();
  bool admit = true;
  do {
    PreemptForDecoding();
    PlanDecode();
    if (admit || running_.empty()) Admit(now);
    PlanPrefill();
    admit = false;  // whoever gives way does not come back at once
  } while (planned_.empty() && RelieveStall());
  // Such a step may take long: nobody waits for its end to hear of what was chosen before it.
  if (prompt_rows_ > 0) {
    for (const auto& sequence : running_) Tell(*sequence);
  }
  return planned_.empty() ? nullptr : &plan_;
}

void Scheduler::EndLate(Sequences& sequences, double now) {
  bool ended = false;
  for (const auto& sequence : sequences) {
    const double deadline = sequence->request.deadline;
    if (sequence->cancelled) {
      End(*sequence, absl::CancelledError("the caller cancelled the request"), now);
    } else if (deadline > 0 && now >= deadline) {
      End(*sequence, absl::DeadlineExceededError("the request's deadline has passed"), now);
    } else {
      continue;
    }
    ended = true;
  }
  if (ended) DropEnded(sequences);
}

void Scheduler::PlanDecode() {
  // There is room for all of them. Were there not, preemption would take from the end, so that what
  // is planned already stays.
  for (size_t i = 0; i < running_.size(); ++i) {
    if (Decodes(*running_[i])) ExtendByPreempting(i);
  }
  // Only then the drafts, as far as there is room: nobody gives way to a guess.
  for (const auto& sequence : running_) {
    if (sequence->request.score || sequence->Remaining() != 0) continue;
    KvSequence& kv = sequence->kv;
    const int32_t wanted = kv.length + static_cast<int32_t>(sequence->draft.size());
    while (cache_->Reach(kv, wanted) < wanted && index_.EvictOne()) continue;
    const int32_t drafted = cache_->Reach(kv, wanted) - kv.length;
    sequence->draft.resize(
        cache_->Extend(kv, kv.length + drafted).ok() ? static_cast<size_t>(drafted) : 0);
    const int32_t rows = 1 + static_cast<int32_t>(sequence->draft.size());
    draft_rows_ += rows - 1;
    AddRows(*sequence, rows, rows);
  }
}

void Scheduler::ExtendByPreempting(size_t index) {
  Sequence& sequence = *running_[index];
  while (!cache_->Extend(sequence.kv, sequence.kv.length + 1).ok()) {
    if (index_.EvictOne()) continue;
    const bool itself = index + 1 == running_.size();
    Preempt(running_.size() - 1);
    if (itself) return;
  }
}

void Scheduler::AddRows(Sequence& sequence, int32_t rows, int32_t logits) {
  const int32_t first_row = plan_.Rows();
  const int32_t first_position = sequence.kv.length - rows;
  for (int32_t position = first_position; position < sequence.kv.length; ++position) {
    const int32_t drafted = position - sequence.Length();
    plan_.tokens.push_back(drafted < 0 ? sequence.tokens[static_cast<size_t>(position)]
                                       : sequence.draft[static_cast<size_t>(drafted)]);
    plan_.roles.push_back(drafted < 0 ? sequence.roles[static_cast<size_t>(position)]
                                      : TokenRole::kGenerated);
  }
  plan_.sequences.push_back({&sequence.kv.pages, first_row, rows, first_position,
                             sequence.adapter != nullptr ? sequence.adapter->index : -1});
  sequence.first_logit = static_cast<int32_t>(plan_.logit_rows.size());
  sequence.logits = logits;
  sequence.sampled.clear();
  sequence.sample_status = absl::OkStatus();
  const LogitNeed need = sequence.sampler.need();
  for (int32_t i = rows - logits; i < rows; ++i) {
    plan_.logit_rows.push_back(first_row + i);
    plan_.logit_needs.push_back(need);
  }
  planned_.push_back(&sequence);
}

void Scheduler::Sample(const Model& model) {
  scratch_.vocabulary = &model.kernels().vocabulary;
  for (Sequence* sequence : planned_) {
    if (sequence->request.score) {
      DescribeRows(model, *sequence);
    } else {
      SampleRows(model, *sequence);
    }
  }
}

void Scheduler::DescribeRows(const Model& model, Sequence& sequence) {
  std::vector<TokenInfo>& scored = sequence.completion.prompt_logprobs;
  for (int32_t row = sequence.first_logit; row < sequence.first_logit + sequence.logits; ++row) {
    absl::StatusOr<TokenInfo> info =
        Sampler::Describe(sequence.tokens[scored.size() + 1], model.Logits(row), model.Summary(row),
                          options_.vocabulary, sequence.request.sampling.top_logprobs, scratch_);
    if (!info.ok()) {
      sequence.sample_status = info.status();
      return;
    }
    SetBytes(*info);
    scored.push_back(*std::move(info));
  }
}

void Scheduler::SampleRows(const Model& model, Sequence& sequence) {
  for (int32_t i = 0; i < sequence.logits; ++i) {
    const int32_t row = sequence.first_logit + i;
    absl::StatusOr<TokenInfo> info = sequence.sampler.Sample(model.Logits(row), model.Summary(row),
                                                             sequence.Length() + i, scratch_);
    if (!info.ok()) {
      sequence.sample_status = info.status();
      return;
    }
    SetBytes(*info);
    const TokenId id = info->id;
    sequence.sampler.Accept(id);
    sequence.sampled.push_back(*std::move(info));
    // The next row is of this answer only if the drafted token before it is the chosen one.
    const size_t drafted = static_cast<size_t>(i);
    if (drafted >= sequence.draft.size() || id != sequence.draft[drafted] || Ends(sequence, id)) {
      return;
    }
  }
}

void Scheduler::SetBytes(TokenInfo& info) const {
  info.bytes = tokenizer_->TokenBytes(info.id, /*special=*/true);
  for (TopLogprob& top : info.top) top.bytes = tokenizer_->TokenBytes(top.id, /*special=*/true);
}

void Scheduler::Commit(const absl::Status& forward, double now) {
  ++stats_.steps;
  stats_.step_rows += static_cast<uint64_t>(plan_.Rows());
  stats_.step_seconds += now - planned_at_;
  sizer_.Measured(prompt_rows_, plan_.Rows() - prompt_rows_, now - planned_at_);
  for (Sequence* sequence : planned_) {
    if (!forward.ok()) {
      const std::string reason(forward.message().data(), forward.message().size());
      End(*sequence, absl::InternalError(absl::StrCat("the forward pass failed: ", reason)), now);
    } else {
      CommitSequence(*sequence, now);
    }
  }
  if (speculator_ != nullptr && forward.ok() && prompt_rows_ == 0) {
    speculator_->ObserveStep(plan_.Rows(), now - planned_at_);
  }
  planned_.clear();
  DropEnded(running_);
}

void Scheduler::CommitSequence(Sequence& sequence, double now) {
  // Before Commit, which drops blocks that others may still resume behind.
  if (sequence.sample_status.ok() &&
      (sequence.kv.length <= sequence.prompt_length || sequence.Remaining() > 0)) {
    Remember(sequence, sequence.kv.length == sequence.prompt_length);
  }
  const int32_t prompt = std::min(sequence.kv.length, sequence.prompt_length);
  if (prompt > sequence.counted_prompt) {
    stats_.prompt_tokens += static_cast<uint64_t>(prompt - sequence.counted_prompt);
    sequence.counted_prompt = prompt;
  }
  // What was chosen before a row with bad logits stands, as it would without a draft.
  if (!sequence.sampled.empty()) CommitTokens(sequence, now);
  if (sequence.handle == 0) return;  // ended
  if (!sequence.sample_status.ok()) {
    End(sequence, sequence.sample_status, now);
  } else if (sequence.ScoreDone()) {
    End(sequence, absl::OkStatus(), now);
  } else {
    cache_->Commit(sequence.kv, sequence.kv.length);
  }
}

void Scheduler::CommitTokens(Sequence& sequence, double now) {
  if (!sequence.first_token.has_value()) sequence.first_token = now;
  if (sequence.drafter != Speculation::kOff) {
    chosen_.clear();
    for (const TokenInfo& info : sequence.sampled) chosen_.push_back(info.id);
    speculator_->Observe(sequence.handle, chosen_);
  }
  Chunk& chunk = sequence.untold;
  bool ends = false;
  int32_t accepted = 0;
  for (size_t i = 0; i < sequence.sampled.size() && !ends; ++i) {
    TokenInfo& info = sequence.sampled[i];
    const TokenId id = info.id;
    if (i < sequence.draft.size() && sequence.draft[i] == id) ++accepted;
    sequence.Append(id);
    ++stats_.generated_tokens;
    ++sequence.account->served;
    const bool end_token = Ends(sequence, id);
    Chunk told = sequence.answer.Append(
        std::move(info),
        end_token ? std::string_view() : tokenizer_->TokenBytes(id, /*special=*/false));
    chunk.text += told.text;
    std::move(told.tokens.begin(), told.tokens.end(), std::back_inserter(chunk.tokens));
    const bool full = sequence.Generated() >= sequence.max_tokens;
    ends = end_token || full || sequence.answer.stopped();
    if (!ends) continue;
    sequence.answer.Finish(chunk);
    // What was drafted behind the end was not refused.
    if (i < sequence.draft.size() && sequence.draft[i] == id) sequence.draft.resize(i + 1);
    const bool stop = end_token || sequence.answer.stopped();
    sequence.completion.finish_reason = stop ? FinishReason::kStop : FinishReason::kLength;
    sequence.completion.matched_stop = sequence.answer.matched_stop();
  }
  if (!sequence.draft.empty()) CountDraft(sequence, accepted);
  // The last token's keys and values are still to be computed, those behind it never were the
  // answer's.
  cache_->Truncate(sequence.kv, sequence.Length() - 1);
  // The next chance comes after another such step.
  const double next = now + (now - planned_at_);
  if (!sequence.told.has_value() || next - *sequence.told > options_.stream_interval_seconds) {
    if (Tell(sequence)) sequence.told = now;
  }
  if (ends) End(sequence, absl::OkStatus(), now);
}

bool Scheduler::Tell(Sequence& sequence) {
  Chunk& chunk = sequence.untold;
  if (chunk.text.empty() && chunk.tokens.empty()) return false;
  Delivery delivery;
  delivery.sink = sequence.sink;
  delivery.chunk = std::exchange(chunk, {});
  deliveries_.push_back(std::move(delivery));
  return true;
}

void Scheduler::CountDraft(Sequence& sequence, int32_t accepted) {
  const int32_t drafted = static_cast<int32_t>(sequence.draft.size());
  SpeculationStats& own = sequence.completion.speculation;
  ++own.drafts;
  own.drafted_tokens += drafted;
  own.accepted_tokens += accepted;
  const size_t positions = static_cast<size_t>(drafted);
  if (own.accepted_per_position.size() < positions) own.accepted_per_position.resize(positions);
  ++stats_.drafts;
  stats_.drafted_tokens += static_cast<uint64_t>(drafted);
  stats_.accepted_tokens += static_cast<uint64_t>(accepted);
  for (size_t i = 0; i < static_cast<size_t>(accepted); ++i) {
    ++own.accepted_per_position[i];
    ++stats_.accepted_per_position[i];
  }
  sequence.draft.clear();
}

bool Scheduler::Ends(const Sequence& sequence, TokenId id) const {
  const SamplingParams& sampling = sequence.request.sampling;
  const std::vector<TokenId>& own = tokenizer_->end_tokens();
  return (!sampling.ignore_eos && std::find(own.begin(), own.end(), id) != own.end()) ||
         std::binary_search(sampling.stop_token_ids.begin(), sampling.stop_token_ids.end(), id);
}

void Scheduler::End(Sequence& sequence, absl::Status status, double now) {
  // After a fault nobody knows what the pages hold.
  if (status.code() != absl::StatusCode::kInternal) Remember(sequence, true);
  Tell(sequence);
  ReleasePages(sequence);
  shares_.Leave(sequence.request.priority, sequence.request.tenant);
  if (speculator_ != nullptr) speculator_->Forget(sequence.handle);
  by_handle_.erase(sequence.handle);
  sequence.handle = 0;  // marks it for DropEnded

  Completion& completion = sequence.completion;
  completion.usage.prompt_tokens = sequence.prompt_length;
  completion.usage.completion_tokens = sequence.Generated();
  completion.receipt.seed = sequence.sampler.seed();
  completion.receipt.template_digest = std::move(sequence.request.template_digest);
  completion.receipt.adapter_digest = std::move(sequence.request.adapter);
  Timings& timings = completion.timings;
  timings.queue = sequence.admitted.value_or(now) - sequence.submitted;
  if (sequence.admitted.has_value()) {
    timings.prefill = sequence.first_token.value_or(now) - *sequence.admitted;
  }
  if (sequence.first_token.has_value()) {
    timings.decode = now - *sequence.first_token;
    timings.time_to_first_token = *sequence.first_token - sequence.submitted;
  }
  sequence.tokens.resize(static_cast<size_t>(sequence.prompt_length));
  completion.prompt_tokens = std::move(sequence.tokens);

  switch (status.code()) {
    case absl::StatusCode::kOk:
      ++(completion.finish_reason == FinishReason::kStop ? stats_.finished_stop
                                                         : stats_.finished_length);
      break;
    case absl::StatusCode::kCancelled:
      ++stats_.cancelled;
      break;
    case absl::StatusCode::kDeadlineExceeded:
      ++stats_.deadline_exceeded;
      break;
    default:
      ++stats_.failed;
  }
  Delivery delivery;
  delivery.sink = std::move(sequence.sink);
  delivery.end = std::move(status);
  delivery.completion = std::move(completion);
  deliveries_.push_back(std::move(delivery));
}

void Scheduler::DropEnded(Sequences& sequences) {
  std::erase_if(sequences, [](const auto& sequence) { return sequence->handle == 0; });
}

void Scheduler::EndAll(const absl::Status& status, double now) {
  for (Sequences* sequences : {&running_, &waiting_}) {
    for (const auto& sequence : *sequences) End(*sequence, status, now);
    sequences->clear();
  }
}

void Scheduler::TakeDeliveries(std::vector<Delivery>& out) {
  out.insert(out.end(), std::make_move_iterator(deliveries_.begin()),
             std::make_move_iterator(deliveries_.end()));
  deliveries_.clear();
}

EngineStats Scheduler::Stats() const {
  EngineStats stats = stats_;
  stats.running = static_cast<int32_t>(running_.size());
  stats.queued = static_cast<int32_t>(waiting_.size());
  stats.kv_bytes_cached = index_.evictable_bytes();
  stats.kv_bytes_used = cache_->used_bytes() - stats.kv_bytes_cached;
  const int64_t page = cache_->wide().block_bytes();
  stats.kv_pages_used = static_cast<int32_t>((stats.kv_bytes_used + page - 1) / page);
  stats.kv_pages_free = std::min(static_cast<int32_t>(cache_->free_bytes() / page),
                                 stats.kv_pages - stats.kv_pages_used);
  stats.kv_pages_cached = stats.kv_pages - stats.kv_pages_used - stats.kv_pages_free;
  stats.prefix_evictions = index_.evictions();
  const KvShape& shape = cache_->shape();
  for (const auto& [precision, pool] : {std::pair(shape.WidePrecision(), &cache_->wide()),
                                        std::pair(shape.NarrowPrecision(), &cache_->narrow())}) {
    if (pool->block_bytes() == 0) continue;
    stats.kv_blocks.push_back({precision, pool->used(), pool->used_bytes()});
  }
  return stats;
}

}  // namespace cogumi
