// Starts the catalogue of adapters in this process: for cogumi-modifiers and for a cluster in one
// process.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "services/common/config.h"
#include "services/common/server.h"
#include "services/modifiers/catalogue.h"

namespace cogumi::services {

struct ModifiersConfig {
  ModifiersConfig();
  ServerOptions server;
  CatalogueOptions catalogue;  // an empty state_dir: DefaultStateDir
  double folder_seconds = 2;   // between two looks at the folder
};

// The section "modifiers". `config` outlives the set.
void DeclareModifiersOptions(OptionSet& set, ModifiersConfig* config);

// ${XDG_STATE_HOME:-$HOME/.local/state}/cogumi/modifiers
std::string DefaultModifiersStateDir();

absl::StatusOr<std::unique_ptr<RunningService>> StartModifiers(const ModifiersConfig& config);

}  // namespace cogumi::services
