// cogumi-modifiers: the catalogue of adapters behind gRPC.
#include "services/modifiers/start.h"

int main(int argc, char** argv) {
  using namespace cogumi::services;
  ModifiersConfig config;
  OptionSet options("modifiers");
  DeclareModifiersOptions(options, &config);
  return ServiceMain(argc, argv,
                     {"cogumi-modifiers",
                      "Validates, stores and hands out adapters (cogumi.v1.ModifierService).",
                      &options,
                      &config.server,
                      [&config] { return StartModifiers(config); },
                      nullptr});
}
