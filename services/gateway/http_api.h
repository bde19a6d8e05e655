// The OpenAI-compatible interface: paths, identity, CORS, and the way into the pipeline.
//
//   POST /v1/chat/completions, /v1/completions   JSON, or server-sent events with "stream": true
//   GET  /v1/models, /v1/models/{id}
//   GET  /health                                 no token; 503 while draining or without a decoder
//   GET  /metrics                                operators, when there are tokens
//
// Request headers: authorization, x-request-id, traceparent, and cogumi-session, which makes the
// request a turn of a stored conversation (it then carries the new message only).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "services/common/runtime.h"
#include "services/gateway/http_server.h"
#include "services/gateway/pipeline.h"
#include "services/gateway/tenants.h"

namespace cogumi::gateway {

struct HttpApiOptions {
  // "https://chat.example.org", or "*" for every origin.
  std::vector<std::string> cors_origins;
};

// Borrows its arguments; they outlive the HTTP server and every call.
class HttpApi {
 public:
  HttpApi(const HttpApiOptions& options, services::ServiceRuntime& runtime,
          const TenantDirectory& tenants, Pipeline& pipeline, std::function<bool()> healthy);
  ~HttpApi();

  // The handler of the server.
  void Handle(const HttpRequest& request, std::shared_ptr<HttpExchange> exchange);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace cogumi::gateway
