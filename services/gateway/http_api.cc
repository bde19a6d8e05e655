#include "services/gateway/http_api.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <optional>
#include <utility>

#include "services/common/logging.h"
#include "services/common/metrics.h"
#include "services/common/status.h"
#include "services/common/text.h"
#include "services/gateway/openai_request.h"
#include "services/gateway/openai_response.h"

namespace cogumi::gateway {
namespace {

namespace v1 = cogumi::v1;
using services::Cat;

constexpr char kJson[] = "application/json";
constexpr char kSessionHeader[] = "cogumi-session";
constexpr double kUnavailableRetrySeconds = 1;
// What the log and the metrics call a caller who went away before an answer.
constexpr int kClientClosed = 499;

// What the log line and the metrics say at the end of a request: when its transport has ended, and
// the pipeline's call, when there is one. Either may end first. What it uses outlives the pipeline.
class RequestRecord {
 public:
  RequestRecord(services::ServiceRuntime& runtime, GatewayMetrics& metrics, std::string method,
                std::string route, std::string id, std::string tenant)
      : request_id(std::move(id)),
        runtime_(runtime),
        metrics_(metrics),
        method_(std::move(method)),
        route_(std::move(route)),
        tenant_(std::move(tenant)),
        entered_(runtime.calls.Enter()) {}

  // False: the service is draining, the request is to be refused.
  bool entered() const { return entered_; }

  void SetTenant(const std::string& tenant) {
    std::lock_guard lock(mutex_);
    tenant_ = tenant;
  }
  void SetStatus(const absl::Status& status) {
    std::lock_guard lock(mutex_);
    status_ = status;
  }
  // The pipeline works for it: AnswerEnded will come.
  void AnswerBegins() {
    std::lock_guard lock(mutex_);
    answering_ = true;
  }
  void AnswerEnded(const absl::Status& status, const CallOutcome& outcome) {
    std::lock_guard lock(mutex_);
    status_ = status;
    outcome_ = outcome;
    answering_ = false;
    if (transport_ended_) Write();
  }
  // The peer has not got the whole answer.
  void Gone() {
    std::lock_guard lock(mutex_);
    gone_ = true;
  }
  // `status`: of HTTP, 0 when none was sent.
  void TransportEnded(int status, double seconds) {
    std::lock_guard lock(mutex_);
    transport_ended_ = true;
    gone_ = gone_ || status == 0;
    http_status_ = gone_ ? kClientClosed : status;
    seconds_ = seconds;
    if (!answering_) Write();
  }

  const std::string request_id;

 private:
  // With the lock held.
  void Write() {
    if (gone_ && status_.ok()) status_ = absl::CancelledError("the caller has gone");
    metrics_.ObserveHttp(route_, method_, http_status_, seconds_);
    // Probes and scrapes would drown the rest.
    if (route_ != "/health" && route_ != "/metrics") {
      const std::string method = Cat(method_, " ", route_);
      const std::string reason = status_.ok() ? std::string() : services::ReasonOf(status_);
      services::RequestLogEntry entry{.service = runtime_.name,
                                      .method = method,
                                      .request_id = request_id,
                                      .tenant = tenant_,
                                      .status = services::CodeName(status_.code()),
                                      .reason = reason,
                                      .seconds = seconds_};
      if (outcome_.usage.prompt_tokens() > 0) {
        entry.prompt_tokens = outcome_.usage.prompt_tokens();
        entry.completion_tokens = outcome_.usage.completion_tokens();
        entry.queue_seconds = outcome_.timings.queue_seconds();
        entry.first_token_seconds = outcome_.first_token_seconds;
      }
      runtime_.LogRequest(entry);
    }
    if (entered_) runtime_.calls.Leave();
  }

  services::ServiceRuntime& runtime_;
  GatewayMetrics& metrics_;
  const std::string method_;  // "POST"
  const std::string route_;   // "/v1/chat/completions"

  std::mutex mutex_;
  std::string tenant_;
  absl::Status status_;
  CallOutcome outcome_;
  bool answering_ = false;
  bool gone_ = false;
  bool transport_ended_ = false;
  int http_status_ = 0;
  double seconds_ = 0;
  const bool entered_;  // counted as a running call
};

std::string Lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

// %41 becomes A; malformed escapes stay as they are.
std::string PercentDecode(std::string_view text) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && digit(text[i + 1]) >= 0 &&
        digit(text[i + 2]) >= 0) {
      out.push_back(static_cast<char>(digit(text[i + 1]) * 16 + digit(text[i + 2])));
      i += 2;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

// A name that a page of another site cannot have: guards an open gateway against pages that
// rebind their own name to a loopback address.
bool IsLoopbackHost(std::string_view host) {
  if (host.starts_with("[")) return host.substr(0, host.find(']') + 1) == "[::1]";
  const std::string name = Lower(host.substr(0, host.find(':')));
  if (name == "localhost") return true;
  return name.starts_with("127.") && std::all_of(name.begin(), name.end(), [](char c) {
           return c == '.' || (c >= '0' && c <= '9');
         });
}

// Retry-After is in whole seconds.
std::optional<int64_t> RetryAfter(const absl::Status& status) {
  const auto seconds = services::RetryAfterOf(status);
  if (seconds) return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(*seconds)));
  if (absl::IsUnavailable(status)) return static_cast<int64_t>(kUnavailableRetrySeconds);
  return std::nullopt;
}

// One request's answer, with the headers that every answer of it has.
class Reply {
 public:
  Reply(std::shared_ptr<HttpExchange> exchange, std::shared_ptr<RequestRecord> record,
        HttpHeaders headers)
      : exchange_(std::move(exchange)), record_(std::move(record)), headers_(std::move(headers)) {}

  HttpExchange& exchange() { return *exchange_; }
  RequestRecord& record() { return *record_; }
  std::shared_ptr<RequestRecord> shared_record() { return record_; }

  void Send(int status, const char* content_type, std::string body, const HttpHeaders& more = {}) {
    HttpHeaders headers = headers_;
    if (!body.empty()) headers.emplace_back("Content-Type", content_type);
    headers.insert(headers.end(), more.begin(), more.end());
    exchange_->Respond(status, headers, std::move(body));
  }

  void SendError(const absl::Status& status, bool chat = true) {
    record_->SetStatus(status);
    HttpHeaders more;
    if (const auto retry = RetryAfter(status)) more.emplace_back("Retry-After", Cat(*retry));
    if (absl::IsUnauthenticated(status)) more.emplace_back("WWW-Authenticate", "Bearer");
    Send(HttpStatusOf(status), kJson, ErrorBody(status, chat), more);
  }

  // Errors of HTTP itself.
  void SendHttpError(int status, std::string_view message, const HttpHeaders& more = {}) {
    record_->SetStatus(absl::InvalidArgumentError(services::Absl(message)));
    Send(status, kJson, HttpErrorBody(status, message), more);
  }

  void StartEvents() {
    HttpHeaders headers = headers_;
    headers.emplace_back("Content-Type", "text/event-stream; charset=utf-8");
    headers.emplace_back("Cache-Control", "no-cache");
    // Proxies that buffer would hold the tokens back.
    headers.emplace_back("X-Accel-Buffering", "no");
    exchange_->StartStream(200, headers);
  }

 private:
  const std::shared_ptr<HttpExchange> exchange_;
  const std::shared_ptr<RequestRecord> record_;
  const HttpHeaders headers_;
};

// A completion on its way out, whole or as events.
class CompletionAnswer : public CallObserver {
 public:
  CompletionAnswer(std::shared_ptr<Reply> reply, ModelCatalogue& models, AnswerFrame frame,
                   bool stream, int choices)
      : reply_(std::move(reply)),
        models_(models),
        frame_(std::move(frame)),
        stream_(stream),
        choices_(choices) {}

  void OnChunk(int choice, v1::GenerateChunk chunk) override {
    Begin();
    if (!stream_) return body_->AddChunk(choice, chunk);
    out_.clear();
    events_->AppendChunk(choice, chunk, &out_);
    reply_->exchange().Write(out_);
  }

  void OnChoiceDone(int choice, const v1::GenerateComplete& complete) override {
    Begin();
    if (!stream_) return body_->Finish(choice, complete);
    out_.clear();
    events_->SetReceipt(complete.receipt());
    events_->AppendFinish(choice, complete.finish_reason(), &out_);
    reply_->exchange().Write(out_);
  }

  void OnDone(const absl::Status& status, const CallOutcome& outcome) override {
    reply_->record().AnswerEnded(status, outcome);
    if (!status.ok()) {
      if (!begun_ || !stream_) return reply_->SendError(status, frame_.chat);
      // The status line is out: the error is an event, and the missing end mark tells the rest.
      reply_->exchange().Write(Cat("data: ", ErrorBody(status, frame_.chat), "\n\n"));
      return reply_->exchange().EndStream(/*clean=*/false);
    }
    if (!stream_) return reply_->Send(200, kJson, body_->Body(outcome.usage));
    out_.clear();
    events_->AppendDone(outcome.usage, &out_);
    reply_->exchange().Write(out_);
    reply_->exchange().EndStream(/*clean=*/true);
  }

 private:
  // At the first event the pipeline has asked for the model, so its name is at hand.
  void Begin() {
    if (std::exchange(begun_, true)) return;
    if (const ModelSnapshot model = models_.Peek()) {
      if (frame_.model.empty()) frame_.model = model->model().id();
      // Of an adapter only its receipt tells the version, at the end.
      if (frame_.model == model->model().id()) {
        frame_.fingerprint = SystemFingerprint(model->model().digest(), model->kernel_digest());
      }
    }
    if (!stream_) {
      body_.emplace(frame_, choices_);
      return;
    }
    events_.emplace(frame_, choices_);
    reply_->StartEvents();
  }

  const std::shared_ptr<Reply> reply_;
  ModelCatalogue& models_;
  AnswerFrame frame_;
  const bool stream_;
  const int choices_;
  bool begun_ = false;
  std::optional<EventFormat> events_;
  std::optional<BodyFormat> body_;
  std::string out_;
};

}  // namespace

struct HttpApi::Impl {
  const HttpApiOptions options;
  services::ServiceRuntime& runtime;
  const TenantDirectory& tenants;
  Pipeline& pipeline;
  const PipelineParts& parts;
  const std::function<bool()> healthy;
  const bool any_origin;

  bool OriginAllowed(std::string_view origin) const {
    return any_origin || std::find(options.cors_origins.begin(), options.cors_origins.end(),
                                   origin) != options.cors_origins.end();
  }

  // Headers that every answer to this request has.
  HttpHeaders BaseHeaders(const HttpRequest& request, const std::string& request_id) const {
    HttpHeaders headers = {{"X-Request-Id", request_id}};
    const std::string_view origin = request.Header("origin");
    if (origin.empty() || options.cors_origins.empty()) return headers;
    if (!any_origin) headers.emplace_back("Vary", "Origin");
    if (OriginAllowed(origin)) {
      headers.emplace_back("Access-Control-Allow-Origin",
                           any_origin ? std::string("*") : std::string(origin));
      headers.emplace_back("Access-Control-Expose-Headers", "X-Request-Id, Retry-After");
    }
    return headers;
  }

  void Preflight(const HttpRequest& request, Reply& reply) const {
    if (!OriginAllowed(request.Header("origin"))) {
      return reply.SendHttpError(403, "this origin is not allowed");
    }
    HttpHeaders headers = {{"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
                           {"Access-Control-Max-Age", "600"}};
    // Whatever headers the page wants to send: they decide nothing but what they say.
    const std::string_view wanted = request.Header("access-control-request-headers");
    const bool plain = std::all_of(wanted.begin(), wanted.end(), [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
             c == '-' || c == '_' || c == ',' || c == ' ';
    });
    if (!wanted.empty() && plain) {
      headers.emplace_back("Access-Control-Allow-Headers", std::string(wanted));
    }
    reply.Send(204, kJson, "", headers);
  }

  void Complete(const HttpRequest& request, const std::shared_ptr<Reply>& reply, Identity identity,
                bool chat) {
    const std::string_view type = request.Header("content-type");
    if (Lower(type.substr(0, type.find(';'))).find(kJson) == std::string::npos) {
      return reply->SendHttpError(415, "the Content-Type must be application/json");
    }
    auto parsed = chat ? ParseOpenAiChat(request.body) : ParseOpenAiCompletion(request.body);
    if (!parsed.ok()) return reply->SendError(parsed.status(), chat);

    CallRequest call;
    call.identity = std::move(identity);
    call.started = runtime.clock->Now();
    call.context.request_id = reply->record().request_id;
    const std::string_view trace = request.Header(services::kTraceparentKey);
    if (services::IsValidTraceparent(trace)) call.context.traceparent = std::string(trace);
    call.n = parsed->n;
    const std::string_view session = request.Header(kSessionHeader);
    if (chat) {
      parsed->chat_request.set_session_id(std::string(session));
      call.chat = std::move(parsed->chat_request);
    } else {
      if (!session.empty()) {
        return reply->SendError(
            services::FieldError("session_id", "belongs to /v1/chat/completions"), chat);
      }
      call.prompts = std::move(parsed->prompts);
    }
    AnswerFrame frame{.chat = chat,
                      .id = Cat(chat ? "chatcmpl-" : "cmpl-", call.context.request_id),
                      .created = static_cast<int64_t>(runtime.clock->UnixNow()),
                      .model = chat ? call.chat->model() : call.prompts.front().model(),
                      .fingerprint = "",
                      .logprobs = parsed->logprobs,
                      .include_usage = parsed->include_usage};
    // The pipeline refuses a product beyond its limit before anything is streamed.
    const int choices =
        std::clamp(call.n, 1, kMaxChoices) * static_cast<int>(chat ? 1 : call.prompts.size());
    const std::shared_ptr<RequestRecord> record = reply->shared_record();
    record->AnswerBegins();
    auto answer = std::make_shared<CompletionAnswer>(reply, *parts.models, std::move(frame),
                                                     parsed->stream, choices);
    std::shared_ptr<PipelineCall> running = pipeline.Prepare(std::move(call), std::move(answer));
    reply->exchange().SetOnGone([running, record, metrics = parts.metrics](bool overflow) {
      record->Gone();
      if (!overflow) return running->Cancel(absl::CancelledError("the caller has gone"));
      metrics->CountSlowReader();
      running->Cancel(services::WithReason(
          absl::ResourceExhaustedError("the reader is slower than the answer: its buffer is full"),
          "SLOW_READER"));
    });
    running->Start();
  }

  void Models(std::shared_ptr<Reply> reply, std::optional<std::string> id) {
    parts.models->GetFresh(
        [reply = std::move(reply), id = std::move(id)](absl::StatusOr<ModelSnapshot> model) {
          if (!model.ok()) return reply->SendError(model.status());
          const std::vector<v1::ModelDescription> served = ServedModels(**model);
          if (!id) return reply->Send(200, kJson, ModelListBody(served));
          for (const v1::ModelDescription& one : served) {
            if (one.id() == *id) return reply->Send(200, kJson, ModelBody(one));
          }
          reply->SendError(ModelNotFound(*id, **model));
        });
  }

  void Health(Reply& reply) const {
    const bool draining = runtime.calls.draining();
    const bool ok = !draining && healthy();
    reply.Send(ok ? 200 : 503, kJson,
               Cat("{\"status\":\"",
                   ok         ? "ok"
                   : draining ? "draining"
                              : "unavailable",
                   "\"}"));
  }
};

HttpApi::HttpApi(const HttpApiOptions& options, services::ServiceRuntime& runtime,
                 const TenantDirectory& tenants, Pipeline& pipeline, std::function<bool()> healthy)
    : impl_(new Impl{options, runtime, tenants, pipeline, pipeline.parts(), std::move(healthy),
                     std::find(options.cors_origins.begin(), options.cors_origins.end(), "*") !=
                         options.cors_origins.end()}) {}

HttpApi::~HttpApi() = default;

void HttpApi::Handle(const HttpRequest& request, std::shared_ptr<HttpExchange> exchange) {
  const std::string path = request.target.substr(0, request.target.find('?'));
  constexpr std::string_view kModels = "/v1/models/";
  struct Route {
    std::string_view path;
    bool post;
  };
  static constexpr Route kRoutes[] = {{"/v1/chat/completions", true},
                                      {"/v1/completions", true},
                                      {"/v1/models", false},
                                      {"/health", false},
                                      {"/metrics", false}};
  const Route* route = nullptr;
  for (const Route& known : kRoutes) {
    if (known.path == path) route = &known;
  }
  const bool one_model = path.starts_with(kModels);
  const bool get = request.method == "GET" || request.method == "HEAD";

  const std::string_view id = request.Header(services::kRequestIdKey);
  // Entered until the last byte is out, so that a drain loses none of them.
  auto record = std::make_shared<RequestRecord>(
      impl_->runtime, *impl_->parts.metrics,
      get || request.method == "POST" || request.method == "OPTIONS" ? request.method : "other",
      one_model ? "/v1/models/{id}" : std::string(route != nullptr ? route->path : "other"),
      services::IsValidRequestId(id) ? std::string(id) : services::NewRequestId(),
      impl_->tenants.open() ? Identity().tenant : "unknown");
  const bool draining = !record->entered();
  exchange->SetOnFinished(
      [record](int status, double seconds) { record->TransportEnded(status, seconds); });
  auto reply = std::make_shared<Reply>(std::move(exchange), record,
                                       impl_->BaseHeaders(request, record->request_id));

  if (request.refused_status != 0) {
    return reply->SendHttpError(request.refused_status, request.refused_reason);
  }
  if (route == nullptr && !one_model) {
    return reply->SendHttpError(404, "there is nothing at this path");
  }
  if (impl_->tenants.open()) {
    const std::string_view host = request.Header("host");
    if (!host.empty() && !IsLoopbackHost(host)) {
      return reply->SendHttpError(403, "an open gateway answers to loopback names only");
    }
  }
  if (request.method == "OPTIONS" && !request.Header("origin").empty()) {
    return impl_->Preflight(request, *reply);
  }
  const bool post = route != nullptr && route->post;
  if (post ? request.method != "POST" : !get) {
    return reply->SendHttpError(405, Cat("this path takes ", post ? "POST" : "GET"),
                                {{"Allow", post ? "POST, OPTIONS" : "GET, HEAD, OPTIONS"}});
  }
  if (path == "/health") return impl_->Health(*reply);
  if (draining && path != "/metrics") {
    return reply->SendError(
        services::WithReason(absl::UnavailableError("the service is shutting down"), "DRAINING"));
  }

  auto identity = impl_->tenants.Identify(request.Header("authorization"));
  if (!identity.ok()) return reply->SendError(identity.status());
  record->SetTenant(identity->tenant);
  if (path == "/metrics") {
    if (!identity->is_operator) {
      return reply->SendError(services::WithReason(
          absl::PermissionDeniedError("the token does not have the role operator"),
          "ROLE_MISSING"));
    }
    return reply->Send(200, "text/plain; version=0.0.4",
                       services::RenderMetrics(*impl_->runtime.metrics));
  }
  if (post) {
    return impl_->Complete(request, reply, *std::move(identity), path == "/v1/chat/completions");
  }
  impl_->Models(std::move(reply), one_model
                                      ? std::optional(PercentDecode(path.substr(kModels.size())))
                                      : std::nullopt);
}

}  // namespace cogumi::gateway
