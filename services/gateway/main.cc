// cogumi-gateway: the public door in a process of its own.
#include <utility>

#include "services/common/server.h"
#include "services/gateway/gateway.h"

int main(int argc, char** argv) {
  cogumi::gateway::GatewayConfig config;
  cogumi::services::OptionSet options("gateway");
  cogumi::gateway::DeclareGatewayOptions(options, &config);
  cogumi::services::ServiceMainOptions main_options;
  main_options.program = "cogumi-gateway";
  main_options.description =
      "The public door: gRPC and OpenAI-compatible HTTP, identity, quotas and sessions.";
  main_options.options = &options;
  main_options.server = &config.server;
  main_options.start =
      [&config]() -> absl::StatusOr<std::unique_ptr<cogumi::services::RunningService>> {
    auto gateway = cogumi::gateway::StartGateway(config);
    if (!gateway.ok()) return gateway.status();
    return *std::move(gateway);
  };
  main_options.ready = [](cogumi::services::RunningService& service,
                          cogumi::services::ReadyLine* line) {
    const std::string& http = static_cast<cogumi::gateway::Gateway&>(service).http_address();
    if (!http.empty()) line->extra.emplace_back("http", http);
  };
  return cogumi::services::ServiceMain(argc, argv, main_options);
}
