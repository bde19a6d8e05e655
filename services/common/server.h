// Hosts the gRPC services of one component: listening, health, reflection, limits, drain, and the
// main loop of a service's process. No gRPC header is needed to use it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/common/config.h"
#include "services/common/runtime.h"

namespace grpc {
class Channel;
class Service;
}  // namespace grpc

namespace cogumi::services {

struct ServerOptions {
  // host:port, port 0 for a free one; unix:PATH; "" for in-process channels only.
  std::string address = "127.0.0.1:0";
  // Internal services have no identity of their own yet: another address than loopback or a Unix
  // socket is refused without this.
  bool allow_remote = false;
  // host:port of GET /metrics; port 0 for a free one; "" for none.
  std::string metrics_address;
  double drain_grace = 30;  // seconds that running calls get after SIGTERM
  bool log_requests = true;
  std::string ready_file;  // the ready line is written here too, by rename
  // Process id of a supervisor: this process ends when that one does. 0: none.
  int32_t parent_pid = 0;
  int32_t max_streams = 100;  // per connection; calls beyond it wait at the caller
};

// Declares listen, metrics, allow_remote, drain_grace, log_requests, ready_file, parent_pid.
void DeclareServerOptions(OptionSet& set, ServerOptions* options);

// INVALID_ARGUMENT, naming the option, when `address` is neither loopback nor a Unix socket nor
// empty.
absl::Status CheckLocalAddress(const std::string& address, std::string_view option = "listen");

struct HostedService {
  grpc::Service* service;
  std::string full_name;  // for example cogumi::v1::DecoderService::service_full_name()
};

class ServiceHost {
 public:
  // `services` live as long as the host. `health` is asked at the start and then several times a
  // second, and drives grpc.health.v1 for "" and for every service: OK, or why not, for the log.
  // null: always serving.
  // Errors: INVALID_ARGUMENT (address), UNAVAILABLE (cannot listen).
  static absl::StatusOr<std::unique_ptr<ServiceHost>> Create(
      ServiceRuntime& runtime, const ServerOptions& options,
      const std::vector<HostedService>& services, std::function<absl::Status()> health = nullptr);
  // Drains without grace.
  ~ServiceHost();

  // The address to dial, with the real port: "127.0.0.1:4711", "unix:/run/x", or "" in process.
  const std::string& address() const;
  // Of GET /metrics, or "".
  const std::string& metrics_address() const;
  std::shared_ptr<grpc::Channel> InProcessChannel();
  ServiceRuntime& runtime();

  // Health becomes NOT_SERVING and new calls UNAVAILABLE; waits for our running calls, at most
  // `grace` seconds; then shuts down. The second call does nothing. OK, or DEADLINE_EXCEEDED when
  // calls had to be cut off.
  absl::Status Drain(double grace);
  // Health and admission only: lets several hosts of one process stop taking calls together.
  void StartDraining();

 private:
  struct Impl;
  explicit ServiceHost(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// A service that runs: its host and everything behind it. Destroying it drains without grace.
class RunningService {
 public:
  virtual ~RunningService() = default;
  virtual ServiceHost& host() = 0;
  // Called after StartDraining and before the wait, for services with work of their own to stop.
  virtual void OnDrain() {}
};

// "ready service=decoder address=127.0.0.1:4711 metrics=127.0.0.1:9000 pid=123"
struct ReadyLine {
  std::string service;
  std::string address;
  std::string metrics;
  // Further key=value pairs, for example http=127.0.0.1:8080.
  std::vector<std::pair<std::string, std::string>> extra;
  int64_t pid = 0;
};
std::string FormatReadyLine(const ReadyLine& line);
// INVALID_ARGUMENT when it is not one.
absl::StatusOr<ReadyLine> ParseReadyLine(std::string_view line);

// Blocks SIGTERM, SIGINT and SIGPIPE; make one before any thread exists.
class SignalWaiter {
 public:
  SignalWaiter();
  // The number of the signal that came. Waits at most `seconds` (negative: for ever); 0: none came.
  int Wait(double seconds = -1);
};

// Until no call runs, `grace` seconds at most; another signal cuts it short.
void WaitForCalls(ServiceRuntime& runtime, SignalWaiter& signals, double grace);

struct ServiceMainOptions {
  std::string program;
  std::string description;
  OptionSet* options = nullptr;
  ServerOptions* server = nullptr;
  std::function<absl::StatusOr<std::unique_ptr<RunningService>>()> start;
  // Adds pairs to the ready line.
  std::function<void(RunningService&, ReadyLine*)> ready;
};

// The whole main() of a service: configuration, start, ready line on stdout, wait, drain. A second
// signal during the drain cuts it short. Exit code 0 after a drain, 1 on an error, 2 on a bad
// configuration.
int ServiceMain(int argc, char** argv, const ServiceMainOptions& options);

}  // namespace cogumi::services
