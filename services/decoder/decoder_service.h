// DecoderService over the engine: cogumi.v1.DecoderService without a process around it.
#pragma once

#include <cstdint>
#include <memory>

#include "cogumi/engine.h"
#include "services/common/runtime.h"

namespace grpc {
class Service;
}

namespace cogumi::services {

class AdapterStore;

// What ModelInfo says of the engine's options.
struct DecoderLimits {
  int32_t max_running = 0;
  int32_t max_queued = 0;
};

class DecoderService {
 public:
  // Order of life: runtime, engine, service, adapters, host: each goes before those in front of it.
  // The engine may end cancelled requests when the service is gone already. Null `adapters`: there
  // are none.
  static std::unique_ptr<DecoderService> Create(ServiceRuntime& runtime, Engine& engine,
                                                const DecoderLimits& limits,
                                                AdapterStore* adapters);
  virtual ~DecoderService() = default;
  virtual grpc::Service* grpc_service() = 0;
  static const char* full_name();
};

}  // namespace cogumi::services
