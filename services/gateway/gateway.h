// The gateway as a whole: configuration, and everything wired together. For its own process and for
// a process that runs all services over in-process channels.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/common/config.h"
#include "services/common/server.h"

namespace grpc {
class Channel;
}

namespace cogumi {
class Clock;
}

namespace cogumi::gateway {

struct GatewayConfig {
  GatewayConfig() { server.address = "127.0.0.1:7070"; }

  // allow_remote is for the metrics' address alone: tokens decide about the doors.
  services::ServerOptions server;
  std::string http = "127.0.0.1:8080";  // host:port; "" for none
  // Addresses, used where no channel is handed over.
  std::string decoder = "127.0.0.1:7072";
  std::string router = "127.0.0.1:7071";     // "" for none
  std::string modifiers = "127.0.0.1:7073";  // "" for none; its reachability is a metric
  std::string sessions;                      // SQLite file; "" for the default place
  std::string tokens;                        // YAML file; "" for an open gateway on loopback
  std::vector<std::string> cors_origins;
  int32_t session_turns = 5;
  double session_ttl = 30.0 * 24 * 3600;
  double max_request_seconds = 600;
  double router_seconds = 0.05;
  int64_t max_body_bytes = 1 << 20;
  int32_t max_connections = 1024;
  int32_t http_threads = 1;
  int32_t explain_records = 512;
  double price_prompt = 0;  // dollars per million tokens
  double price_completion = 0;
};

// Declares the options above in the section "gateway".
void DeclareGatewayOptions(services::OptionSet& set, GatewayConfig* config);

// $XDG_DATA_HOME/cogumi/sessions.db, or below $HOME/.local/share.
std::string DefaultSessionsPath();

// In-process channels; what is null is dialled by its address in the configuration.
struct GatewayChannels {
  std::shared_ptr<grpc::Channel> decoder;
  std::shared_ptr<grpc::Channel> router;
  std::shared_ptr<grpc::Channel> modifiers;
};

class Gateway : public services::RunningService {
 public:
  // The HTTP address with its real port, or "".
  virtual const std::string& http_address() const = 0;
};

// Errors: INVALID_ARGUMENT (an option or the tokens file, by name; an address that others can reach
// without a tokens file), FAILED_PRECONDITION (session file), UNAVAILABLE (cannot listen). A null
// clock is the real one.
absl::StatusOr<std::unique_ptr<Gateway>> StartGateway(const GatewayConfig& config,
                                                      const GatewayChannels& channels = {},
                                                      const Clock* clock = nullptr);

}  // namespace cogumi::gateway
