#include "services/common/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#include "engine/core/status_macros.h"
#include "services/common/channel.h"
#include "services/common/logging.h"
#include "services/common/metrics_server.h"
#include "services/common/text.h"

namespace cogumi::services {
namespace {

constexpr char kUnixPrefix[] = "unix:";
constexpr std::chrono::milliseconds kHealthInterval(100);
constexpr std::chrono::milliseconds kUnhealthyInterval(20);
// What the transport gets to send the last bytes; health Watch streams hold Shutdown for as long.
constexpr std::chrono::milliseconds kFlushTime(200);

void EnableGlobalPlugins() {
  static const bool done = [] {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    return true;
  }();
  (void)done;
}

// UNAVAILABLE when somebody serves this Unix socket: gRPC would take it away from them.
absl::Status CheckSocketIsFree(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(
        Cat("listen: the socket path has ", path.size(), " bytes, 1 to ",
                     sizeof(address.sun_path) - 1, " are possible"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return absl::OkStatus();  // the bind says what is wrong
  const bool served =
      ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  ::close(fd);
  if (served) {
    return absl::UnavailableError(Cat("listen: another process serves unix:", path));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckLocalAddress(const std::string& address, std::string_view option) {
  if (address.empty() || address.starts_with(kUnixPrefix)) return absl::OkStatus();
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) {
    return absl::InvalidArgumentError(
        Cat(option, ": \"", address, "\" is neither host:port nor unix:PATH"));
  }
  const std::string host = address.substr(0, colon);
  const bool loopback = host == "localhost" || host == "[::1]" || host.starts_with("127.");
  if (loopback) return absl::OkStatus();
  return absl::InvalidArgumentError(
      Cat(option, ": ", address,
          " is reachable from other machines, and nobody checks there who "
          "calls; use loopback or a Unix socket, or pass --allow-remote on a closed network"));
}

void DeclareServerOptions(OptionSet& set, ServerOptions* options) {
  set.String("listen", &options->address,
             "Address to serve: host:port (port 0: a free one) or unix:PATH.")
      .Bool("allow_remote", &options->allow_remote,
            "Allow addresses that other machines can reach although nobody checks there who calls.")
      .String("metrics", &options->metrics_address,
              "host:port of GET /metrics (port 0: a free one); empty for none.")
      .Duration("drain_grace", &options->drain_grace, 0, 3600,
                "What running calls get to finish after SIGTERM.")
      .Bool("log_requests", &options->log_requests, "One JSON line per request on stderr.")
      .String("ready_file", &options->ready_file, "File that gets the ready line.")
      .Int("parent_pid", &options->parent_pid, 0, INT32_MAX,
           "Supervisor: stop when this process ends; 0 for none.");
}

struct ServiceHost::Impl {
  explicit Impl(ServiceRuntime& service_runtime) : runtime(service_runtime) {}

  ServiceRuntime& runtime;
  std::string address;
  std::vector<HostedService> services;
  std::unique_ptr<MetricsServer> metrics;
  std::unique_ptr<grpc::Server> server;
  std::function<absl::Status()> check_health;

  std::mutex mutex;
  std::condition_variable wake;
  bool draining = false;
  bool shut_down = false;
  std::thread health_thread;

  void SetServing(bool serving) {
    auto* health = server->GetHealthCheckService();
    for (const HostedService& hosted : services) {
      health->SetServingStatus(hosted.full_name, serving);
    }
    // Last: who watches the whole server may then ask for any service.
    health->SetServingStatus("", serving);
  }

  void WatchHealth(bool serving) {
    std::unique_lock<std::mutex> lock(mutex);
    // Callers wait for a service that is not healthy yet.
    while (!wake.wait_for(lock, serving ? kHealthInterval : kUnhealthyInterval,
                          [this] { return draining; })) {
      const absl::Status now = check_health();
      if (now.ok() == serving) continue;
      serving = now.ok();
      SetServing(serving);
      LogLine(runtime.name, serving ? "healthy" : Cat("not healthy: ", now.message()));
    }
  }
};

ServiceHost::ServiceHost(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

ServiceHost::~ServiceHost() { Drain(0).IgnoreError(); }

absl::StatusOr<std::unique_ptr<ServiceHost>> ServiceHost::Create(
    ServiceRuntime& runtime, const ServerOptions& options,
    const std::vector<HostedService>& services, std::function<absl::Status()> health) {
  if (!options.allow_remote) {
    RETURN_IF_ERROR(CheckLocalAddress(options.address));
    if (!options.metrics_address.empty()) {
      RETURN_IF_ERROR(CheckLocalAddress(options.metrics_address, "metrics"));
    }
  }
  runtime.log_requests = options.log_requests;
  EnableGlobalPlugins();

  auto impl = std::make_unique<Impl>(runtime);
  impl->services = services;
  impl->check_health = std::move(health);

  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_streams);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Windows that a slow reader can fill: 64 KiB a stream, no growth by probing.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 64 * 1024);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  // Connections are renewed now and then, so that callers find new replicas.
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, 30 * 60 * 1000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, 30 * 60 * 1000);

  int port = 0;
  const bool is_unix = options.address.starts_with(kUnixPrefix);
  const std::string socket_path = is_unix ? options.address.substr(sizeof(kUnixPrefix) - 1) : "";
  if (is_unix) RETURN_IF_ERROR(CheckSocketIsFree(socket_path));
  if (!options.address.empty()) {
    builder.AddListeningPort(options.address, grpc::InsecureServerCredentials(), &port);
  }
  for (const HostedService& hosted : services) builder.RegisterService(hosted.service);
  impl->server = builder.BuildAndStart();
  if (impl->server == nullptr || (!options.address.empty() && !is_unix && port == 0)) {
    return absl::UnavailableError(
        Cat("listen: cannot serve ", options.address,
                     "; is the port taken or the folder missing?"));
  }
  if (is_unix) {
    // Only this user may connect.
    ::chmod(socket_path.c_str(), S_IRUSR | S_IWUSR);
    impl->address = options.address;
  } else if (!options.address.empty()) {
    impl->address =
        Cat(options.address.substr(0, options.address.rfind(':')), ":", port);
  }
  if (!options.metrics_address.empty()) {
    ASSIGN_OR_RETURN(impl->metrics,
                     MetricsServer::Create(options.metrics_address, runtime.metrics));
  }
  const bool serving = !impl->check_health || impl->check_health().ok();
  impl->SetServing(serving);
  if (impl->check_health) {
    impl->health_thread = std::thread([raw = impl.get(), serving] { raw->WatchHealth(serving); });
  }
  return std::unique_ptr<ServiceHost>(new ServiceHost(std::move(impl)));
}

const std::string& ServiceHost::address() const { return impl_->address; }

const std::string& ServiceHost::metrics_address() const {
  static const std::string none;
  return impl_->metrics != nullptr ? impl_->metrics->address() : none;
}

std::shared_ptr<grpc::Channel> ServiceHost::InProcessChannel() {
  return impl_->server->InProcessChannel(grpc::ChannelArguments());
}

ServiceRuntime& ServiceHost::runtime() { return impl_->runtime; }

void ServiceHost::StartDraining() {
  {
    std::lock_guard<std::mutex> lock(impl_->mutex);
    if (impl_->draining) return;
    impl_->draining = true;
  }
  impl_->wake.notify_all();
  if (impl_->health_thread.joinable()) impl_->health_thread.join();
  impl_->runtime.calls.StartDraining();
  impl_->server->GetHealthCheckService()->Shutdown();
}

absl::Status ServiceHost::Drain(double grace) {
  StartDraining();
  {
    std::lock_guard<std::mutex> lock(impl_->mutex);
    if (impl_->shut_down) return absl::OkStatus();
    impl_->shut_down = true;
  }
  const bool idle = impl_->runtime.calls.WaitIdle(grace);
  const auto now = std::chrono::system_clock::now();
  impl_->server->Shutdown(idle ? now + kFlushTime : now);
  if (idle) return absl::OkStatus();
  return absl::DeadlineExceededError(
      Cat(impl_->runtime.name, ": calls were cut off after ", grace, " s of grace"));
}

}  // namespace cogumi::services
