#include "services/decoder/decoder_service.h"

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cogumi/v1/decoder.grpc.pb.h"
#include "engine/core/status_macros.h"
#include "services/common/rpc_call.h"
#include "services/common/status.h"
#include "services/common/stream_writer.h"
#include "services/common/text.h"
#include "services/common/worker.h"
#include "services/decoder/adapter_store.h"
#include "services/decoder/convert.h"
#include "services/decoder/decoder_metrics.h"

namespace cogumi::services {
namespace {

// A prompt above this is tokenised on the worker: gRPC's threads are few and everybody's.
constexpr size_t kInlineBytes = 16 * 1024;
constexpr size_t kMaxWaitingPrompts = 64;
constexpr int kMaxDetokenizeIds = 1 << 20;
constexpr int kMaxTopLogprobs = 20;

size_t BytesOf(const Prompt& prompt) {
  if (const auto* text = std::get_if<TextPrompt>(&prompt)) return text->text.size();
  size_t bytes = 0;
  if (const auto* messages = std::get_if<std::vector<Message>>(&prompt)) {
    for (const Message& message : *messages) bytes += message.content.size();
  }
  return bytes;
}

// Kept by the service and by every stream: the engine may end a cancelled request late.
struct Shared {
  Shared(ServiceRuntime& service_runtime, Engine& service_engine, AdapterStore* adapter_store)
      : runtime(service_runtime),
        engine(service_engine),
        adapters(adapter_store),
        metrics(*service_runtime.registry, service_engine.ModelId()) {}

  ServiceRuntime& runtime;
  Engine& engine;
  AdapterStore* const adapters;
  std::atomic<bool> model_known{false};  // Engine::Model no longer waits
  DecoderMetrics metrics;
};

// Runs small work here, large work on the worker; false when the worker has too much to do.
bool RunBySize(Worker& worker, size_t bytes, std::function<void()> work) {
  if (bytes > kInlineBytes) return worker.Post(std::move(work));
  work();
  return true;
}

absl::Status WorkerFull() {
  return WithReason(
      WithRetry(absl::ResourceExhaustedError("too many large prompts are being read"), 1),
      "QUEUE_FULL");
}

GenerationRequest RequestOf(const RequestContext& context, TokenizedPrompt prompt) {
  GenerationRequest request;
  request.request_id = context.request_id;
  request.tenant = context.tenant;
  request.deadline = context.deadline;
  request.tokens = std::move(prompt.tokens);
  request.roles = std::move(prompt.roles);
  request.template_digest = std::move(prompt.template_digest);
  return request;
}

// Remembers the engine's handle, and that the caller has gone, whichever comes first.
class CancelOnce {
 public:
  explicit CancelOnce(Engine& engine) : engine_(engine) {}

  void Submitted(RequestHandle handle) {
    std::unique_lock<std::mutex> lock(mutex_);
    handle_ = handle;
    if (!gone_) return;
    lock.unlock();
    engine_.Cancel(handle);
  }
  void Gone() {
    std::unique_lock<std::mutex> lock(mutex_);
    gone_ = true;
    const std::optional<RequestHandle> handle = handle_;
    lock.unlock();
    if (handle) engine_.Cancel(*handle);
  }

 private:
  Engine& engine_;
  std::mutex mutex_;
  std::optional<RequestHandle> handle_;
  bool gone_ = false;
};

class GenerateStream : public StreamWriter<v1::GenerateResponse>, public ResponseSink {
 public:
  GenerateStream(std::shared_ptr<Shared> shared, grpc::CallbackServerContext* context)
      : StreamWriter(shared->runtime, context, "Generate"),
        shared_(std::move(shared)),
        cancel_(shared_->engine) {}

  void Begin(const v1::GenerateRequest& request, Worker& worker) {
    if (!call().admission().ok()) {
      End(call().admission());
      return;
    }
    absl::Status status = CheckGenerateRequest(request);
    if (!status.ok()) {
      End(std::move(status));
      return;
    }
    absl::StatusOr<Prompt> prompt = PromptOf(request);
    if (!prompt.ok()) {
      End(std::move(prompt).status());
      return;
    }
    sampling_ = SamplingOf(request.sampling());
    priority_ = request.priority();
    speculation_ = SpeculationOf(request.speculation());
    logprobs_ = sampling_.logprobs;
    features_ = request.features();
    if (request.adapter().empty()) {
      SubmitOn(worker, *std::move(prompt));
      return;
    }
    if (shared_->adapters == nullptr) {
      End(WithReason(WithField(absl::FailedPreconditionError(
                                   "adapter: this decoder follows no catalogue of adapters"),
                               "adapter"),
                     "NO_ADAPTERS"));
      return;
    }
    auto self = std::static_pointer_cast<GenerateStream>(shared_from_this());
    shared_->adapters->Resolve(
        request.adapter(),
        [self, &worker, input = *std::move(prompt)](absl::StatusOr<AdapterInUse> adapter) mutable {
          if (!adapter.ok()) {
            self->End(adapter.status());
            return;
          }
          self->adapter_ = *std::move(adapter);
          self->SubmitOn(worker, std::move(input));
        });
  }

 private:
  void SubmitOn(Worker& worker, Prompt prompt) {
    const size_t bytes = BytesOf(prompt);
    auto self = std::static_pointer_cast<GenerateStream>(shared_from_this());
    const bool accepted = RunBySize(worker, bytes, [self, input = std::move(prompt)] {
      const absl::Status submitted = self->Submit(input);
      if (!submitted.ok()) self->End(WithEngineDetails(submitted));
    });
    if (!accepted) End(WorkerFull());
  }

  absl::Status Submit(const Prompt& prompt) {
    if (ended()) return absl::OkStatus();  // gone while it waited
    ASSIGN_OR_RETURN(TokenizedPrompt tokenized, shared_->engine.Tokenize(prompt));
    GenerationRequest request = RequestOf(call().request(), std::move(tokenized));
    request.priority = priority_;
    request.speculation = speculation_;
    request.sampling = std::move(sampling_);
    request.adapter = adapter_.digest;
    request.adapter_lease = std::move(adapter_.lease);
    auto self = std::static_pointer_cast<GenerateStream>(shared_from_this());
    ASSIGN_OR_RETURN(const RequestHandle handle, shared_->engine.Submit(std::move(request), self));
    cancel_.Submitted(handle);
    return absl::OkStatus();
  }

  void OnChunk(Chunk chunk) override {
    const double now = shared_->runtime.clock->Now();
    if (!chunk.tokens.empty()) {
      if (last_token_ == 0) {
        first_token_seconds_ = now - call().started();
        shared_->metrics.time_to_first_token.Observe(first_token_seconds_);
      } else {
        // Tokens that come together share the time between them.
        const double count = static_cast<double>(chunk.tokens.size());
        for (size_t i = 0; i < chunk.tokens.size(); ++i) {
          shared_->metrics.inter_token_latency.Observe((now - last_token_) / count);
        }
      }
      last_token_ = now;
    }
    v1::GenerateResponse response;
    ToProto(chunk, logprobs_, features_, response.mutable_chunk());
    Push(std::move(response));
  }

  void OnFinished(absl::Status status, Completion completion) override {
    Record(status, completion);
    if (!status.ok()) {
      End(WithEngineDetails(status));
      return;
    }
    v1::GenerateResponse response;
    ToProto(completion, response.mutable_complete());
    PushAndEnd(std::move(response));
  }

  void Record(const absl::Status& status, const Completion& completion) {
    DecoderMetrics& metrics = shared_->metrics;
    metrics.queue_wait.Observe(completion.timings.queue);
    metrics.e2e_latency.Observe(shared_->runtime.clock->Now() - call().started());
    if (status.ok()) {
      const bool stopped = completion.finish_reason == FinishReason::kStop;
      (stopped ? metrics.finished_stop : metrics.finished_length).Increment();
      if (completion.usage.completion_tokens > 1) {
        metrics.time_per_output_token.Observe(completion.timings.decode /
                                              (completion.usage.completion_tokens - 1));
      }
    } else if (absl::IsCancelled(status) || absl::IsDeadlineExceeded(status)) {
      metrics.finished_abort.Increment();
    } else {
      metrics.finished_error.Increment();
    }
    std::lock_guard<std::mutex> lock(log_mutex_);
    prompt_tokens_ = completion.usage.prompt_tokens;
    completion_tokens_ = completion.usage.completion_tokens;
    queue_seconds_ = completion.timings.queue;
  }

  void OnAbandoned(const absl::Status& why) override {
    if (absl::IsResourceExhausted(why)) shared_->metrics.slow_readers.Increment();
    cancel_.Gone();
  }

  bool Merge(v1::GenerateResponse& waiting, v1::GenerateResponse& next) override {
    if (!waiting.has_chunk() || !next.has_chunk()) return false;
    MergeChunk(std::move(*next.mutable_chunk()), waiting.mutable_chunk());
    return true;
  }

  void OnEnded(const absl::Status& /*status*/) override {
    adapter_.counted.reset();
    // The engine may still be about to tell of a cancelled request's end on its own thread.
    std::lock_guard<std::mutex> lock(log_mutex_);
    call().log().prompt_tokens = prompt_tokens_;
    call().log().completion_tokens = completion_tokens_;
    call().log().queue_seconds = queue_seconds_;
    call().log().first_token_seconds = first_token_seconds_;
  }

  const std::shared_ptr<Shared> shared_;
  CancelOnce cancel_;
  SamplingParams sampling_;
  AdapterInUse adapter_;  // empty: the base alone
  int32_t priority_ = 0;
  Speculation speculation_ = Speculation::kDefault;
  bool logprobs_ = false;
  bool features_ = false;
  double last_token_ = 0;  // step thread only
  std::atomic<double> first_token_seconds_{-1};
  std::mutex log_mutex_;
  int64_t prompt_tokens_ = -1;
  int64_t completion_tokens_ = -1;
  double queue_seconds_ = -1;
};

// Answers with the log-probabilities of a prompt.
class ScoreSink : public ResponseSink {
 public:
  ScoreSink(std::shared_ptr<PendingUnary> reactor, v1::ScoreResponse* response)
      : reactor_(std::move(reactor)), response_(response) {}

  void OnChunk(Chunk /*chunk*/) override {}

  void OnFinished(absl::Status status, Completion completion) override {
    reactor_->call().log().prompt_tokens = completion.usage.prompt_tokens;
    if (status.ok()) {
      response_->mutable_token_ids()->Assign(completion.prompt_tokens.begin(),
                                             completion.prompt_tokens.end());
      for (const TokenInfo& token : completion.prompt_logprobs) {
        ToProto(token, response_->add_logprobs());
      }
      ToProto(completion.receipt, response_->mutable_receipt());
    }
    reactor_->Reply(WithEngineDetails(status));
  }

 private:
  const std::shared_ptr<PendingUnary> reactor_;
  v1::ScoreResponse* const response_;
};

class DecoderServiceImpl : public DecoderService, public v1::DecoderService::CallbackService {
 public:
  DecoderServiceImpl(ServiceRuntime& runtime, Engine& engine, const DecoderLimits& limits,
                     AdapterStore* adapters)
      : shared_(std::make_shared<Shared>(runtime, engine, adapters)),
        limits_(limits),
        worker_(kMaxWaitingPrompts) {
    runtime.metrics->Add(EngineCollector(engine));
    if (adapters != nullptr) {
      runtime.metrics->Add(AdapterCollector(engine, *adapters, limits.max_running));
    }
  }

  grpc::Service* grpc_service() override { return this; }

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override {
    auto stream = std::make_shared<GenerateStream>(shared_, context);
    stream->Start();
    stream->Begin(*request, worker_);
    // Safe even when the stream has ended: gRPC is done with it only after this return.
    return stream.get();
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    return Deferred(context, "Tokenize", request->ByteSizeLong(), [=, this]() -> absl::Status {
      ASSIGN_OR_RETURN(const Prompt prompt, PromptOf(*request));
      ASSIGN_OR_RETURN(const TokenizedPrompt tokenized, shared_->engine.Tokenize(prompt));
      response->mutable_ids()->Assign(tokenized.tokens.begin(), tokenized.tokens.end());
      response->set_dropped_bytes(tokenized.dropped_bytes);
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    return Deferred(context, "Detokenize", request->ByteSizeLong(), [=, this]() -> absl::Status {
      if (request->ids_size() > kMaxDetokenizeIds) {
        return FieldError(
            "ids", Cat(request->ids_size(), " ids, at most ", kMaxDetokenizeIds, " are taken"));
      }
      const std::vector<TokenId> ids(request->ids().begin(), request->ids().end());
      absl::StatusOr<std::string> raw = shared_->engine.Detokenize(ids, request->special());
      if (!raw.ok()) {
        return absl::IsInvalidArgument(raw.status()) ? WithField(raw.status(), "ids")
                                                     : raw.status();
      }
      // Text and bytes are both sent: the message limit holds for their sum.
      if (raw->size() > kMaxPromptBytes) {
        return FieldError("ids", Cat("their text has ", raw->size(), " bytes, at most ",
                                     kMaxPromptBytes, " are answered"));
      }
      response->set_text(ToValidUtf8(*raw));
      response->set_raw(*std::move(raw));
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override {
    auto reactor = PendingUnary::Create(shared_->runtime, context, "Score");
    if (!reactor->call().admission().ok()) {
      reactor->Reply(reactor->call().admission());
      return reactor.get();
    }
    const int32_t top = request->top_logprobs();
    absl::StatusOr<Prompt> prompt = PromptOf(*request);
    if (top < 0 || top > kMaxTopLogprobs) {
      prompt = FieldError("top_logprobs", Cat(top, " is outside [0, ", kMaxTopLogprobs, "]"));
    }
    if (!prompt.ok()) {
      reactor->Reply(prompt.status());
      return reactor.get();
    }
    auto cancel = std::make_shared<CancelOnce>(shared_->engine);
    reactor->SetOnGone([cancel] { cancel->Gone(); });
    const size_t bytes = BytesOf(*prompt);
    const bool accepted = RunBySize(
        worker_, bytes, [this, reactor, response, cancel, top, input = std::move(*prompt)] {
          const absl::Status status = SubmitScore(input, top, reactor, response, *cancel);
          if (!status.ok()) reactor->Reply(WithEngineDetails(status));
        });
    if (!accepted) reactor->Reply(WorkerFull());
    return reactor.get();
  }

  grpc::ServerUnaryReactor* ModelInfo(grpc::CallbackServerContext* context,
                                      const v1::ModelInfoRequest* /*request*/,
                                      v1::ModelInfoResponse* response) override {
    const size_t bytes = shared_->model_known ? 0 : kInlineBytes + 1;
    return Deferred(context, "ModelInfo", bytes, [=, this] {
      ToProto(shared_->engine.Model(), response->mutable_model());
      shared_->model_known = true;
      const EngineStats stats = shared_->engine.Stats();
      const Receipt& configuration = shared_->engine.Configuration();
      response->set_kernel_configuration(configuration.kernel_configuration);
      response->set_kernel_digest(configuration.kernel_digest);
      response->set_kv_pages(stats.kv_pages);
      response->set_kv_pages_free(stats.kv_pages_free + stats.kv_pages_cached);
      response->set_kv_bytes(stats.kv_bytes);
      response->set_max_running(limits_.max_running);
      response->set_max_queued(limits_.max_queued);
      response->set_running(stats.running);
      response->set_queued(stats.queued);
      if (shared_->adapters != nullptr) AddAdapters(response);
      return absl::OkStatus();
    });
  }

 private:
  void AddAdapters(v1::ModelInfoResponse* response) {
    std::set<std::string> resident;
    for (const AdapterInfo& info : shared_->engine.Adapters()) resident.insert(info.digest);
    for (const v1::Adapter& adapter : shared_->adapters->List()) {
      // Adapters of another base cannot be asked for here.
      if (adapter.base_model() != shared_->engine.Model().digest) continue;
      v1::ServedAdapter* served = response->add_adapters();
      served->set_name(adapter.name());
      served->set_digest(adapter.digest());
      served->set_resident(resident.count(adapter.digest()) > 0);
      served->set_created(adapter.registered_ms() / 1000);
    }
  }

  absl::Status SubmitScore(const Prompt& prompt, int32_t top,
                           const std::shared_ptr<PendingUnary>& reactor,
                           v1::ScoreResponse* response, CancelOnce& cancel) {
    if (reactor->gone()) return absl::CancelledError("the caller has gone");
    ASSIGN_OR_RETURN(TokenizedPrompt tokenized, shared_->engine.Tokenize(prompt));
    GenerationRequest request = RequestOf(reactor->call().request(), std::move(tokenized));
    request.score = true;
    request.sampling.logprobs = true;
    request.sampling.top_logprobs = top;
    ASSIGN_OR_RETURN(
        const RequestHandle handle,
        shared_->engine.Submit(std::move(request), std::make_shared<ScoreSink>(reactor, response)));
    cancel.Submitted(handle);
    return absl::OkStatus();
  }

  // Answers with what `work` returns, here or on the worker by the request's size.
  grpc::ServerUnaryReactor* Deferred(grpc::CallbackServerContext* context, std::string_view method,
                                     size_t bytes, std::function<absl::Status()> work) {
    auto reactor = PendingUnary::Create(shared_->runtime, context, method);
    if (!reactor->call().admission().ok()) {
      reactor->Reply(reactor->call().admission());
      return reactor.get();
    }
    const bool accepted = RunBySize(worker_, bytes, [reactor, work = std::move(work)] {
      reactor->Reply(WithEngineDetails(work()));
    });
    if (!accepted) reactor->Reply(WorkerFull());
    return reactor.get();
  }

  const std::shared_ptr<Shared> shared_;
  const DecoderLimits limits_;
  Worker worker_;  // last: ends first
};

}  // namespace

std::unique_ptr<DecoderService> DecoderService::Create(ServiceRuntime& runtime, Engine& engine,
                                                       const DecoderLimits& limits,
                                                       AdapterStore* adapters) {
  return std::make_unique<DecoderServiceImpl>(runtime, engine, limits, adapters);
}

const char* DecoderService::full_name() { return v1::DecoderService::service_full_name(); }

}  // namespace cogumi::services
