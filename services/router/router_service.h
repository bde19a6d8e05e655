// RouterService, EscalationService and ConfidenceService over the router library.
#pragma once

#include <memory>
#include <vector>

#include "services/common/runtime.h"
#include "services/common/server.h"

namespace cogumi::services {

class RouterServices {
 public:
  // The runtime outlives them.
  static std::unique_ptr<RouterServices> Create(ServiceRuntime& runtime);
  virtual ~RouterServices() = default;
  virtual std::vector<HostedService> hosted() = 0;
};

}  // namespace cogumi::services
