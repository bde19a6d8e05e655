#include "services/cli/single_process.h"

#include <unistd.h>

#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/clock.h"
#include "engine/core/status_macros.h"
#include "services/cli/paths.h"
#include "services/cli/verb.h"
#include "services/common/config.h"
#include "services/common/logging.h"
#include "services/decoder/start.h"
#include "services/gateway/gateway.h"
#include "services/modifiers/start.h"
#include "services/router/start.h"

namespace cogumi::cli {
namespace {

struct Configs {
  gateway::GatewayConfig gateway;
  services::RouterConfig router;
  services::DecoderConfig decoder;
  services::ModifiersConfig modifiers;
};

absl::Status Load(const SingleProcessOptions& options, Configs* configs) {
  services::OptionSet gateway("gateway"), router("router"), decoder("decoder"),
      modifiers("modifiers");
  gateway::DeclareGatewayOptions(gateway, &configs->gateway);
  services::DeclareRouterOptions(router, &configs->router);
  services::DeclareDecoderOptions(decoder, &configs->decoder);
  services::DeclareModifiersOptions(modifiers, &configs->modifiers);
  std::vector<const char*> argv = {"cogumi serve"};
  if (!options.config.empty()) argv.insert(argv.end(), {"--config", options.config.c_str()});
  for (const std::string& flag : options.flags) argv.push_back(flag.c_str());
  services::ConfigRequest request;
  request.program = "cogumi serve";
  request.sets = {&gateway, &router, &decoder, &modifiers};
  request.argc = static_cast<int>(argv.size());
  request.argv = argv.data();
  if (auto loaded = services::LoadConfig(request); !loaded.ok()) {
    return UsageError(std::string(loaded.status().message()));
  }
  return absl::OkStatus();
}

// A folder that goes with its owner.
struct TemporaryFolder {
  std::string path;
  ~TemporaryFolder() {
    std::error_code error;
    if (!path.empty()) std::filesystem::remove_all(path, error);
  }
};

struct RecordFile {
  ClusterRecord record;
  ~RecordFile() {
    std::error_code error;
    if (!record.path.empty()) std::filesystem::remove(record.path, error);
  }
};

services::ReadyLine Describe(services::RunningService& service) {
  services::ServiceHost& host = service.host();
  return {host.runtime().name, host.address(), host.metrics_address(), {}, ::getpid()};
}

}  // namespace

absl::StatusOr<int> ServeInThisProcess(const SingleProcessOptions& options,
                                       const std::function<void(const ClusterRecord&)>& ready) {
  services::SignalWaiter signals;
  Configs configs;
  TemporaryFolder sockets;
  ASSIGN_OR_RETURN(sockets.path, MakeSocketFolder());
  RETURN_IF_ERROR(ShareStateFolder());
  // Defaults of their own: within this process the gateway needs no addresses, but operators'
  // commands do, and a cluster must not take four ports.
  configs.router.server.address = absl::StrCat("unix:", sockets.path, "/router");
  configs.decoder.server.address = absl::StrCat("unix:", sockets.path, "/decoder");
  configs.modifiers.server.address = absl::StrCat("unix:", sockets.path, "/modifiers");
  configs.decoder.engine.model_path = options.model;
  RETURN_IF_ERROR(Load(options, &configs));

  // Destroyed from the last to the first: the gateway before what it calls.
  ASSIGN_OR_RETURN(const auto decoder, services::StartDecoder(configs.decoder));
  ASSIGN_OR_RETURN(const auto router, services::StartRouter(configs.router));
  ASSIGN_OR_RETURN(const auto modifiers, services::StartModifiers(configs.modifiers));
  gateway::GatewayChannels channels;
  channels.decoder = decoder->host().InProcessChannel();
  channels.router = router->host().InProcessChannel();
  ASSIGN_OR_RETURN(const auto gateway, gateway::StartGateway(configs.gateway, channels));

  RecordFile file;
  file.record.supervisor = ::getpid();
  file.record.mode = "serve";
  file.record.model = configs.decoder.engine.model_path;
  file.record.started = static_cast<int64_t>(Clock::Real()->UnixNow());
  file.record.services = {Describe(*decoder), Describe(*gateway), Describe(*modifiers),
                          Describe(*router)};
  if (!gateway->http_address().empty()) {
    file.record.services[1].extra.emplace_back("http", gateway->http_address());
  }
  RETURN_IF_ERROR(WriteClusterRecord(&file.record));
  ready(file.record);

  signals.Wait();
  services::LogLine("serve", "draining: running streams finish, new ones are refused");
  gateway->host().StartDraining();
  gateway->OnDrain();
  // A second signal cuts it short.
  services::CallTracker& calls = gateway->host().runtime().calls;
  constexpr double kSlice = 0.02;
  for (double waited = 0; waited < configs.gateway.server.drain_grace; waited += kSlice) {
    if (calls.WaitIdle(kSlice) || signals.Wait(0) != 0) break;
  }
  const absl::Status drained = gateway->host().Drain(0);
  decoder->OnDrain();
  return drained.ok() ? kExitOk : kExitFailure;
}

}  // namespace cogumi::cli
