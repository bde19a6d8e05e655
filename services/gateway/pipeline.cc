#include "services/gateway/pipeline.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/common/status.h"
#include "services/common/text.h"
#include "services/gateway/serial_queue.h"

namespace cogumi::gateway {

namespace v1 = cogumi::v1;

namespace {

// The tier that answers, until there are more.
constexpr char kTier[] = "base";
// What the router gets to see of one message.
constexpr size_t kRouterMessageBytes = 16 << 10;
// The router looks at so many messages from the end.
constexpr size_t kRouterMessages = 8;
// Two turns and the new message.
constexpr size_t kDetectMessages = 5;
// Features kept for the assessment; an answer beyond it is assessed by its beginning.
constexpr int kMaxFeatures = 16384;
// When an answer was broken off, its prompt's tokens are not known: bytes by this.
constexpr int64_t kBytesPerToken = 4;

}  // namespace

// One call. Everything below Start and Cancel runs in the serial queue.
class Call final : public PipelineCall, public std::enable_shared_from_this<Call> {
 public:
  Call(Pipeline& pipeline, CallRequest request, std::shared_ptr<CallObserver> observer)
      : pipeline_(pipeline),
        parts_(pipeline.parts()),
        request_(std::move(request)),
        observer_(std::move(observer)) {}

  void Start() override {
    pipeline_.Enter(this, weak_from_this());
    Post([this] { Begin(); });
  }

  void Cancel(absl::Status why) override {
    Post([this, why = std::move(why)]() mutable { Stop(std::move(why)); });
  }

 private:
  struct Stream {
    std::shared_ptr<BackendCall> call;
    bool sent = false;     // the decoder was asked, and has not refused
    bool started = false;  // a message came: the answer is no longer repeatable
    bool retried = false;
    bool ended = false;
    int tokens = 0;
    std::optional<v1::GenerateComplete> complete;
  };

  // Brings a stream's events into the queue.
  class Sink : public GenerateSink {
   public:
    Sink(std::shared_ptr<Call> call, size_t choice) : call_(std::move(call)), choice_(choice) {}
    void OnResponse(v1::GenerateResponse response) override {
      call_->Post([call = call_.get(), choice = choice_, response = std::move(response)]() mutable {
        call->OnResponse(choice, std::move(response));
      });
    }
    void OnFinished(absl::Status status) override {
      call_->Post([call = call_.get(), choice = choice_, status = std::move(status)]() mutable {
        call->OnFinished(choice, std::move(status));
      });
    }

   private:
    const std::shared_ptr<Call> call_;
    const size_t choice_;
  };

  void Post(SerialQueue::Task task) {
    // A task may drop every other reference.
    const std::shared_ptr<Call> self = shared_from_this();
    queue_.Post(std::move(task));
  }

  double Now() const { return parts_.clock->Now(); }
  bool with_session() const { return request_.chat && !request_.chat->session_id().empty(); }
  const std::string& tenant() const { return request_.identity.tenant; }

  void Begin() {
    created_ms_ = static_cast<int64_t>(parts_.clock->UnixNow() * 1000);
    request_.context.tenant = tenant();
    const double latest = request_.started + pipeline_.options().max_request_seconds;
    double& deadline = request_.context.deadline;
    deadline = deadline > 0 ? std::min(deadline, latest) : latest;

    if (!request_.identity.user) {
      return Finish(services::WithReason(
          absl::PermissionDeniedError("the token does not have the role user"), "ROLE_MISSING"));
    }
    const size_t prompts = request_.chat ? 1 : request_.prompts.size();
    if (request_.n < 1 || request_.n > kMaxChoices ||
        prompts * static_cast<size_t>(request_.n) > static_cast<size_t>(kMaxChoices)) {
      return Finish(services::FieldError(
          "n", absl::StrCat("is ", request_.n, " for ", prompts, " prompts, their product must be ",
                            "in [1, ", kMaxChoices, "]")));
    }
    streams_.resize(prompts * static_cast<size_t>(request_.n));
    auto lease = parts_.quotas->Admit(tenant(), static_cast<int>(streams_.size()));
    if (!lease.ok()) {
      parts_.metrics->CountQuotaRefusal(tenant(), services::ReasonOf(lease.status()));
      return Finish(lease.status());
    }
    lease_ = *std::move(lease);
    absl::Status valid = Validate();
    if (!valid.ok()) return Finish(valid);
    if (with_session()) {
      session_key_ = {tenant(), request_.chat->session_id()};
      if (!pipeline_.LockSession(*session_key_)) {
        session_key_.reset();
        return Finish(SessionBusyError());
      }
    }
    parts_.models->Get([call = shared_from_this()](absl::StatusOr<ModelSnapshot> model) {
      call->Post(
          [&call = *call, model = std::move(model)]() mutable { call.OnModel(std::move(model)); });
    });
  }

  absl::Status Validate() const {
    const RequestLimits& limits = pipeline_.options().limits;
    if (request_.chat) {
      if (request_.n != 1 && with_session()) {
        return services::FieldError("n", "must be 1 with a session");
      }
      return ValidateChat(*request_.chat, limits);
    }
    size_t bytes = 0;
    for (const v1::CompleteRequest& prompt : request_.prompts) {
      absl::Status status = ValidateComplete(prompt, limits);
      if (!status.ok()) return status;
      bytes += prompt.text().size();
    }
    if (bytes <= limits.max_text_bytes) return absl::OkStatus();
    return services::FieldError("text", absl::StrCat("prompts have ", bytes, " bytes, at most ",
                                                     limits.max_text_bytes, " are allowed"));
  }

  void OnModel(absl::StatusOr<ModelSnapshot> model) {
    if (StopHere()) return;
    if (!model.ok()) return Finish(model.status());
    const std::string& name =
        request_.chat ? request_.chat->model() : request_.prompts.front().model();
    absl::StatusOr<std::string> adapter = AdapterOfModel(name, **model);
    if (!adapter.ok()) return Finish(adapter.status());
    const std::string& field =
        request_.chat ? request_.chat->adapter() : request_.prompts.front().adapter();
    if (!adapter->empty() && !field.empty() && *adapter != field) {
      return Finish(services::FieldError(
          "adapter", absl::StrCat("\"", field, "\" is not the one that the model \"", name,
                                  "\" names; give one of them")));
    }
    adapter_ = field.empty() ? *std::move(adapter) : field;
    model_id_ = (*model)->model().id();
    if (!request_.chat) return Generate();
    if (!with_session()) return Route();
    session_started_ = Now();
    parts_.sessions->Load(
        session_key_->first, session_key_->second,
        [call = shared_from_this()](absl::StatusOr<std::vector<StoredTurn>> turns) {
          call->Post([&call = *call, turns = std::move(turns)]() mutable {
            call.OnTurns(std::move(turns));
          });
        });
  }

  void OnTurns(absl::StatusOr<std::vector<StoredTurn>> turns) {
    session_seconds_ += Now() - session_started_;
    if (!turns.ok()) parts_.metrics->CountSessionError("load", turns.status());
    if (StopHere()) return;
    if (!turns.ok()) return Finish(turns.status());
    turns_ = *std::move(turns);
    Route();
  }

  // System messages, then the stored turns, then the rest.
  v1::Messages Conversation() const {
    v1::Messages conversation;
    bool placed = turns_.empty();
    for (const v1::Message& message : request_.chat->messages()) {
      if (!placed && message.role() != v1::ROLE_SYSTEM) {
        for (const StoredTurn& turn : turns_) {
          AddMessage(&conversation, v1::ROLE_USER, turn.user);
          AddMessage(&conversation, v1::ROLE_ASSISTANT, turn.assistant);
        }
        placed = true;
      }
      *conversation.add_messages() = message;
    }
    return conversation;
  }

  static void AddMessage(v1::Messages* messages, v1::Role role, const std::string& content) {
    v1::Message* message = messages->add_messages();
    message->set_role(role);
    message->set_content(content);
  }

  // The last `count` messages that are not the system's, each cut to a bounded size.
  template <typename Request>
  static Request LastMessages(const v1::Messages& conversation, size_t count) {
    std::vector<const v1::Message*> last;
    for (auto it = conversation.messages().rbegin();
         it != conversation.messages().rend() && last.size() < count; ++it) {
      if (it->role() != v1::ROLE_SYSTEM) last.push_back(&*it);
    }
    Request request;
    for (auto it = last.rbegin(); it != last.rend(); ++it) {
      v1::Message* message = request.add_messages();
      message->set_role((*it)->role());
      message->set_content(
          std::string(services::TruncateUtf8((*it)->content(), kRouterMessageBytes)));
    }
    return request;
  }

  void Route() {
    if (!parts_.backends->has_router()) return Generate();
    const v1::Messages conversation = Conversation();
    route_started_ = Now();
    router_pending_ = 2;
    services::RequestContext context = request_.context;
    context.deadline =
        std::min(context.deadline, route_started_ + pipeline_.options().router_seconds);
    parts_.backends->Route(context, LastMessages<v1::RouteRequest>(conversation, kRouterMessages),
                           [call = shared_from_this()](absl::StatusOr<v1::RouteResponse> response) {
                             call->Post([&call = *call, response = std::move(response)]() mutable {
                               if (response.ok()) {
                                 call.parts_.metrics->CountRoute(*response);
                                 call.route_ = *std::move(response);
                               } else {
                                 call.Degraded("Route", response.status());
                               }
                               call.OnRouter();
                             });
                           });
    parts_.backends->Detect(
        context, LastMessages<v1::DetectRequest>(conversation, kDetectMessages),
        [call = shared_from_this()](absl::StatusOr<v1::DetectResponse> response) {
          call->Post([&call = *call, response = std::move(response)]() mutable {
            if (response.ok()) {
              call.parts_.metrics->CountEscalation(*response);
              call.detection_ = *std::move(response);
            } else {
              call.Degraded("Detect", response.status());
            }
            call.OnRouter();
          });
        });
  }

  void Degraded(const char* what, const absl::Status& status) {
    parts_.metrics->CountRouterDegraded(what);
    notes_.push_back(absl::StrCat("router unavailable: ", what, " answered ",
                                  std::string(services::CodeName(status.code()))));
  }

  void OnRouter() {
    if (--router_pending_ > 0) return;
    route_seconds_ = Now() - route_started_;
    parts_.metrics->ObserveRouterLatency(route_seconds_);
    if (StopHere()) return;
    Generate();
  }

  void Generate() {
    parts_.metrics->Streams(static_cast<int>(streams_.size()));
    for (size_t choice = 0; choice < streams_.size(); ++choice) StartStream(choice);
  }

  void StartStream(size_t choice) {
    const auto n = static_cast<size_t>(request_.n);
    v1::GenerateRequest request;
    if (request_.chat) {
      *request.mutable_messages() = Conversation();
      *request.mutable_sampling() = request_.chat->sampling();
      request.set_priority(request_.chat->priority());
      request.set_speculation(request_.chat->speculation());
      request.set_session_id(request_.chat->session_id());
    } else {
      const v1::CompleteRequest& prompt = request_.prompts[choice / n];
      if (prompt.has_tokens()) {
        *request.mutable_tokens() = prompt.tokens();
      } else {
        request.set_text(prompt.text());
      }
      *request.mutable_sampling() = prompt.sampling();
      request.set_priority(prompt.priority());
      request.set_speculation(prompt.speculation());
      request.set_parse_special(prompt.parse_special());
    }
    request.set_adapter(adapter_);
    // The same seed for each choice would give the same answer n times.
    if (request.sampling().has_seed()) {
      request.mutable_sampling()->set_seed(request.sampling().seed() + choice % n);
    }
    request.set_features(choice == 0 && parts_.backends->has_router());
    streams_[choice].sent = true;
    // The first event may come before Generate returns; it waits in the queue meanwhile.
    streams_[choice].call = parts_.backends->Generate(
        request_.context, request, std::make_shared<Sink>(shared_from_this(), choice));
  }

  void OnResponse(size_t choice, v1::GenerateResponse response) {
    Stream& stream = streams_[choice];
    if (!stopped_.ok() || stream.ended) return;
    if (response.has_complete()) {
      stream.complete = std::move(*response.mutable_complete());
      return;
    }
    if (!response.has_chunk()) return;
    stream.started = true;
    v1::GenerateChunk& chunk = *response.mutable_chunk();
    stream.tokens += chunk.token_ids_size();
    if (outcome_.first_token_seconds < 0) {
      outcome_.first_token_seconds = Now() - request_.started;
      parts_.metrics->ObserveFirstToken(outcome_.first_token_seconds);
    }
    if (choice == 0) TakeFeatures(chunk);
    chunk.clear_features();
    const v1::SamplingParams& sampling = Sampling(choice);
    if (!sampling.logprobs()) chunk.clear_logprobs();
    if (with_session()) answer_ += chunk.text();
    observer_->OnChunk(static_cast<int>(choice), std::move(chunk));
  }

  const v1::SamplingParams& Sampling(size_t choice) const {
    return request_.chat ? request_.chat->sampling()
                         : request_.prompts[choice / static_cast<size_t>(request_.n)].sampling();
  }

  void TakeFeatures(const v1::GenerateChunk& chunk) {
    for (const v1::TokenFeatures& features : chunk.features()) {
      if (features_.logprobs_size() >= kMaxFeatures) return;
      features_.add_logprobs(features.logprob());
      features_.add_margins(features.margin());
      features_.add_entropies(features.entropy());
    }
  }

  void OnFinished(size_t choice, absl::Status status) {
    Stream& stream = streams_[choice];
    if (stopped_.ok() && !status.ok() && !stream.started) {
      stream.sent = IsBrokenOff(status);
      if (absl::IsUnavailable(status) && !stream.retried) {
        stream.retried = true;
        parts_.metrics->CountDecoderRetry();
        notes_.push_back("the decoder was unavailable, Generate was repeated");
        return StartStream(choice);
      }
      // A long conversation outgrows the context: the oldest turns go first, as they do after five.
      if (absl::IsOutOfRange(status) && !turns_.empty()) {
        turns_.erase(turns_.begin());
        ++turns_dropped_;
        parts_.metrics->CountTurnsDropped(1);
        return StartStream(choice);
      }
    }
    stream.ended = true;
    stream.call = nullptr;
    if (stopped_.ok()) {
      if (status.ok() && !stream.complete) {
        status = services::WithReason(
            absl::InternalError("the decoder ended its stream without completing the answer"),
            "BROKEN_STREAM");
      }
      if (!status.ok()) {
        Stop(std::move(status));
      } else {
        parts_.models->Observe(stream.complete->receipt());
        if (!with_session()) observer_->OnChoiceDone(static_cast<int>(choice), *stream.complete);
      }
    }
    const bool all_ended = std::all_of(streams_.begin(), streams_.end(),
                                       [](const Stream& other) { return other.ended; });
    if (!all_ended || finished_) return;
    parts_.metrics->Streams(-static_cast<int>(streams_.size()));
    if (!stopped_.ok()) return Finish(stopped_);
    if (with_session()) return Commit();
    Finish(absl::OkStatus());
  }

  void Commit() {
    committing_ = true;
    session_started_ = Now();
    const v1::Message& last = request_.chat->messages(request_.chat->messages_size() - 1);
    parts_.sessions->Commit(
        session_key_->first, session_key_->second, last.content(), std::move(answer_),
        [call = shared_from_this()](absl::StatusOr<int64_t> number) {
          call->Post([&call = *call, number = std::move(number)] { call.OnCommitted(number); });
        });
  }

  void OnCommitted(const absl::StatusOr<int64_t>& number) {
    const double seconds = Now() - session_started_;
    session_seconds_ += seconds;
    parts_.metrics->CountSessionCommit(number.status(), seconds);
    if (!number.ok()) return Finish(number.status());
    observer_->OnChoiceDone(0, *streams_[0].complete);
    Finish(absl::OkStatus());
  }

  // An end in the middle of the work, rather than a refusal of it.
  static bool IsBrokenOff(const absl::Status& status) {
    return absl::IsCancelled(status) || absl::IsDeadlineExceeded(status) ||
           absl::IsInternal(status);
  }

  // The first reason counts. What is under way ends by itself and finds `stopped_`.
  void Stop(absl::Status why) {
    if (finished_ || committing_ || !stopped_.ok()) return;
    stopped_ = why.ok() ? absl::CancelledError("the call was stopped") : std::move(why);
    for (Stream& stream : streams_) {
      // A copy: the cancellation may end the stream at once.
      const std::shared_ptr<BackendCall> call = stream.call;
      if (call != nullptr) call->Cancel();
    }
  }

  // Between steps: true when the call was stopped and is now finished.
  bool StopHere() {
    if (finished_) return true;
    if (stopped_.ok()) return false;
    Finish(stopped_);
    return true;
  }

  void Finish(const absl::Status& status) {
    finished_ = true;
    if (session_key_) pipeline_.UnlockSession(*session_key_);
    CountUsage();
    if (lease_ != nullptr) {
      lease_->Charge(int64_t{outcome_.usage.prompt_tokens()} + outcome_.usage.completion_tokens());
      lease_ = nullptr;
    }
    Record(status);
    if (status.ok()) Assess();
    observer_->OnDone(status, outcome_);
    observer_ = nullptr;
    pipeline_.Leave(this);
  }

  void CountUsage() {
    bool any = false;
    for (size_t choice = 0; choice < streams_.size(); ++choice) {
      const Stream& stream = streams_[choice];
      const bool first_of_prompt = choice % static_cast<size_t>(request_.n) == 0;
      v1::Usage usage;
      if (stream.complete) {
        usage = stream.complete->usage();
      } else if (stream.sent) {
        // Broken off: what was generated, and the prompt by its size: its work was begun.
        usage.set_completion_tokens(stream.tokens);
        usage.set_prompt_tokens(EstimatedPromptTokens(choice));
      } else {
        continue;
      }
      any = true;
      v1::Usage& total = outcome_.usage;
      total.set_completion_tokens(total.completion_tokens() + usage.completion_tokens());
      if (first_of_prompt) {
        total.set_prompt_tokens(total.prompt_tokens() + usage.prompt_tokens());
        total.set_cached_tokens(total.cached_tokens() + usage.cached_tokens());
      }
    }
    if (!streams_.empty() && streams_[0].complete) {
      outcome_.timings = streams_[0].complete->timings();
    }
    if (any) parts_.metrics->CountUsage(tenant(), outcome_.usage);
  }

  int EstimatedPromptTokens(size_t choice) const {
    int64_t bytes = 0;
    if (request_.chat) {
      for (const v1::Message& message : request_.chat->messages()) {
        bytes += static_cast<int64_t>(message.content().size());
      }
      for (const StoredTurn& turn : turns_) {
        bytes += static_cast<int64_t>(turn.user.size() + turn.assistant.size());
      }
    } else {
      const v1::CompleteRequest& prompt =
          request_.prompts[choice / static_cast<size_t>(request_.n)];
      if (prompt.has_tokens()) return prompt.tokens().ids_size();
      bytes = static_cast<int64_t>(prompt.text().size());
    }
    return static_cast<int>(bytes / kBytesPerToken + 1);
  }

  void Record(const absl::Status& status) {
    v1::ExplainResponse record;
    record.set_request_id(request_.context.request_id);
    record.set_tenant(tenant());
    record.set_model(adapter_.empty() ? model_id_ : absl::StrCat(model_id_, ":", adapter_));
    if (route_) *record.mutable_route() = *route_;
    if (detection_) *record.mutable_escalation() = *detection_;
    record.set_tier(kTier);
    record.set_status(std::string(services::CodeName(status.code())));
    *record.mutable_usage() = outcome_.usage;
    if (!streams_.empty() && streams_[0].complete) {
      const v1::GenerateComplete& complete = *streams_[0].complete;
      *record.mutable_timings() = complete.timings();
      *record.mutable_speculation() = complete.speculation();
      *record.mutable_receipt() = complete.receipt();
    }
    record.set_route_seconds(route_seconds_);
    record.set_session_seconds(session_seconds_);
    record.set_total_seconds(Now() - request_.started);
    record.set_created_ms(created_ms_);
    if (turns_dropped_ > 0) {
      notes_.push_back(absl::StrCat(turns_dropped_, " stored turns did not fit the context"));
    }
    for (std::string& note : notes_) record.add_notes(std::move(note));
    parts_.explain->Add(std::move(record));
  }

  void Assess() {
    if (!parts_.backends->has_router() || features_.logprobs().empty()) return;
    features_.set_domain(route_ ? route_->domain() : v1::DOMAIN_UNSPECIFIED);
    features_.set_prompt_tokens(streams_[0].complete->usage().prompt_tokens());
    features_.set_finish_reason(streams_[0].complete->finish_reason());
    services::RequestContext context = request_.context;
    context.deadline = Now() + pipeline_.options().assess_seconds;
    {
      std::lock_guard lock(pipeline_.mutex_);
      ++pipeline_.assessments_;
    }
    parts_.backends->Assess(context, features_,
                            [pipeline = &pipeline_, id = request_.context.request_id,
                             created = created_ms_](absl::StatusOr<v1::AssessResponse> response) {
                              const PipelineParts& parts = pipeline->parts();
                              if (response.ok()) {
                                parts.metrics->ObserveConfidence(*response);
                                parts.explain->SetConfidence(id, created, *std::move(response));
                              } else {
                                parts.metrics->CountRouterDegraded("Assess");
                              }
                              std::lock_guard lock(pipeline->mutex_);
                              --pipeline->assessments_;
                              pipeline->idle_.notify_all();
                            });
  }

  Pipeline& pipeline_;
  const PipelineParts& parts_;
  CallRequest request_;
  std::shared_ptr<CallObserver> observer_;
  SerialQueue queue_;

  absl::Status stopped_;
  bool committing_ = false;
  bool finished_ = false;
  std::unique_ptr<QuotaManager::Lease> lease_;
  std::optional<Pipeline::SessionKey> session_key_;
  std::vector<StoredTurn> turns_;
  std::vector<Stream> streams_;
  std::string answer_;
  v1::AssessRequest features_;

  std::string model_id_;
  std::string adapter_;
  std::optional<v1::RouteResponse> route_;
  std::optional<v1::DetectResponse> detection_;
  int router_pending_ = 0;
  int turns_dropped_ = 0;
  std::vector<std::string> notes_;
  CallOutcome outcome_;
  int64_t created_ms_ = 0;
  double route_started_ = 0;
  double route_seconds_ = 0;
  double session_started_ = 0;
  double session_seconds_ = 0;
};

absl::Status SessionBusyError() {
  return services::WithReason(
      absl::AbortedError("another turn of this session is running; wait for its end"),
      "SESSION_BUSY");
}

Pipeline::Pipeline(const PipelineOptions& options, const PipelineParts& parts)
    : options_(options), parts_(parts) {}

Pipeline::~Pipeline() {
  std::vector<std::shared_ptr<PipelineCall>> calls;
  {
    std::lock_guard lock(mutex_);
    for (auto& [call, weak] : calls_) {
      if (auto shared = weak.lock()) calls.push_back(std::move(shared));
    }
  }
  for (const auto& call : calls) {
    call->Cancel(absl::UnavailableError("the gateway is shutting down"));
  }
  calls.clear();
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return calls_.empty() && assessments_ == 0; });
}

std::shared_ptr<PipelineCall> Pipeline::Prepare(CallRequest request,
                                                std::shared_ptr<CallObserver> observer) {
  return std::make_shared<Call>(*this, std::move(request), std::move(observer));
}

int Pipeline::running() const {
  std::lock_guard lock(mutex_);
  return static_cast<int>(calls_.size()) + assessments_;
}

void Pipeline::Enter(PipelineCall* call, std::weak_ptr<PipelineCall> weak) {
  std::lock_guard lock(mutex_);
  calls_.emplace(call, std::move(weak));
}

void Pipeline::Leave(PipelineCall* call) {
  std::lock_guard lock(mutex_);
  calls_.erase(call);
  idle_.notify_all();
}

bool Pipeline::LockSession(const SessionKey& key) {
  std::lock_guard lock(mutex_);
  return locked_.insert(key).second;
}

void Pipeline::UnlockSession(const SessionKey& key) {
  std::lock_guard lock(mutex_);
  locked_.erase(key);
}

}  // namespace cogumi::gateway
