// What `cogumi serve` runs with: the options of all four services from defaults, the YAML file,
// COGUMI_* variables and flags, the same for one process and for four.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/decoder/start.h"
#include "services/gateway/gateway.h"
#include "services/modifiers/start.h"
#include "services/router/start.h"

namespace cogumi::cli {

// The address of a service that nobody placed elsewhere: a socket in the cluster's own folder.
// Operators' commands need one, and a cluster must not take four ports.
inline constexpr char kOwnSocket[] = "unix:";

struct SettingsSource {
  std::string model;   // what the person named: a listed name or a path; "" for the configuration's
  std::string config;  // YAML file, may be empty
  std::vector<std::string> flags;  // --SERVICE.OPTION words, as the person gave them
};

struct Settings {
  gateway::GatewayConfig gateway;
  services::RouterConfig router;
  services::DecoderConfig decoder;
  services::ModifiersConfig modifiers;
};

// Addresses that nothing sets are kOwnSocket: of the router, the decoder and the modifiers, and
// those that the gateway dials. A usage error names what is wrong in the file, a variable or a
// flag.
absl::StatusOr<Settings> LoadSettings(const SettingsSource& source);
// Sets the model's path: of the person, else of the configuration, else the default; and that
// adapters are for it. NOT_FOUND.
absl::Status FindModelOf(const SettingsSource& source, Settings* settings);

}  // namespace cogumi::cli
