#include "services/gateway/backends.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "cogumi/v1/decoder.grpc.pb.h"
#include "cogumi/v1/router.grpc.pb.h"
#include "engine/core/clock.h"
#include "services/common/status.h"
#include "services/gateway/health_watch.h"

namespace cogumi::gateway {
namespace {

namespace v1 = cogumi::v1;

constexpr double kRetrySeconds = 1;

// What a caller may see of a failed internal call.
absl::Status Clean(const grpc::Status& status, const char* service) {
  absl::Status result = services::FromGrpc(status);
  // A status of our services carries details. One without is the transport's: its text names
  // addresses, and "cancelled" may be the peer's shutdown.
  if (result.ok() || !status.error_details().empty()) return result;
  if (absl::IsUnavailable(result)) {
    return services::WithRetry(services::WithReason(absl::UnavailableError(absl::StrCat(
                                                        "the ", service, " cannot be reached")),
                                                    "BACKEND_UNREACHABLE"),
                               kRetrySeconds);
  }
  if (absl::IsDeadlineExceeded(result)) {
    return absl::DeadlineExceededError("the deadline of the call has passed");
  }
  return absl::Status(result.code(), absl::StrCat("the call of the ", service, " has failed"));
}

// A server-streaming call that keeps itself alive until gRPC is done with it.
class GenerateCall : public grpc::ClientReadReactor<v1::GenerateResponse>, public BackendCall {
 public:
  explicit GenerateCall(std::shared_ptr<GenerateSink> sink) : sink_(std::move(sink)) {}

  static std::shared_ptr<BackendCall> Start(v1::DecoderService::Stub& stub,
                                            const services::RequestContext& context,
                                            const Clock& clock, const v1::GenerateRequest& request,
                                            std::shared_ptr<GenerateSink> sink) {
    auto call = std::make_shared<GenerateCall>(std::move(sink));
    services::WriteRequestContext(context, clock, &call->context_);
    call->self_ = call;
    call->request_ = request;
    stub.async()->Generate(&call->context_, &call->request_, call.get());
    call->StartRead(&call->response_);
    call->StartCall();
    return call;
  }

  void Cancel() override { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    sink_->OnResponse(std::move(response_));
    response_.Clear();
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    // The last reference may go with the sink; this object lives to the end of the function.
    const std::shared_ptr<GenerateCall> self = std::move(self_);
    const std::shared_ptr<GenerateSink> sink = std::move(sink_);
    sink->OnFinished(Clean(status, "decoder"));
  }

 private:
  grpc::ClientContext context_;
  v1::GenerateRequest request_;
  v1::GenerateResponse response_;
  std::shared_ptr<GenerateSink> sink_;
  std::shared_ptr<GenerateCall> self_;
};

template <typename Request, typename Response>
class UnaryCall : public BackendCall {
 public:
  // `start(context, request, response, callback)` begins the call.
  template <typename StartFunction>
  static std::shared_ptr<BackendCall> Start(const services::RequestContext& context,
                                            const Clock& clock, const Request& request,
                                            const char* service, BackendCallback<Response> done,
                                            StartFunction start) {
    auto call = std::make_shared<UnaryCall>();
    services::WriteRequestContext(context, clock, &call->context_);
    call->request_ = request;
    // The callback owns the call: it lives until gRPC is done.
    start(&call->context_, &call->request_, &call->response_,
          [call, service, done = std::move(done)](const grpc::Status& status) {
            if (status.ok()) {
              done(std::move(call->response_));
            } else {
              done(Clean(status, service));
            }
          });
    return call;
  }

  void Cancel() override { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;
  Request request_;
  Response response_;
};

class GrpcBackends : public Backends {
 public:
  GrpcBackends(BackendChannel decoder, BackendChannel router, BackendChannel modifiers,
               const Clock& clock)
      : clock_(clock),
        router_channel_(std::move(router)),
        modifiers_channel_(std::move(modifiers)),
        decoder_(v1::DecoderService::NewStub(decoder.channel)),
        decoder_health_(std::move(decoder.channel)) {
    if (router_channel_.channel == nullptr) return;
    router_ = v1::RouterService::NewStub(router_channel_.channel);
    escalation_ = v1::EscalationService::NewStub(router_channel_.channel);
    confidence_ = v1::ConfidenceService::NewStub(router_channel_.channel);
  }

  std::shared_ptr<BackendCall> Generate(const services::RequestContext& context,
                                        const v1::GenerateRequest& request,
                                        std::shared_ptr<GenerateSink> sink) override {
    return GenerateCall::Start(*decoder_, context, clock_, request, std::move(sink));
  }

  std::shared_ptr<BackendCall> ModelInfo(const services::RequestContext& context,
                                         BackendCallback<v1::ModelInfoResponse> done) override {
    return UnaryCall<v1::ModelInfoRequest, v1::ModelInfoResponse>::Start(
        context, clock_, {}, "decoder", std::move(done), [this](auto&&... args) {
          decoder_->async()->ModelInfo(std::forward<decltype(args)>(args)...);
        });
  }

  std::shared_ptr<BackendCall> Route(const services::RequestContext& context,
                                     const v1::RouteRequest& request,
                                     BackendCallback<v1::RouteResponse> done) override {
    return UnaryCall<v1::RouteRequest, v1::RouteResponse>::Start(
        context, clock_, request, "router", std::move(done),
        [this](auto&&... args) { router_->async()->Route(std::forward<decltype(args)>(args)...); });
  }

  std::shared_ptr<BackendCall> Detect(const services::RequestContext& context,
                                      const v1::DetectRequest& request,
                                      BackendCallback<v1::DetectResponse> done) override {
    return UnaryCall<v1::DetectRequest, v1::DetectResponse>::Start(
        context, clock_, request, "router", std::move(done), [this](auto&&... args) {
          escalation_->async()->Detect(std::forward<decltype(args)>(args)...);
        });
  }

  std::shared_ptr<BackendCall> Assess(const services::RequestContext& context,
                                      const v1::AssessRequest& request,
                                      BackendCallback<v1::AssessResponse> done) override {
    return UnaryCall<v1::AssessRequest, v1::AssessResponse>::Start(
        context, clock_, request, "router", std::move(done), [this](auto&&... args) {
          confidence_->async()->Assess(std::forward<decltype(args)>(args)...);
        });
  }

  bool has_router() const override { return router_ != nullptr; }

  bool DecoderReady() override { return decoder_health_.serving(); }
  uint64_t DecoderGeneration() override { return decoder_health_.breaks(); }

  std::vector<std::pair<std::string, bool>> Reachable() override {
    std::vector<std::pair<std::string, bool>> services = {{"decoder", decoder_health_.serving()}};
    for (const auto& [name, end] :
         {std::pair("router", &router_channel_), std::pair("modifiers", &modifiers_channel_)}) {
      if (end->channel != nullptr) services.emplace_back(name, IsReady(*end));
    }
    return services;
  }

 private:
  // An idle channel connects when asked, so that a service that came up later is found.
  static bool IsReady(const BackendChannel& end) {
    return end.in_process || end.channel->GetState(/*try_to_connect=*/true) == GRPC_CHANNEL_READY;
  }

  const Clock& clock_;
  const BackendChannel router_channel_;
  const BackendChannel modifiers_channel_;
  const std::unique_ptr<v1::DecoderService::Stub> decoder_;
  std::unique_ptr<v1::RouterService::Stub> router_;
  std::unique_ptr<v1::EscalationService::Stub> escalation_;
  std::unique_ptr<v1::ConfidenceService::Stub> confidence_;
  HealthWatch decoder_health_;
};

}  // namespace

std::shared_ptr<Backends> MakeGrpcBackends(BackendChannel decoder, BackendChannel router,
                                           BackendChannel modifiers, const Clock& clock) {
  return std::make_shared<GrpcBackends>(std::move(decoder), std::move(router), std::move(modifiers),
                                        clock);
}

}  // namespace cogumi::gateway
