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

// A unary call that is answered later, from any thread. The reactor deletes itself; Finish counts
// once. `OnGone` may be set to stop the work when the caller goes away.
class PendingUnary : public grpc::ServerUnaryReactor,
                     public std::enable_shared_from_this<PendingUnary> {
 public:
  static std::shared_ptr<PendingUnary> Create(ServiceRuntime& runtime,
                                              grpc::CallbackServerContext* context,
                                              std::string_view method);
  RpcCall& call() { return call_; }
  // The response must be complete. Later calls do nothing.
  void Reply(const absl::Status& status);
  // True once answered or cancelled: the response message must not be touched any more.
  bool answered() const;
  // Fills the response and answers in one step, unless answered before: `fill` runs under the lock
  // that keeps the message alive.
  void ReplyWith(const std::function<absl::Status()>& fill);
  // Called when the caller goes before the reply, at once when it has gone already.
  void SetOnGone(std::function<void()> on_gone);

 private:
  struct Token {};

 public:
  PendingUnary(Token, ServiceRuntime& runtime, grpc::CallbackServerContext* context,
               std::string_view method)
      : call_(runtime, context, method) {}

 private:
  void OnCancel() override;
  void OnDone() override;

  RpcCall call_;
  std::shared_ptr<PendingUnary> self_;
  mutable std::mutex mutex_;
  bool answered_ = false;
  bool gone_ = false;
  absl::Status final_;
  std::function<void()> on_gone_;
};

}  // namespace cogumi::services
