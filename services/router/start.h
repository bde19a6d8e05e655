// Starts the router in this process: for cogumi-router and for a cluster in one process.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "services/common/config.h"
#include "services/common/server.h"

namespace cogumi::services {

struct RouterConfig {
  RouterConfig();
  ServerOptions server;
};

// The section "router". `config` outlives the set.
void DeclareRouterOptions(OptionSet& set, RouterConfig* config);

absl::StatusOr<std::unique_ptr<RunningService>> StartRouter(const RouterConfig& config);

}  // namespace cogumi::services
