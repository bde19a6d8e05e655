#include "services/cli/settings.h"

#include "engine/core/status_macros.h"
#include "services/cli/paths.h"
#include "services/cli/verb.h"
#include "services/common/config.h"

namespace cogumi::cli {

absl::StatusOr<Settings> LoadSettings(const SettingsSource& source) {
  Settings settings;
  for (std::string* address : {&settings.router.server.address, &settings.decoder.server.address,
                               &settings.modifiers.server.address, &settings.gateway.router,
                               &settings.gateway.decoder, &settings.gateway.modifiers}) {
    *address = kOwnSocket;
  }
  services::OptionSet gateway("gateway"), router("router"), decoder("decoder"),
      modifiers("modifiers");
  gateway::DeclareGatewayOptions(gateway, &settings.gateway);
  services::DeclareRouterOptions(router, &settings.router);
  services::DeclareDecoderOptions(decoder, &settings.decoder);
  services::DeclareModifiersOptions(modifiers, &settings.modifiers);
  std::vector<const char*> argv = {"cogumi serve"};
  if (!source.config.empty()) argv.insert(argv.end(), {"--config", source.config.c_str()});
  for (const std::string& flag : source.flags) argv.push_back(flag.c_str());
  services::ConfigRequest request;
  request.program = "cogumi serve";
  request.sets = {&gateway, &router, &decoder, &modifiers};
  request.argc = static_cast<int>(argv.size());
  request.argv = argv.data();
  if (auto loaded = services::LoadConfig(request); !loaded.ok()) {
    return UsageError(std::string(loaded.status().message()));
  }
  return settings;
}

absl::Status FindModelOf(const SettingsSource& source, Settings* settings) {
  std::string& path = settings->decoder.engine.model_path;
  ASSIGN_OR_RETURN(const ModelFile file, FindModel(source.model.empty() ? path : source.model));
  path = file.path;
  // Adapters are for the model that is served, unless the person says that they are not.
  services::CatalogueOptions& catalogue = settings->modifiers.catalogue;
  if (catalogue.base_model.empty() && catalogue.base.digest == services::BaseModel().digest) {
    catalogue.base_model = path;
  }
  return absl::OkStatus();
}

}  // namespace cogumi::cli
