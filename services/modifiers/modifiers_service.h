// ModifierService over the catalogue.
#pragma once

#include <memory>

#include "services/common/runtime.h"
#include "services/common/server.h"
#include "services/modifiers/catalogue.h"

namespace cogumi::services {

class ModifiersService {
 public:
  // Both outlive the service.
  static std::unique_ptr<ModifiersService> Create(ServiceRuntime& runtime, Catalogue& catalogue);
  virtual ~ModifiersService() = default;
  virtual HostedService hosted() = 0;
};

}  // namespace cogumi::services
