// One call from its arrival to its end: context, admission, metrics, log line. Includes gRPC.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "services/common/logging.h"
#include "services/common/request_context.h"
#include "services/common/runtime.h"
#include "services/common/status.h"

namespace cogumi::services {

// Counts the call in the tracker from construction to End (or destruction), and at the end adds it
// to the metrics and the log. Not thread-safe: the owner serialises.
class RpcCall {
 public:
  // `method` must be a literal.
  RpcCall(ServiceRuntime& runtime, grpc::CallbackServerContext* context, std::string_view method);
  ~RpcCall();
  RpcCall(const RpcCall&) = delete;
  RpcCall& operator=(const RpcCall&) = delete;

  // OK, or UNAVAILABLE when the service is draining.
  const absl::Status& admission() const { return admission_; }
  RequestContext& request() { return request_; }
  const RequestContext& request() const { return request_; }
  ServiceRuntime& runtime() const { return runtime_; }
  double started() const { return started_; }
  // Fill tokens and times before End.
  RequestLogEntry& log() { return log_; }

  // Once; later calls do nothing.
  void End(const absl::Status& status);

 private:
  ServiceRuntime& runtime_;
  absl::Status admission_;
  RequestContext request_;
  RequestLogEntry log_;
  std::string_view method_;
  double started_ = 0;
  bool entered_ = false;
  bool ended_ = false;
};

// Answers a unary call with what `handle` returns. `handle` runs on gRPC's thread: it must not
// block. It is not called when the service is draining.
grpc::ServerUnaryReactor* Unary(ServiceRuntime& runtime, grpc::CallbackServerContext* context,
                                std::string_view method,
                                const std::function<absl::Status(RpcCall&)>& handle);

// A unary call that is answered later, from any thread. Request and response live until the reply,
// whatever the caller does: every call must be replied to, a cancelled one too.
class PendingUnary : public grpc::ServerUnaryReactor {
 public:
  static std::shared_ptr<PendingUnary> Create(ServiceRuntime& runtime,
                                              grpc::CallbackServerContext* context,
                                              std::string_view method);
  RpcCall& call() { return call_; }
  // Once; the response must be complete before.
  void Reply(const absl::Status& status);
  // The caller has gone: the work may be left out, the reply not.
  bool gone() const;
  // Called when the caller goes before the reply, at once when it has gone already.
  void SetOnGone(std::function<void()> on_gone);

 private:
  PendingUnary(ServiceRuntime& runtime, grpc::CallbackServerContext* context,
               std::string_view method)
      : call_(runtime, context, method) {}
  void OnCancel() override;
  void OnDone() override;

  RpcCall call_;
  std::shared_ptr<PendingUnary> self_;  // until OnDone
  mutable std::mutex mutex_;
  bool replied_ = false;
  bool gone_ = false;
  absl::Status final_;
  std::function<void()> on_gone_;
};

}  // namespace cogumi::services
