// All four services in this process, over in-process channels.
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "services/cli/cluster.h"
#include "services/cli/settings.h"

namespace cogumi::cli {

// Starts the services, calls `ready`, waits for SIGTERM or SIGINT, drains. Answers with the exit
// code. Must be called before any thread exists.
absl::StatusOr<int> ServeInThisProcess(const SettingsSource& source,
                                       const std::function<void(const ClusterRecord&)>& ready);

}  // namespace cogumi::cli
