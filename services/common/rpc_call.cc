#include "services/common/rpc_call.h"

#include <grpcpp/server_context.h>

namespace cogumi::services {

RpcCall::RpcCall(ServiceRuntime& runtime, grpc::CallbackServerContext* context,
                 std::string_view method)
    : runtime_(runtime),
      request_(ReadRequestContext(*context, *runtime.clock)),
      method_(method),
      started_(runtime.clock->Now()),
      entered_(runtime.calls.Enter()) {
  // The caller learns the id that the logs carry.
  context->AddInitialMetadata(kRequestIdKey, request_.request_id);
  if (!entered_) {
    admission_ = WithReason(absl::UnavailableError("the service is shutting down"), "DRAINING");
  }
}

RpcCall::~RpcCall() { End(absl::CancelledError("the call was dropped")); }

void RpcCall::End(const absl::Status& status) {
  if (ended_) return;
  ended_ = true;
  const double seconds = runtime_.clock->Now() - started_;
  const std::string_view code = CodeName(status.code());
  runtime_.rpc.Observe(method_, code, seconds);
  const std::string reason = status.ok() ? "" : ReasonOf(status);
  log_.service = runtime_.name;
  log_.method = method_;
  log_.request_id = request_.request_id;
  log_.tenant = request_.tenant;
  log_.status = code;
  log_.reason = reason;
  log_.seconds = seconds;
  runtime_.LogRequest(log_);
  log_.reason = {};
  if (entered_) runtime_.calls.Leave();
}

grpc::ServerUnaryReactor* Unary(ServiceRuntime& runtime, grpc::CallbackServerContext* context,
                                std::string_view method,
                                const std::function<absl::Status(RpcCall&)>& handle) {
  RpcCall call(runtime, context, method);
  const absl::Status status = call.admission().ok() ? handle(call) : call.admission();
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  call.End(status);
  return reactor;
}

std::shared_ptr<PendingUnary> PendingUnary::Create(ServiceRuntime& runtime,
                                                   grpc::CallbackServerContext* context,
                                                   std::string_view method) {
  std::shared_ptr<PendingUnary> reactor(new PendingUnary(runtime, context, method));
  reactor->self_ = reactor;
  return reactor;
}

void PendingUnary::Reply(const absl::Status& status) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (replied_) return;
    replied_ = true;
    final_ = status;
  }
  Finish(ToGrpc(status));
}

bool PendingUnary::gone() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return gone_;
}

void PendingUnary::SetOnGone(std::function<void()> on_gone) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!gone_) {
      on_gone_ = std::move(on_gone);
      return;
    }
  }
  on_gone();
}

void PendingUnary::OnCancel() {
  std::function<void()> tell;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    gone_ = true;
    if (!replied_) tell = std::move(on_gone_);
  }
  if (tell) tell();
}

void PendingUnary::OnDone() {
  call_.End(final_);
  auto self = std::move(self_);
}

}  // namespace cogumi::services
