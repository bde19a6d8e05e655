#include "services/router/router_service.h"

#include <span>
#include <string>
#include <string_view>

#include "cogumi/v1/router.grpc.pb.h"
#include "engine/core/status_macros.h"
#include "router/confidence.h"
#include "router/domain.h"
#include "router/feedback.h"
#include "services/common/rpc_call.h"
#include "services/common/status.h"
#include "services/common/text.h"
#include "services/router/router_metrics.h"

namespace cogumi::services {
namespace {

constexpr int kMaxMessages = 1024;
constexpr size_t kMaxBytes = 4 << 20;
constexpr int kMaxPromptTokens = 1 << 24;
constexpr char kTier[] = "base";

absl::Status CheckMessages(const google::protobuf::RepeatedPtrField<v1::Message>& messages) {
  if (messages.empty()) return FieldError("messages", "empty");
  if (messages.size() > kMaxMessages) {
    return FieldError("messages",
                      Cat(messages.size(), " messages, at most ", kMaxMessages, " are taken"));
  }
  size_t bytes = 0;
  for (int i = 0; i < messages.size(); ++i) {
    const v1::Role role = messages[i].role();
    if (role != v1::ROLE_SYSTEM && role != v1::ROLE_USER && role != v1::ROLE_ASSISTANT) {
      return FieldError(Cat("messages[", i, "].role"),
                        Cat(static_cast<int>(role),
                            " is not one of ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT"));
    }
    bytes += messages[i].content().size();
  }
  if (bytes > kMaxBytes) {
    return FieldError("messages", Cat(bytes, " bytes, at most ", kMaxBytes, " are taken"));
  }
  return absl::OkStatus();
}

v1::Domain ToProto(router::Domain domain) {
  switch (domain) {
    case router::Domain::kGeneral:
      return v1::DOMAIN_GENERAL;
    case router::Domain::kCode:
      return v1::DOMAIN_CODE;
    case router::Domain::kReasoning:
      return v1::DOMAIN_REASONING;
    case router::Domain::kAutomation:
      return v1::DOMAIN_AUTOMATION;
  }
  return v1::DOMAIN_GENERAL;
}

v1::Feedback ToProto(router::Feedback feedback) {
  switch (feedback) {
    case router::Feedback::kNone:
      return v1::FEEDBACK_NONE;
    case router::Feedback::kSatisfied:
      return v1::FEEDBACK_SATISFIED;
    case router::Feedback::kConfused:
      return v1::FEEDBACK_CONFUSED;
    case router::Feedback::kFrustrated:
      return v1::FEEDBACK_FRUSTRATED;
    case router::Feedback::kAsksForMore:
      return v1::FEEDBACK_ASKS_FOR_MORE;
  }
  return v1::FEEDBACK_NONE;
}

// The user's new message, the answer before it and the question before that.
router::FeedbackInput FeedbackInputOf(
    const google::protobuf::RepeatedPtrField<v1::Message>& messages) {
  router::FeedbackInput input;
  int at = messages.size() - 1;
  input.message = messages[at--].content();
  while (at >= 0 && messages[at].role() != v1::ROLE_ASSISTANT) --at;
  if (at < 0) return input;
  input.answer = messages[at--].content();
  while (at >= 0 && messages[at].role() != v1::ROLE_USER) --at;
  if (at >= 0) input.previous_question = messages[at].content();
  return input;
}

// "logprobs[3]: ..." names the field in front of its first ':' or '['.
absl::Status WithFeatureField(const absl::Status& status) {
  const std::string_view message = Std(status.message());
  return WithReason(WithField(status, message.substr(0, message.find_first_of(":["))),
                    "INVALID_FIELD");
}

// Measures the classifier itself.
class Stopwatch {
 public:
  Stopwatch(RouterMetrics& metrics, const Clock& clock, std::string_view call)
      : metrics_(metrics), clock_(clock), call_(call), start_(clock.Now()) {}
  ~Stopwatch() { metrics_.Took(call_, clock_.Now() - start_); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  RouterMetrics& metrics_;
  const Clock& clock_;
  std::string_view call_;
  double start_;
};

class RouteImpl : public v1::RouterService::CallbackService {
 public:
  RouteImpl(ServiceRuntime& runtime, RouterMetrics& metrics)
      : runtime_(runtime), metrics_(metrics) {}

  grpc::ServerUnaryReactor* Route(grpc::CallbackServerContext* context,
                                  const v1::RouteRequest* request,
                                  v1::RouteResponse* response) override {
    return Unary(runtime_, context, "Route", [&](RpcCall&) -> absl::Status {
      RETURN_IF_ERROR(CheckMessages(request->messages()));
      std::vector<std::string_view> questions;
      for (const v1::Message& message : request->messages()) {
        if (message.role() == v1::ROLE_USER) questions.push_back(message.content());
      }
      if (questions.empty()) return FieldError("messages", "none of them is a user's");
      Decide(questions, response);
      return absl::OkStatus();
    });
  }

 private:
  void Decide(const std::vector<std::string_view>& questions, v1::RouteResponse* response) {
    const Stopwatch stopwatch(metrics_, *runtime_.clock, "Route");
    const router::DomainDecision decision = classifier_.Classify(questions);
    response->set_domain(ToProto(decision.domain));
    response->set_margin(decision.margin);
    response->set_abstained(decision.abstained);
    for (size_t d = 0; d < decision.scores.size(); ++d) {
      v1::DomainScore* score = response->add_scores();
      score->set_domain(ToProto(static_cast<router::Domain>(d)));
      score->set_score(decision.scores[d]);
    }
    response->set_tier(kTier);
    response->set_model(std::string(router::kModelName));
    response->set_calibrated(false);
    metrics_.Decided(router::DomainName(decision.domain), kTier, decision.abstained);
  }

  ServiceRuntime& runtime_;
  RouterMetrics& metrics_;
  const router::DomainClassifier classifier_;
};

class DetectImpl : public v1::EscalationService::CallbackService {
 public:
  DetectImpl(ServiceRuntime& runtime, RouterMetrics& metrics)
      : runtime_(runtime), metrics_(metrics) {}

  grpc::ServerUnaryReactor* Detect(grpc::CallbackServerContext* context,
                                   const v1::DetectRequest* request,
                                   v1::DetectResponse* response) override {
    return Unary(runtime_, context, "Detect", [&](RpcCall&) -> absl::Status {
      RETURN_IF_ERROR(CheckMessages(request->messages()));
      const int last = request->messages_size() - 1;
      if (request->messages(last).role() != v1::ROLE_USER) {
        return FieldError(Cat("messages[", last, "].role"), "the last message is the user's");
      }
      const Stopwatch stopwatch(metrics_, *runtime_.clock, "Detect");
      const router::FeedbackDecision decision =
          detector_.Detect(FeedbackInputOf(request->messages()));
      response->set_feedback(ToProto(decision.feedback));
      response->set_escalate(decision.escalate);
      response->set_score(decision.score);
      response->set_abstained(decision.abstained);
      for (const std::string& reason : decision.reasons) response->add_reasons(reason);
      response->set_model(std::string(router::kModelName));
      response->set_calibrated(false);
      metrics_.Detected(router::FeedbackName(decision.feedback));
      if (decision.escalate) {
        for (const std::string& reason : decision.reasons) metrics_.Escalated(reason);
      }
      return absl::OkStatus();
    });
  }

 private:
  ServiceRuntime& runtime_;
  RouterMetrics& metrics_;
  const router::FeedbackDetector detector_;
};

class AssessImpl : public v1::ConfidenceService::CallbackService {
 public:
  AssessImpl(ServiceRuntime& runtime, RouterMetrics& metrics)
      : runtime_(runtime), metrics_(metrics) {}

  grpc::ServerUnaryReactor* Assess(grpc::CallbackServerContext* context,
                                   const v1::AssessRequest* request,
                                   v1::AssessResponse* response) override {
    return Unary(runtime_, context, "Assess", [&](RpcCall&) -> absl::Status {
      if (request->prompt_tokens() < 0 || request->prompt_tokens() > kMaxPromptTokens) {
        return FieldError("prompt_tokens", Cat(request->prompt_tokens(), " is outside [0, ",
                                               kMaxPromptTokens, "]"));
      }
      if (!v1::Domain_IsValid(request->domain())) {
        return FieldError("domain", Cat(static_cast<int>(request->domain()), " is not known"));
      }
      if (!v1::FinishReason_IsValid(request->finish_reason())) {
        return FieldError("finish_reason",
                          Cat(static_cast<int>(request->finish_reason()), " is not known"));
      }
      const Stopwatch stopwatch(metrics_, *runtime_.clock, "Assess");
      const auto list = [](const google::protobuf::RepeatedField<float>& values) {
        return std::span<const float>(values.data(), static_cast<size_t>(values.size()));
      };
      const absl::StatusOr<float> confidence = router::UncalibratedConfidence(
          {list(request->logprobs()), list(request->margins()), list(request->entropies()),
           request->finish_reason() == v1::FINISH_REASON_LENGTH});
      if (!confidence.ok()) return WithFeatureField(confidence.status());
      response->set_confidence(*confidence);
      response->set_model(std::string(router::kModelName));
      response->set_calibrated(false);
      metrics_.confidence.Observe(*confidence);
      return absl::OkStatus();
    });
  }

 private:
  ServiceRuntime& runtime_;
  RouterMetrics& metrics_;
};

class RouterServicesImpl : public RouterServices {
 public:
  explicit RouterServicesImpl(ServiceRuntime& runtime)
      : metrics_(*runtime.registry),
        route_(runtime, metrics_),
        detect_(runtime, metrics_),
        assess_(runtime, metrics_) {}

  std::vector<HostedService> hosted() override {
    return {{&route_, v1::RouterService::service_full_name()},
            {&detect_, v1::EscalationService::service_full_name()},
            {&assess_, v1::ConfidenceService::service_full_name()}};
  }

 private:
  RouterMetrics metrics_;
  RouteImpl route_;
  DetectImpl detect_;
  AssessImpl assess_;
};

}  // namespace

std::unique_ptr<RouterServices> RouterServices::Create(ServiceRuntime& runtime) {
  return std::make_unique<RouterServicesImpl>(runtime);
}

}  // namespace cogumi::services
