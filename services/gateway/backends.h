// The services behind the gateway, as asynchronous calls. The interface knows no gRPC, so that the
// pipeline is tested with doubles; GrpcBackends is the real one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cogumi/v1/decoder.pb.h"
#include "cogumi/v1/router.pb.h"
#include "services/common/request_context.h"

namespace grpc {
class Channel;
}

namespace cogumi {
class Clock;
}

namespace cogumi::gateway {

// A call that runs. Dropping it does not cancel.
class BackendCall {
 public:
  virtual ~BackendCall() = default;
  // The call's end is still reported, as CANCELLED unless it had ended before.
  virtual void Cancel() = 0;
};

// Where an answer goes. Calls come one at a time, from any thread, possibly before Generate has
// returned; nothing comes after OnFinished.
class GenerateSink {
 public:
  virtual ~GenerateSink() = default;
  virtual void OnResponse(cogumi::v1::GenerateResponse response) = 0;
  virtual void OnFinished(absl::Status status) = 0;
};

template <typename Response>
using BackendCallback = std::function<void(absl::StatusOr<Response>)>;

// Thread-safe. Callbacks may come before the method has returned. Statuses keep the google.rpc
// details of the service that made them.
class Backends {
 public:
  virtual ~Backends() = default;

  virtual std::shared_ptr<BackendCall> Generate(const services::RequestContext& context,
                                                const cogumi::v1::GenerateRequest& request,
                                                std::shared_ptr<GenerateSink> sink) = 0;
  virtual std::shared_ptr<BackendCall> ModelInfo(
      const services::RequestContext& context,
      BackendCallback<cogumi::v1::ModelInfoResponse> done) = 0;
  virtual std::shared_ptr<BackendCall> Route(const services::RequestContext& context,
                                             const cogumi::v1::RouteRequest& request,
                                             BackendCallback<cogumi::v1::RouteResponse> done) = 0;
  virtual std::shared_ptr<BackendCall> Detect(const services::RequestContext& context,
                                              const cogumi::v1::DetectRequest& request,
                                              BackendCallback<cogumi::v1::DetectResponse> done) = 0;
  virtual std::shared_ptr<BackendCall> Assess(const services::RequestContext& context,
                                              const cogumi::v1::AssessRequest& request,
                                              BackendCallback<cogumi::v1::AssessResponse> done) = 0;

  // False without a router: requests are then neither routed nor assessed.
  virtual bool has_router() const = 0;
  // Whether the decoder can be reached and says that it serves.
  virtual bool DecoderReady() = 0;
  // Another number: the decoder may be another process than before.
  virtual uint64_t DecoderGeneration() = 0;
  // The services behind, by name, and whether each can be reached now.
  virtual std::vector<std::pair<std::string, bool>> Reachable() = 0;
};

struct BackendChannel {
  std::shared_ptr<grpc::Channel> channel;
  // Such channels have no state of connection: what is at their end is always there.
  bool in_process = false;
};

// The channels of `router` and `modifiers` may be null. UNAVAILABLE statuses without our details
// (gRPC's own, which name internal addresses) are replaced by one that says which service is out of
// reach.
std::shared_ptr<Backends> MakeGrpcBackends(BackendChannel decoder, BackendChannel router,
                                           BackendChannel modifiers, const Clock& clock);

}  // namespace cogumi::gateway
