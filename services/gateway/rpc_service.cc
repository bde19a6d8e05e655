#include "services/gateway/rpc_service.h"

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cogumi/v1/gateway.grpc.pb.h"
#include "engine/core/status_macros.h"
#include "services/common/rpc_call.h"
#include "services/common/status.h"
#include "services/common/stream_writer.h"

namespace cogumi::gateway {
namespace {

namespace v1 = cogumi::v1;

constexpr char kAuthorizationKey[] = "authorization";

// The caller, known from here on: in the log, in quotas, in internal calls.
absl::StatusOr<Identity> Identify(const TenantDirectory& tenants,
                                  const grpc::CallbackServerContext& context,
                                  services::RpcCall& call) {
  // A tenant that the caller wrote into the metadata is no identity.
  call.request().tenant = tenants.open() ? Identity().tenant : "unknown";
  RETURN_IF_ERROR(call.admission());
  const auto& metadata = context.client_metadata();
  const auto it = metadata.find(kAuthorizationKey);
  const std::string_view value = it == metadata.end()
                                     ? std::string_view()
                                     : std::string_view(it->second.data(), it->second.size());
  ASSIGN_OR_RETURN(Identity identity, tenants.Identify(value));
  call.request().tenant = identity.tenant;
  return identity;
}

absl::Status RequireUser(const Identity& identity) {
  if (identity.user) return absl::OkStatus();
  return services::WithReason(absl::PermissionDeniedError("the token does not have the role user"),
                              "ROLE_MISSING");
}

absl::Status RequireOperator(const Identity& identity) {
  if (identity.is_operator) return absl::OkStatus();
  return services::WithReason(
      absl::PermissionDeniedError("the token does not have the role operator"), "ROLE_MISSING");
}

// A streamed answer: the pipeline pushes, gRPC writes, and a caller who goes stops the pipeline.
template <typename Response>
class AnswerStream final : public services::StreamWriter<Response>, public CallObserver {
 public:
  using Base = services::StreamWriter<Response>;

  AnswerStream(services::ServiceRuntime& runtime, grpc::CallbackServerContext* context,
               std::string_view method, GatewayMetrics& metrics)
      : Base(runtime, context, method), metrics_(metrics) {}

  void Run(Pipeline& pipeline, CallRequest&& request) {
    auto self = std::static_pointer_cast<AnswerStream>(this->shared_from_this());
    std::shared_ptr<PipelineCall> call = pipeline.Prepare(std::move(request), self);
    {
      std::lock_guard lock(mutex_);
      answer_ = call;
      answering_ = true;
    }
    call->Start();
  }

  void OnChunk(int /*choice*/, v1::GenerateChunk chunk) override {
    Response response;
    v1::ChatChunk* out = response.mutable_chunk();
    out->mutable_text()->swap(*chunk.mutable_text());
    out->mutable_token_ids()->Swap(chunk.mutable_token_ids());
    out->mutable_logprobs()->Swap(chunk.mutable_logprobs());
    this->Push(std::move(response));
  }

  void OnChoiceDone(int /*choice*/, const v1::GenerateComplete& complete) override {
    v1::ChatComplete* out = last_.mutable_complete();
    out->set_finish_reason(complete.finish_reason());
    *out->mutable_usage() = complete.usage();
    *out->mutable_timings() = complete.timings();
    *out->mutable_receipt() = complete.receipt();
    out->set_request_id(this->call().request().request_id);
    *out->mutable_prompt_token_ids() = complete.prompt_token_ids();
  }

  void OnDone(const absl::Status& status, const CallOutcome& outcome) override {
    bool close = false;
    {
      std::lock_guard lock(mutex_);
      outcome_ = outcome;
      answer_ = nullptr;
      answering_ = false;
      close = let_go_;
    }
    if (close) return this->Close();
    if (status.ok()) {
      this->PushAndEnd(std::move(last_));
    } else {
      this->End(status);
    }
  }

 protected:
  // A caller who goes is gone before the pipeline knows what the answer came to.
  bool AwaitsProducer() override {
    std::lock_guard lock(mutex_);
    let_go_ = true;
    return answering_;
  }

  void OnAbandoned(const absl::Status& why) override {
    if (absl::IsResourceExhausted(why)) metrics_.CountSlowReader();
    std::shared_ptr<PipelineCall> answer;
    {
      std::lock_guard lock(mutex_);
      answer = answer_;
    }
    if (answer != nullptr) answer->Cancel(why);
  }

  // Chunks that wait for the transport travel together.
  bool Merge(Response& waiting, Response& next) override {
    if (!waiting.has_chunk() || !next.has_chunk()) return false;
    v1::ChatChunk* to = waiting.mutable_chunk();
    to->mutable_text()->append(next.chunk().text());
    to->mutable_token_ids()->MergeFrom(next.chunk().token_ids());
    to->mutable_logprobs()->MergeFrom(next.chunk().logprobs());
    return true;
  }

  void OnEnded(const absl::Status& /*status*/) override {
    std::lock_guard lock(mutex_);
    services::RequestLogEntry& log = this->call().log();
    if (outcome_.usage.prompt_tokens() == 0) return;
    log.prompt_tokens = outcome_.usage.prompt_tokens();
    log.completion_tokens = outcome_.usage.completion_tokens();
    log.queue_seconds = outcome_.timings.queue_seconds();
    log.first_token_seconds = outcome_.first_token_seconds;
  }

 private:
  GatewayMetrics& metrics_;
  Response last_;  // filled by OnChoiceDone, sent by OnDone
  std::mutex mutex_;
  CallOutcome outcome_;
  std::shared_ptr<PipelineCall> answer_;
  bool answering_ = false;  // the pipeline has not ended
  bool let_go_ = false;     // gRPC has
};

class GatewayRpcService final : public v1::GatewayService::CallbackService {
 public:
  GatewayRpcService(services::ServiceRuntime& runtime, const TenantDirectory& tenants,
                    Pipeline& pipeline)
      : runtime_(runtime), tenants_(tenants), pipeline_(pipeline), parts_(pipeline.parts()) {}

  grpc::ServerWriteReactor<v1::ChatResponse>* Chat(grpc::CallbackServerContext* context,
                                                   const v1::ChatRequest* request) override {
    return Answer<v1::ChatResponse>(context, "Chat",
                                    [request](CallRequest& call) { call.chat = *request; });
  }

  grpc::ServerWriteReactor<v1::CompleteResponse>* Complete(
      grpc::CallbackServerContext* context, const v1::CompleteRequest* request) override {
    return Answer<v1::CompleteResponse>(
        context, "Complete", [request](CallRequest& call) { call.prompts.push_back(*request); });
  }

  grpc::ServerUnaryReactor* GetSession(grpc::CallbackServerContext* context,
                                       const v1::GetSessionRequest* request,
                                       v1::GetSessionResponse* response) override {
    auto reply = services::PendingUnary::Create(runtime_, context, "GetSession");
    const auto identity = AdmitUser(*context, reply->call(), request->session_id());
    if (!identity.ok()) {
      reply->Reply(identity.status());
      return reply.get();
    }
    response->set_session_id(request->session_id());
    parts_.sessions->Load(identity->tenant, request->session_id(),
                          [this, reply, response](absl::StatusOr<std::vector<StoredTurn>> turns) {
                            if (!turns.ok())
                              parts_.metrics->CountSessionError("get", turns.status());
                            if (!turns.ok()) return reply->Reply(turns.status());
                            for (StoredTurn& turn : *turns) {
                              v1::Turn* out = response->add_turns();
                              out->set_number(turn.number);
                              out->set_user(std::move(turn.user));
                              out->set_assistant(std::move(turn.assistant));
                              out->set_created_ms(turn.created_ms);
                            }
                            reply->Reply(absl::OkStatus());
                          });
    return reply.get();
  }

  grpc::ServerUnaryReactor* EraseSession(grpc::CallbackServerContext* context,
                                         const v1::EraseSessionRequest* request,
                                         v1::EraseSessionResponse* response) override {
    auto reply = services::PendingUnary::Create(runtime_, context, "EraseSession");
    const auto identity = AdmitUser(*context, reply->call(), request->session_id());
    if (!identity.ok()) {
      reply->Reply(identity.status());
      return reply.get();
    }
    const Pipeline::SessionKey key(identity->tenant, request->session_id());
    if (!pipeline_.LockSession(key)) {
      reply->Reply(SessionBusyError());
      return reply.get();
    }
    parts_.sessions->Erase(identity->tenant, request->session_id(),
                           [this, reply, response, key](absl::StatusOr<int64_t> erased) {
                             pipeline_.UnlockSession(key);
                             if (!erased.ok()) {
                               parts_.metrics->CountSessionError("erase", erased.status());
                             } else {
                               response->set_erased_turns(static_cast<int32_t>(*erased));
                             }
                             reply->Reply(erased.status());
                           });
    return reply.get();
  }

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* /*request*/,
                                       v1::ListModelsResponse* response) override {
    auto reply = services::PendingUnary::Create(runtime_, context, "ListModels");
    const auto identity = Identify(tenants_, *context, reply->call());
    if (!identity.ok()) {
      reply->Reply(identity.status());
      return reply.get();
    }
    parts_.models->GetFresh([reply, response](absl::StatusOr<ModelSnapshot> model) {
      if (model.ok()) {
        for (v1::ModelDescription& served : ServedModels(**model)) {
          *response->add_models() = std::move(served);
        }
      }
      reply->Reply(model.status());
    });
    return reply.get();
  }

  grpc::ServerUnaryReactor* Explain(grpc::CallbackServerContext* context,
                                    const v1::ExplainRequest* request,
                                    v1::ExplainResponse* response) override {
    return services::Unary(
        runtime_, context, "Explain", [&](services::RpcCall& call) -> absl::Status {
          ASSIGN_OR_RETURN(const Identity identity, Identify(tenants_, *context, call));
          RETURN_IF_ERROR(RequireOperator(identity));
          if (!services::IsValidRequestId(request->request_id())) {
            return services::FieldError("request_id", "must match ^[A-Za-z0-9._-]{1,128}$");
          }
          auto record = parts_.explain->Find(request->request_id());
          if (!record) {
            return absl::NotFoundError("no recent request has this id; only the latest are kept");
          }
          *response = *std::move(record);
          return absl::OkStatus();
        });
  }

 private:
  // Checks for calls about one session.
  absl::StatusOr<Identity> AdmitUser(const grpc::CallbackServerContext& context,
                                     services::RpcCall& call, const std::string& session_id) {
    ASSIGN_OR_RETURN(Identity identity, Identify(tenants_, context, call));
    RETURN_IF_ERROR(RequireUser(identity));
    RETURN_IF_ERROR(ValidateSessionId(session_id));
    return identity;
  }

  template <typename Response, typename Fill>
  grpc::ServerWriteReactor<Response>* Answer(grpc::CallbackServerContext* context,
                                             std::string_view method, const Fill& fill) {
    auto stream =
        std::make_shared<AnswerStream<Response>>(runtime_, context, method, *parts_.metrics);
    stream->Start();
    auto identity = Identify(tenants_, *context, stream->call());
    if (!identity.ok()) {
      stream->End(identity.status());
      return stream.get();
    }
    CallRequest call{.context = stream->call().request(),
                     .identity = *std::move(identity),
                     .started = stream->call().started(),
                     .chat = std::nullopt,
                     .prompts = {}};
    fill(call);
    stream->Run(pipeline_, std::move(call));
    return stream.get();
  }

  services::ServiceRuntime& runtime_;
  const TenantDirectory& tenants_;
  Pipeline& pipeline_;
  const PipelineParts& parts_;
};

}  // namespace

std::shared_ptr<grpc::Service> MakeGatewayRpcService(services::ServiceRuntime& runtime,
                                                     const TenantDirectory& tenants,
                                                     Pipeline& pipeline) {
  return std::make_shared<GatewayRpcService>(runtime, tenants, pipeline);
}

}  // namespace cogumi::gateway
