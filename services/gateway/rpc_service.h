// GatewayService over gRPC. No gRPC header is needed to use it.
#pragma once

#include <memory>

#include "services/common/runtime.h"
#include "services/gateway/pipeline.h"
#include "services/gateway/tenants.h"

namespace grpc {
class Service;
}

namespace cogumi::gateway {

// Borrows its arguments; they outlive every call.
std::shared_ptr<grpc::Service> MakeGatewayRpcService(services::ServiceRuntime& runtime,
                                                     const TenantDirectory& tenants,
                                                     Pipeline& pipeline);

}  // namespace cogumi::gateway
