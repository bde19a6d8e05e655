#include "services/cli/single_process.h"

#include <unistd.h>

#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "services/cli/paths.h"
#include "services/cli/verb.h"
#include "services/common/logging.h"

namespace cogumi::cli {
namespace {

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

absl::StatusOr<int> ServeInThisProcess(const SettingsSource& source,
                                       const std::function<void(const ClusterRecord&)>& ready) {
  services::SignalWaiter signals;
  TemporaryFolder sockets;
  ASSIGN_OR_RETURN(sockets.path, MakeSocketFolder());
  RETURN_IF_ERROR(ShareStateFolder());
  ASSIGN_OR_RETURN(Settings settings, LoadSettings(source));
  RETURN_IF_ERROR(FindModelOf(source, &settings));
  const auto place = [&](const char* name, std::string* address) {
    if (*address == kOwnSocket) absl::StrAppend(address, sockets.path, "/", name);
  };
  place("router", &settings.router.server.address);
  place("decoder", &settings.decoder.server.address);
  place("modifiers", &settings.modifiers.server.address);

  // Destroyed from the last to the first: who calls before what is called.
  ASSIGN_OR_RETURN(const auto modifiers, services::StartModifiers(settings.modifiers));
  ASSIGN_OR_RETURN(const auto decoder,
                   services::StartDecoder(settings.decoder, modifiers->host().InProcessChannel()));
  ASSIGN_OR_RETURN(const auto router, services::StartRouter(settings.router));
  gateway::GatewayChannels channels;
  channels.decoder = decoder->host().InProcessChannel();
  channels.router = router->host().InProcessChannel();
  channels.modifiers = modifiers->host().InProcessChannel();
  ASSIGN_OR_RETURN(const auto gateway, gateway::StartGateway(settings.gateway, channels));

  RecordFile file;
  file.record = RecordOfThisProcess("serve", settings.decoder.engine.model_path);
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
  services::WaitForCalls(gateway->host().runtime(), signals, settings.gateway.server.drain_grace);
  const absl::Status drained = gateway->host().Drain(0);
  decoder->OnDrain();
  return drained.ok() ? kExitOk : kExitFailure;
}

}  // namespace cogumi::cli
