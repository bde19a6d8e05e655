#include "services/router/start.h"

#include <utility>

#include "engine/core/status_macros.h"
#include "services/router/router_service.h"

namespace cogumi::services {
namespace {

// All calls of a gateway come over one connection, and none waits.
constexpr int32_t kMaxStreams = 4096;

class RunningRouter : public RunningService {
 public:
  RunningRouter() : runtime_("router"), services_(RouterServices::Create(runtime_)) {}

  absl::Status Start(const RouterConfig& config) {
    ASSIGN_OR_RETURN(host_, ServiceHost::Create(runtime_, config.server, services_->hosted()));
    return absl::OkStatus();
  }

  ServiceHost& host() override { return *host_; }

 private:
  // Destroyed from the last to the first.
  ServiceRuntime runtime_;
  std::unique_ptr<RouterServices> services_;
  std::unique_ptr<ServiceHost> host_;
};

}  // namespace

RouterConfig::RouterConfig() {
  server.address = "127.0.0.1:7071";
  server.metrics_address = "127.0.0.1:7171";
  server.max_streams = kMaxStreams;
}

void DeclareRouterOptions(OptionSet& set, RouterConfig* config) {
  DeclareServerOptions(set, &config->server);
}

absl::StatusOr<std::unique_ptr<RunningService>> StartRouter(const RouterConfig& config) {
  auto router = std::make_unique<RunningRouter>();
  RETURN_IF_ERROR(router->Start(config));
  return router;
}

}  // namespace cogumi::services
