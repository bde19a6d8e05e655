// All four services in this process, over in-process channels.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/cli/cluster.h"

namespace cogumi::cli {

struct SingleProcessOptions {
  std::string model;   // path
  std::string config;  // YAML file, may be empty
  // --SERVICE.OPTION words, as the person gave them.
  std::vector<std::string> flags;
};

// Starts the services, calls `ready`, waits for SIGTERM or SIGINT, drains. Answers with the exit
// code. Must be called before any thread exists.
absl::StatusOr<int> ServeInThisProcess(const SingleProcessOptions& options,
                                       const std::function<void(const ClusterRecord&)>& ready);

}  // namespace cogumi::cli
