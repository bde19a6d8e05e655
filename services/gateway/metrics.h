// The gateway's own instruments; cogumi_rpc_* come from services/common.
#pragma once

#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "cogumi/v1/common.pb.h"
#include "cogumi/v1/router.pb.h"
#include "prometheus/registry.h"
#include "services/gateway/backends.h"

namespace cogumi::gateway {

// Dollars per million tokens; the base of cogumi_query_cost_dollars_total.
struct Prices {
  double prompt = 0;
  double completion = 0;
};

// Thread-safe. Label values out of requests are bounded: the first 64 tenants, then "other".
class GatewayMetrics {
 public:
  GatewayMetrics(prometheus::Registry& registry, Prices prices);
  ~GatewayMetrics();
  GatewayMetrics(const GatewayMetrics&) = delete;
  GatewayMetrics& operator=(const GatewayMetrics&) = delete;

  // `route` is a template such as "/v1/models/{id}", never a path as it came.
  void ObserveHttp(std::string_view route, std::string_view method, int status, double seconds);
  void HttpConnections(int change);
  // `reason` is REQUEST_QUOTA, TOKEN_QUOTA or STREAM_QUOTA.
  void CountQuotaRefusal(std::string_view tenant, std::string_view reason);
  void Streams(int change);
  void CountUsage(std::string_view tenant, const cogumi::v1::Usage& usage);
  void ObserveFirstToken(double seconds);
  void CountDecoderRetry();
  void CountSlowReader();
  // A request went on without routing, detection or assessment.
  void CountRouterDegraded(std::string_view call);
  void CountRoute(const cogumi::v1::RouteResponse& route);
  void CountEscalation(const cogumi::v1::DetectResponse& detection);
  void ObserveConfidence(const cogumi::v1::AssessResponse& assessment);
  void ObserveRouterLatency(double seconds);
  void CountSessionCommit(const absl::Status& status, double seconds);
  void CountSessionError(std::string_view operation, const absl::Status& status);
  // Old turns left out of a prompt because they did not fit the context.
  void CountTurnsDropped(int turns);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// cogumi_gateway_backend_up{service}: 1 when the service behind can be reached, read at the scrape.
std::shared_ptr<prometheus::Collectable> MakeReachabilityCollector(
    std::shared_ptr<Backends> backends);

}  // namespace cogumi::gateway
