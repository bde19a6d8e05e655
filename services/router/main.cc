// cogumi-router: names domains, hears complaints, rates answers.
#include "services/router/start.h"

int main(int argc, char** argv) {
  using namespace cogumi::services;
  RouterConfig config;
  OptionSet options("router");
  DeclareRouterOptions(options, &config);
  return ServiceMain(argc, argv,
                     {"cogumi-router",
                      "Serves cogumi.v1.RouterService, EscalationService and ConfidenceService.",
                      &options,
                      &config.server,
                      [&config] { return StartRouter(config); },
                      nullptr});
}
