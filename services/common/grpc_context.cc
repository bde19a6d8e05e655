#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>

#include <chrono>

#include "engine/core/clock.h"
#include "services/common/request_context.h"

namespace cogumi::services {
namespace {

std::string_view Metadata(const grpc::CallbackServerContext& context, const char* key) {
  const auto& metadata = context.client_metadata();
  const auto it = metadata.find(key);
  if (it == metadata.end()) return {};
  return {it->second.data(), it->second.size()};
}

}  // namespace

RequestContext ReadRequestContext(const grpc::CallbackServerContext& context, const Clock& clock) {
  RequestContext request;
  const std::string_view id = Metadata(context, kRequestIdKey);
  request.request_id = IsValidRequestId(id) ? std::string(id) : NewRequestId();
  const std::string_view tenant = Metadata(context, kTenantKey);
  if (IsValidTenant(tenant)) request.tenant = std::string(tenant);
  const std::string_view trace = Metadata(context, kTraceparentKey);
  if (IsValidTraceparent(trace)) request.traceparent = std::string(trace);
  const auto deadline = context.deadline();
  if (deadline != std::chrono::system_clock::time_point::max()) {
    const double left =
        std::chrono::duration<double>(deadline - std::chrono::system_clock::now()).count();
    // A deadline of years is none; it must not lose its precision in the sum.
    if (left < 1e8) request.deadline = clock.Now() + left;
  }
  return request;
}

void WriteRequestContext(const RequestContext& request, const Clock& clock,
                         grpc::ClientContext* context) {
  context->AddMetadata(kRequestIdKey, request.request_id);
  context->AddMetadata(kTenantKey, request.tenant);
  if (!request.traceparent.empty()) context->AddMetadata(kTraceparentKey, request.traceparent);
  if (request.deadline > 0) {
    const std::chrono::duration<double> left(request.deadline - clock.Now());
    context->set_deadline(std::chrono::system_clock::now() +
                          std::chrono::duration_cast<std::chrono::system_clock::duration>(left));
  }
}

}  // namespace cogumi::services
