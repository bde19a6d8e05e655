#include "services/gateway/gateway.h"

#include <cstdlib>
#include <utility>

#include "engine/core/clock.h"
#include "engine/core/status_macros.h"
#include "services/common/channel.h"
#include "services/common/logging.h"
#include "services/common/runtime.h"
#include "services/common/text.h"
#include "services/gateway/backends.h"
#include "services/gateway/explain_log.h"
#include "services/gateway/http_api.h"
#include "services/gateway/http_server.h"
#include "services/gateway/metrics.h"
#include "services/gateway/model_catalogue.h"
#include "services/gateway/pipeline.h"
#include "services/gateway/quota.h"
#include "services/gateway/rpc_service.h"
#include "services/gateway/session_store.h"
#include "services/gateway/tenants.h"

namespace cogumi::gateway {
namespace {

using services::Cat;

constexpr char kServiceName[] = "cogumi.v1.GatewayService";

// Without tokens anybody who reaches the gateway is everybody: loopback only.
absl::Status CheckOpenAddresses(const GatewayConfig& config) {
  for (const std::string& address : {config.server.address, config.http}) {
    if (services::CheckLocalAddress(address).ok()) continue;
    return absl::InvalidArgumentError(
        Cat("listen and http: ", address,
            " can be reached from other machines, which needs a tokens file (--tokens FILE); "
            "without one the gateway serves loopback and Unix sockets only"));
  }
  return absl::OkStatus();
}

// Members are destroyed from the last to the first: doors, then the pipeline, then what it uses.
class RunningGateway : public Gateway {
 public:
  RunningGateway(const GatewayConfig& config, TenantDirectory tenants, const Clock& clock)
      : config_(config),
        clock_(clock),
        tenants_(std::move(tenants)),
        runtime_("gateway", &clock),
        metrics_(*runtime_.registry,
                 {.prompt = config.price_prompt, .completion = config.price_completion}),
        quotas_(tenants_.quotas(), clock),
        explain_(static_cast<size_t>(config.explain_records)) {}

  absl::Status Open(const GatewayChannels& channels) {
    ASSIGN_OR_RETURN(
        sessions_, SessionStore::Create(
                       {.path = config_.sessions.empty() ? DefaultSessionsPath() : config_.sessions,
                        .kept_turns = config_.session_turns,
                        .ttl_seconds = config_.session_ttl,
                        .clock = &clock_}));
    // Channels that are handed over are those of services in this process.
    const auto dial = [](const std::shared_ptr<grpc::Channel>& given, const std::string& address) {
      if (given != nullptr) return BackendChannel{given, /*in_process=*/true};
      if (address.empty()) return BackendChannel{};
      return BackendChannel{services::MakeChannel(address), /*in_process=*/false};
    };
    backends_ = MakeGrpcBackends(dial(channels.decoder, config_.decoder),
                                 dial(channels.router, config_.router),
                                 dial(channels.modifiers, config_.modifiers), clock_);
    reachability_ = MakeReachabilityCollector(backends_);
    runtime_.metrics->Add(reachability_);
    models_ = std::make_unique<ModelCatalogue>(*backends_, clock_);
    PipelineOptions options;
    options.limits.max_text_bytes = static_cast<size_t>(config_.max_body_bytes);
    options.max_request_seconds = config_.max_request_seconds;
    options.router_seconds = config_.router_seconds;
    pipeline_ = std::make_unique<Pipeline>(options, PipelineParts{.backends = backends_.get(),
                                                                  .sessions = sessions_.get(),
                                                                  .quotas = &quotas_,
                                                                  .models = models_.get(),
                                                                  .explain = &explain_,
                                                                  .metrics = &metrics_,
                                                                  .clock = &clock_});
    // The first request then finds the model's description in the cache.
    models_->Get([](const absl::StatusOr<ModelSnapshot>&) {});
    RETURN_IF_ERROR(OpenDoors());
    if (tenants_.open()) {
      services::LogLine("gateway", "open: no tokens file, everyone on this machine may call");
    }
    return absl::OkStatus();
  }

  services::ServiceHost& host() override { return *host_; }
  const std::string& http_address() const override {
    static const std::string none;
    return http_ == nullptr ? none : http_->address();
  }
  void OnDrain() override {
    if (http_ != nullptr) http_->StartDraining();
  }

 private:
  absl::Status OpenDoors() {
    rpc_ = MakeGatewayRpcService(runtime_, tenants_, *pipeline_);
    services::ServerOptions server = config_.server;
    if (!server.allow_remote) {
      RETURN_IF_ERROR(services::CheckLocalAddress(server.metrics_address, "metrics"));
    }
    // The tokens guard the door; without tokens its addresses were checked before.
    server.allow_remote = true;
    const auto healthy = [backends = backends_.get()] { return backends->DecoderReady(); };
    const auto health = [healthy] {
      return healthy() ? absl::OkStatus() : absl::UnavailableError("the decoder does not serve");
    };
    ASSIGN_OR_RETURN(host_, services::ServiceHost::Create(runtime_, server,
                                                          {{rpc_.get(), kServiceName}}, health));
    if (config_.http.empty()) return absl::OkStatus();
    api_ = std::make_unique<HttpApi>(HttpApiOptions{.cors_origins = config_.cors_origins}, runtime_,
                                     tenants_, *pipeline_, healthy);
    HttpServerOptions http;
    http.address = config_.http;
    http.threads = config_.http_threads;
    http.max_body_bytes = config_.max_body_bytes;
    http.max_connections = config_.max_connections;
    http.on_connections = [this](int change) { metrics_.HttpConnections(change); };
    ASSIGN_OR_RETURN(
        http_, HttpServer::Create(http, [api = api_.get()](const HttpRequest& request,
                                                           std::shared_ptr<HttpExchange> exchange) {
          api->Handle(request, std::move(exchange));
        }));
    return absl::OkStatus();
  }

  const GatewayConfig config_;
  const Clock& clock_;
  const TenantDirectory tenants_;
  services::ServiceRuntime runtime_;
  GatewayMetrics metrics_;
  QuotaManager quotas_;
  ExplainLog explain_;
  std::shared_ptr<Backends> backends_;
  std::shared_ptr<prometheus::Collectable> reachability_;
  std::unique_ptr<SessionStore> sessions_;
  std::unique_ptr<ModelCatalogue> models_;
  std::unique_ptr<Pipeline> pipeline_;
  std::shared_ptr<grpc::Service> rpc_;
  std::unique_ptr<services::ServiceHost> host_;
  std::unique_ptr<HttpApi> api_;
  std::unique_ptr<HttpServer> http_;
};

}  // namespace

std::string DefaultSessionsPath() {
  const char* data = std::getenv("XDG_DATA_HOME");
  if (data != nullptr && data[0] == '/') return Cat(data, "/cogumi/sessions.db");
  const char* home = std::getenv("HOME");
  return Cat(home == nullptr ? "." : home, "/.local/share/cogumi/sessions.db");
}

void DeclareGatewayOptions(services::OptionSet& set, GatewayConfig* config) {
  services::DeclareServerOptions(set, &config->server);
  set.String("http", &config->http,
             "host:port of the OpenAI-compatible HTTP interface (port 0: a free one); empty for "
             "none.")
      .String("decoder", &config->decoder, "Address of the decoder.")
      .String("router", &config->router, "Address of the router; empty for none.")
      .String(
          "modifiers", &config->modifiers,
          "Address of the catalogue of adapters, whose reachability the metrics show; empty for "
          "none.")
      .String("sessions", &config->sessions,
              "SQLite file of the conversations; empty for cogumi/sessions.db in the user's data "
              "folder.")
      .String("tokens", &config->tokens,
              "YAML file of bearer tokens, tenants and quotas; without one the gateway is open and "
              "serves loopback only.")
      .List("cors_origins", &config->cors_origins,
            "Origins whose web pages may call, for example https://chat.example.org; * for all.")
      .Int("session_turns", &config->session_turns, 1, 100, "Turns of a session that are kept.")
      .Duration("session_ttl", &config->session_ttl, 0, 3650.0 * 24 * 3600,
                "A session that was not used for so long is forgotten; 0: never.")
      .Duration("max_request_seconds", &config->max_request_seconds, 1, 24 * 3600,
                "Deadline of requests that have no earlier one.")
      .Duration("router_seconds", &config->router_seconds, 0.001, 10,
                "What routing and detection may take before a request goes on without them.")
      .Bytes("max_body_bytes", &config->max_body_bytes, 1024, 16 << 20,
             "Largest HTTP body, and largest text of a request.")
      .Int("max_connections", &config->max_connections, 1, 100000, "HTTP connections at once.")
      .Int("http_threads", &config->http_threads, 1, 16, "Threads of the HTTP interface.")
      .Int("explain_records", &config->explain_records, 1, 100000,
           "Latest requests that operators can ask about.")
      .Double("price_prompt", &config->price_prompt, 0, 1e9,
              "Dollars per million prompt tokens, for the cost metric.")
      .Double("price_completion", &config->price_completion, 0, 1e9,
              "Dollars per million completion tokens, for the cost metric.");
}

absl::StatusOr<std::unique_ptr<Gateway>> StartGateway(const GatewayConfig& config,
                                                      const GatewayChannels& channels,
                                                      const Clock* clock) {
  if (channels.decoder == nullptr && config.decoder.empty()) {
    return absl::InvalidArgumentError(
        "decoder: the address is empty, and there is no answer "
        "without a decoder");
  }
  TenantDirectory tenants = TenantDirectory::Open();
  if (config.tokens.empty()) {
    RETURN_IF_ERROR(CheckOpenAddresses(config));
  } else {
    ASSIGN_OR_RETURN(tenants, TenantDirectory::FromFile(config.tokens));
  }
  auto gateway = std::make_unique<RunningGateway>(config, std::move(tenants),
                                                  clock == nullptr ? *Clock::Real() : *clock);
  RETURN_IF_ERROR(gateway->Open(channels));
  return gateway;
}

}  // namespace cogumi::gateway
