// The engine's step thread and everything that hands over to it.
//
// Threads: callers enqueue under mutex_ and return. The step thread alone runs the model; it holds
// mutex_ while it plans and commits (microseconds), never during a forward pass, sampling or a
// sink's call. A third thread computes the model's digest once and ends.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/core/clock.h"
#include "engine/core/sha256.h"
#include "engine/core/status_macros.h"
#include "engine/decode/draft_model_drafter.h"
#include "engine/decode/ngram_drafter.h"
#include "engine/decode/speculator.h"
#include "engine/model/adapter_table.h"
#include "engine/runtime/engine_parts.h"
#include "engine/runtime/scheduler.h"

namespace cogumi {
namespace {

// Rows of logits in a step for drafts and scoring, beside one per running sequence: bounds what
// they take of memory.
constexpr int32_t kExtraLogitRows = 32;
// Tokens that the draft model computes in a step at most to catch up with its sequences.
constexpr int32_t kDraftChunk = 128;
static_assert(kDraftChunk >= kExtraLogitRows, "every sequence that drafts has a row");

uint64_t SystemSeed() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

class StepEngine : public Engine {
 public:
  StepEngine(const EngineOptions& options, EngineParts parts, std::unique_ptr<KvCache> cache,
             std::unique_ptr<Speculator> speculator, SchedulerOptions scheduler_options);
  ~StepEngine() override;

  absl::StatusOr<TokenizedPrompt> Tokenize(const Prompt& prompt) const override;
  absl::StatusOr<std::string> Detokenize(const std::vector<TokenId>& tokens,
                                         bool special) const override;
  absl::StatusOr<RequestHandle> Submit(GenerationRequest request,
                                       std::shared_ptr<ResponseSink> sink) override;
  void Cancel(RequestHandle handle) override;
  absl::StatusOr<AdapterLease> LoadAdapter(const std::string& digest,
                                           const AdapterFiles& files) override;
  AdapterLease FindAdapter(const std::string& digest) override;
  void UnloadAdapter(const std::string& digest) override;
  std::vector<AdapterInfo> Adapters() const override;
  AdapterStats AdapterUse() const override;
  EngineStats Stats() const override;
  const std::string& ModelId() const override { return description_.id; }
  const ModelDescription& Model() const override;
  const Receipt& Configuration() const override { return configuration_; }
  bool Healthy() const override;
  void Drain() override;

 private:
  static constexpr double kNoStep = -1;

  absl::Status CheckToken(size_t index, TokenId id) const;
  void ComputeDigest(const std::function<std::string()>& digest);
  void Steps();
  // Tells everything in `deliveries`; a good end before the digest is known goes to withheld_.
  void Deliver(std::vector<Delivery>& deliveries);
  void DeliverEnd(Delivery& delivery);
  bool WithheldAreDue() const {
    return !withheld_.empty() && digest_known_.load(std::memory_order_acquire);
  }

  const Clock* const clock_;
  const double watchdog_seconds_;
  // In order of construction: the model uses the pool, the scheduler cache and tokenizer.
  const std::unique_ptr<ThreadPool> pool_;
  const std::unique_ptr<Tokenizer> tokenizer_;
  const std::unique_ptr<ChatTemplate> chat_template_;
  const std::unique_ptr<cogumi::Model> model_;
  const std::unique_ptr<KvCache> cache_;
  const std::unique_ptr<Speculator> speculator_;
  Receipt configuration_;

  // Written by the digest thread before digest_known_.
  ModelDescription description_;
  std::atomic<bool> digest_known_{false};

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  Scheduler scheduler_;    // under mutex_, but see Scheduler::Sample
  bool draining_ = false;  // under mutex_
  bool stopping_ = false;  // under mutex_

  std::vector<Delivery> withheld_;             // step thread only
  std::atomic<double> step_started_{kNoStep};  // Clock::Now() of the step under way

  std::thread digest_thread_;
  std::thread step_thread_;
};

StepEngine::StepEngine(const EngineOptions& options, EngineParts parts,
                       std::unique_ptr<KvCache> cache, std::unique_ptr<Speculator> speculator,
                       SchedulerOptions scheduler_options)
    : clock_(options.clock != nullptr ? options.clock : Clock::Real()),
      watchdog_seconds_(options.watchdog_seconds),
      pool_(std::move(parts.pool)),
      tokenizer_(std::move(parts.tokenizer)),
      chat_template_(std::move(parts.chat_template)),
      model_(std::move(parts.model)),
      cache_(std::move(cache)),
      speculator_(std::move(speculator)),
      description_(std::move(parts.description)),
      scheduler_(std::move(scheduler_options), cache_.get(), tokenizer_.get(),
                 speculator_.get()) {
  configuration_.kernel_configuration = model_->kernel_configuration();
  configuration_.kernel_digest = Sha256::Hex(
      absl::StrCat(configuration_.kernel_configuration, "\nengine ", COGUMI_VERSION, "\n"));
  digest_thread_ = std::thread([this, digest = std::move(parts.digest)] { ComputeDigest(digest); });
  step_thread_ = std::thread([this] { Steps(); });
}

StepEngine::~StepEngine() {
  digest_thread_.join();  // first: answers that wait for it can still be told
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  step_thread_.join();
}

void StepEngine::ComputeDigest(const std::function<std::string()>& digest) {
  description_.digest = digest();
  digest_known_.store(true, std::memory_order_release);
  digest_known_.notify_all();
  { const std::lock_guard<std::mutex> lock(mutex_); }
  wake_.notify_one();
}

const ModelDescription& StepEngine::Model() const {
  digest_known_.wait(false, std::memory_order_acquire);
  return description_;
}

absl::Status StepEngine::CheckToken(size_t index, TokenId id) const {
  if (id >= 0 && id < tokenizer_->VocabularySize()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("tokens[", index, "]: ", id, " is outside [0, ",
                                                 tokenizer_->VocabularySize() - 1, "]"));
}

absl::StatusOr<TokenizedPrompt> StepEngine::Tokenize(const Prompt& prompt) const {
  TokenizedPrompt result;
  if (const auto* tokens = std::get_if<std::vector<TokenId>>(&prompt)) {
    for (size_t i = 0; i < tokens->size(); ++i) RETURN_IF_ERROR(CheckToken(i, (*tokens)[i]));
    result.tokens = *tokens;
    result.roles.assign(result.tokens.size(), TokenRole::kPrompt);
    return result;
  }
  if (const auto* messages = std::get_if<std::vector<Message>>(&prompt)) {
    ASSIGN_OR_RETURN(ChatTemplate::Rendered rendered,
                     chat_template_->Render(*messages, *tokenizer_));
    result.tokens = std::move(rendered.ids);
    result.roles = std::move(rendered.roles);
    result.dropped_bytes = rendered.dropped_bytes;
    result.template_digest = chat_template_->digest();
    return result;
  }
  const TextPrompt& text = std::get<TextPrompt>(prompt);
  Tokenizer::Encoded encoded = tokenizer_->Encode(text.text, text.parse_special);
  result.dropped_bytes = encoded.dropped_bytes;
  const TokenId bos = tokenizer_->bos();
  const bool has_bos = !encoded.ids.empty() && encoded.ids.front() == bos;
  if (tokenizer_->add_bos() && bos >= 0 && !has_bos) result.tokens.push_back(bos);
  result.tokens.insert(result.tokens.end(), encoded.ids.begin(), encoded.ids.end());
  result.roles.assign(result.tokens.size(), TokenRole::kPrompt);
  return result;
}

absl::StatusOr<std::string> StepEngine::Detokenize(const std::vector<TokenId>& tokens,
                                                   bool special) const {
  std::string bytes;
  for (size_t i = 0; i < tokens.size(); ++i) {
    RETURN_IF_ERROR(CheckToken(i, tokens[i]));
    bytes += tokenizer_->TokenBytes(tokens[i], special);
  }
  return bytes;
}

absl::StatusOr<RequestHandle> StepEngine::Submit(GenerationRequest request,
                                                 std::shared_ptr<ResponseSink> sink) {
  AdapterRef adapter;
  if (!request.adapter.empty()) {
    AdapterTable* table = model_->adapters();
    const AdapterRef& lease = request.adapter_lease;
    if (table != nullptr) {
      const bool leased =
          lease != nullptr && table->Holds(lease) && lease->digest == request.adapter;
      adapter = leased ? lease : table->Find(request.adapter);
    }
    if (adapter == nullptr) {
      return absl::NotFoundError(absl::StrCat("adapter: ", request.adapter, " is not resident"));
    }
  }
  // Outside the lock: a long prompt is not checked at the expense of the step thread.
  ASSIGN_OR_RETURN(std::unique_ptr<Sequence> sequence,
                   scheduler_.Prepare(std::move(request), std::move(sink)));
  sequence->adapter = std::move(adapter);
  const double now = clock_->Now();
  absl::StatusOr<RequestHandle> handle;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (draining_ || stopping_) return absl::UnavailableError("the engine is draining");
    handle = scheduler_.Submit(std::move(sequence), now);
  }
  if (handle.ok()) wake_.notify_one();
  return handle;
}

void StepEngine::Cancel(RequestHandle handle) {
  const std::lock_guard<std::mutex> lock(mutex_);
  scheduler_.Cancel(handle);
}

absl::StatusOr<AdapterLease> StepEngine::LoadAdapter(const std::string& digest,
                                                     const AdapterFiles& files) {
  if (digest.empty()) return absl::InvalidArgumentError("adapter: its digest is empty");
  AdapterTable* table = model_->adapters();
  if (table == nullptr) return absl::UnimplementedError("adapters: this model takes none");
  return table->Load(digest, files);
}

AdapterLease StepEngine::FindAdapter(const std::string& digest) {
  AdapterTable* table = model_->adapters();
  return table != nullptr ? table->Find(digest) : nullptr;
}

void StepEngine::UnloadAdapter(const std::string& digest) {
  if (AdapterTable* table = model_->adapters()) table->Unload(digest);
}

std::vector<AdapterInfo> StepEngine::Adapters() const {
  const AdapterTable* table = model_->adapters();
  return table != nullptr ? table->List() : std::vector<AdapterInfo>();
}

AdapterStats StepEngine::AdapterUse() const {
  const AdapterTable* table = model_->adapters();
  return table != nullptr ? table->Stats() : AdapterStats();
}

EngineStats StepEngine::Stats() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return scheduler_.Stats();
}

bool StepEngine::Healthy() const {
  const double started = step_started_.load(std::memory_order_relaxed);
  return started == kNoStep || clock_->Now() - started <= watchdog_seconds_;
}

void StepEngine::Drain() {
  const std::lock_guard<std::mutex> lock(mutex_);
  draining_ = true;
}

void StepEngine::Steps() {
  std::vector<Delivery> deliveries;
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    const double now = clock_->Now();
    const StepPlan* plan = scheduler_.Plan(now);
    scheduler_.TakeDeliveries(deliveries);
    if (plan == nullptr && deliveries.empty() && !WithheldAreDue()) {
      wake_.wait(lock, [this] { return stopping_ || !scheduler_.Idle() || WithheldAreDue(); });
      continue;
    }
    step_started_.store(now, std::memory_order_relaxed);
    lock.unlock();
    Deliver(deliveries);
    absl::Status status;
    if (plan != nullptr) {
      status = model_->Forward(*plan, *cache_);
      if (status.ok()) scheduler_.Sample(*model_);
    }
    lock.lock();
    if (plan != nullptr) {
      scheduler_.Commit(status, clock_->Now());
      // What was chosen is told before the next tokens are drafted, which may take a while.
      scheduler_.TakeDeliveries(deliveries);
      lock.unlock();
      Deliver(deliveries);
      scheduler_.Draft();
      lock.lock();
    }
    step_started_.store(kNoStep, std::memory_order_relaxed);
  }
  scheduler_.EndAll(absl::UnavailableError("the engine is shutting down"), clock_->Now());
  scheduler_.TakeDeliveries(deliveries);
  lock.unlock();
  Deliver(deliveries);
}

void StepEngine::Deliver(std::vector<Delivery>& deliveries) {
  if (WithheldAreDue()) {
    for (Delivery& delivery : withheld_) DeliverEnd(delivery);
    withheld_.clear();
  }
  for (Delivery& delivery : deliveries) {
    if (delivery.chunk.has_value()) {
      delivery.sink->OnChunk(*std::move(delivery.chunk));
    } else if (delivery.end->ok() && !digest_known_.load(std::memory_order_acquire)) {
      withheld_.push_back(std::move(delivery));
    } else {
      DeliverEnd(delivery);
    }
  }
  deliveries.clear();
}

void StepEngine::DeliverEnd(Delivery& delivery) {
  Receipt& receipt = delivery.completion.receipt;
  if (digest_known_.load(std::memory_order_acquire)) receipt.model_digest = description_.digest;
  receipt.kernel_digest = configuration_.kernel_digest;
  receipt.kernel_configuration = configuration_.kernel_configuration;
  delivery.sink->OnFinished(*std::move(delivery.end), std::move(delivery.completion));
}

absl::Status CheckInteger(const std::string& name, int64_t value, IntegerRange range) {
  if (value >= range.low && value <= range.high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": ", value, " is outside [", range.low, ", ", range.high, "]"));
}

absl::Status CheckTime(const std::string& name, double seconds) {
  if (seconds >= 0 && std::isfinite(seconds)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": ", seconds, " is not a time"));
}

}  // namespace

absl::Status ValidateEngineOptions(const EngineOptions& options) {
  RETURN_IF_ERROR(CheckInteger("threads", options.threads, kThreadsRange));
  RETURN_IF_ERROR(CheckInteger("context_length", options.context_length, kContextLengthRange));
  RETURN_IF_ERROR(CheckInteger("kv_bytes", options.kv_bytes, kKvBytesRange));
  RETURN_IF_ERROR(CheckInteger("adapter_bytes", options.adapter_bytes, kAdapterBytesRange));
  RETURN_IF_ERROR(CheckInteger("max_running", options.max_running, kMaxRunningRange));
  RETURN_IF_ERROR(CheckInteger("max_queued", options.max_queued, kMaxQueuedRange));
  RETURN_IF_ERROR(CheckInteger("prefill_chunk", options.prefill_chunk, kPrefillChunkRange));
  RETURN_IF_ERROR(CheckTime("step_target_seconds", options.step_target_seconds));
  RETURN_IF_ERROR(CheckTime("stream_interval_seconds", options.stream_interval_seconds));
  RETURN_IF_ERROR(CheckInteger("draft_kv_bytes", options.draft_kv_bytes, kKvBytesRange));
  if (options.speculation == Speculation::kDefault) {
    return absl::InvalidArgumentError("speculation: the engine's own choice cannot be 'default'");
  }
  if (!(options.watchdog_seconds > 0 && std::isfinite(options.watchdog_seconds))) {
    return absl::InvalidArgumentError(
        absl::StrCat("watchdog_seconds: ", options.watchdog_seconds, " is not a positive time"));
  }
  return absl::OkStatus();
}

ModelOptions ModelOptionsFor(const EngineOptions& options) {
  ModelOptions model;
  model.kernels = options.kernels;
  model.activations = options.activations;
  model.kv_format = options.kv_format;
  model.adapter_bytes = options.adapter_bytes;
  model.max_rows = options.max_running + options.prefill_chunk + kExtraLogitRows;
  model.max_logit_rows = options.max_running + kExtraLogitRows;
  return model;
}

ModelOptions DraftModelOptionsFor(const EngineOptions& options) {
  ModelOptions model = ModelOptionsFor(options);
  model.adapter_bytes = 0;  // adapters are the target's
  model.max_rows = kDraftChunk;
  model.max_logit_rows = std::min(options.max_running, kExtraLogitRows);
  return model;
}

absl::StatusOr<std::unique_ptr<Engine>> CreateEngineFromParts(const EngineOptions& options,
                                                              EngineParts parts) {
  RETURN_IF_ERROR(ValidateEngineOptions(options));
  const ModelConfig& config = parts.model->config();
  if (options.context_length > config.context_length) {
    return absl::InvalidArgumentError(absl::StrCat("context_length: ", options.context_length,
                                                   " is beyond the model's ",
                                                   config.context_length));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<KvCache> cache,
                   KvCache::Create(parts.model->kv_shape(), options.kv_bytes));
  const int32_t wanted =
      options.context_length > 0 ? options.context_length : config.context_length;
  // A sequence must fit into the cache when it runs alone: that is what makes preemption end.
  const int64_t held = cache->LongestSequence();

  std::unique_ptr<Speculator> speculator;
  if (options.speculation != Speculation::kOff) {
    std::unique_ptr<DraftModelDrafter> by_model;
    if (parts.draft_model != nullptr) {
      ASSIGN_OR_RETURN(by_model, DraftModelDrafter::Create(std::move(parts.draft_model),
                                                           options.draft_kv_bytes, kDraftChunk));
    }
    speculator = std::make_unique<Speculator>(
        std::make_unique<NgramDrafter>(), std::move(by_model),
        options.clock != nullptr ? options.clock : Clock::Real());
  }

  SchedulerOptions scheduler;
  scheduler.vocabulary = config.vocabulary_size;
  scheduler.context_length = static_cast<int32_t>(std::min<int64_t>(wanted, held));
  scheduler.max_running = options.max_running;
  scheduler.max_queued = options.max_queued;
  scheduler.prefill_chunk = options.prefill_chunk;
  scheduler.step_target_seconds = options.step_target_seconds;
  scheduler.stream_interval_seconds = options.stream_interval_seconds;
  scheduler.prefix_cache = options.prefix_cache;
  scheduler.extra_logit_rows = kExtraLogitRows;
  scheduler.speculation = options.speculation;
  scheduler.seed = parts.seed != nullptr ? std::move(parts.seed) : SystemSeed;
  parts.description.context_length = scheduler.context_length;
  return std::make_unique<StepEngine>(options, std::move(parts), std::move(cache),
                                      std::move(speculator), std::move(scheduler));
}

}  // namespace cogumi
