// Starts the decoder in this process: for cogumi-decoder and for a cluster in one process.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cogumi/options.h"
#include "services/common/config.h"
#include "services/common/server.h"

namespace grpc {
class Channel;
}

namespace cogumi::services {

struct DecoderConfig {
  DecoderConfig();

  ServerOptions server;
  EngineOptions engine;
  std::string activations = "mixed";  // mixed | exact | fast | f32
  std::string kv_format = "f16";      // f16 | f32 | int8 | int4 | k8v4
  std::string speculation = "ngram";  // off | ngram | draft_model
  std::string modifiers = "127.0.0.1:7073";  // address of the catalogue of adapters; "" for none
};

// The section "decoder". `config` outlives the set.
void DeclareDecoderOptions(OptionSet& set, DecoderConfig* config);

// COGUMI_MODEL, else the default model in the cache folder.
std::string DefaultModelPath();

// Loads the model (DefaultModelPath when none is named) and serves it. `modifiers` is an in-process
// channel; null: the configuration's address is dialled.
absl::StatusOr<std::unique_ptr<RunningService>> StartDecoder(
    const DecoderConfig& config, std::shared_ptr<grpc::Channel> modifiers = nullptr);

}  // namespace cogumi::services
