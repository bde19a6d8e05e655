// cogumi-decoder: the model behind gRPC.
#include "services/decoder/start.h"

int main(int argc, char** argv) {
  using namespace cogumi::services;
  DecoderConfig config;
  OptionSet options("decoder");
  DeclareDecoderOptions(options, &config);
  return ServiceMain(argc, argv,
                     {"cogumi-decoder",
                      "Serves one model: generation, tokens, scores (cogumi.v1.DecoderService).",
                      &options,
                      &config.server,
                      [&config] { return StartDecoder(config); },
                      nullptr});
}
