// Who asks: request id, tenant, trace and deadline of a call.
//
// Metadata on internal calls (trusted: internal services are reachable by our own processes only):
//   x-request-id   ^[A-Za-z0-9._-]{1,128}$, made here when absent or malformed
//   traceparent    W3C trace context, passed on as it is when well formed
//   cogumi-tenant  ^[A-Za-z0-9._-]{1,64}$, "default" when absent
// The gateway takes the tenant from its token file instead and calls SetTenant.
#pragma once

#include <string>
#include <string_view>

namespace grpc {
class CallbackServerContext;
class ClientContext;
}  // namespace grpc

namespace cogumi {
class Clock;
}

namespace cogumi::services {

inline constexpr char kRequestIdKey[] = "x-request-id";
inline constexpr char kTraceparentKey[] = "traceparent";
inline constexpr char kTenantKey[] = "cogumi-tenant";

struct RequestContext {
  std::string request_id;
  std::string tenant = "default";
  std::string traceparent;
  double deadline = 0;  // Clock::Now() seconds; 0: none
};

bool IsValidRequestId(std::string_view id);
bool IsValidTraceparent(std::string_view value);
bool IsValidTenant(std::string_view tenant);
// 32 hexadecimal digits, random.
std::string NewRequestId();

RequestContext ReadRequestContext(const grpc::CallbackServerContext& context, const Clock& clock);
// Sets metadata and deadline of an outgoing call.
void WriteRequestContext(const RequestContext& request, const Clock& clock,
                         grpc::ClientContext* context);

}  // namespace cogumi::services
