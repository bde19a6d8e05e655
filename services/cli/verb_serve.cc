// `cogumi serve`: the whole cluster, in this process or as supervised child processes.
#include <unistd.h>

#include <cstdio>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "engine/core/status_macros.h"
#include "services/cli/cluster.h"
#include "services/cli/json.h"
#include "services/cli/paths.h"
#include "services/cli/settings.h"
#include "services/cli/single_process.h"
#include "services/cli/verbs.h"

namespace cogumi::cli {
namespace {

constexpr const char* kServices[] = {"gateway", "router", "decoder", "modifiers"};

class ServeVerb : public Verb {
 public:
  ServeVerb()
      : Verb(
            "serve", "[MODEL]",
            "Serves a model until SIGTERM or Ctrl-C: in one process, or with --split as four "
            "child\n"
            "processes that are started again when they end. Options of a service go behind its\n"
            "name: --gateway.http 127.0.0.1:9000, --decoder.threads 4; each cogumi-SERVICE --help\n"
            "lists its own. Settings also come from --config FILE (YAML) and COGUMI_* variables.",
            0, 1) {
    options_.Bool("split", &split_, "four supervised processes instead of one")
        .String("config", &config_, "YAML file with sections gateway, router, decoder, modifiers");
  }

  absl::StatusOr<int> Run() override {
    SettingsSource source;
    if (!positionals_.empty()) source.model = positionals_[0];
    source.config = config_;
    source.flags = unknown_flags_;
    RETURN_IF_ERROR(CheckServiceNames());
    if (!split_) {
      return ServeInThisProcess(source, [this](const ClusterRecord& record) { Announce(record); });
    }
    Cluster::BlockSignals();
    ASSIGN_OR_RETURN(const ClusterOptions options, SplitOptions(source));
    ASSIGN_OR_RETURN(const auto cluster, Cluster::Start(options));
    Announce(cluster->record());
    RETURN_IF_ERROR(cluster->Supervise());
    return kExitOk;
  }

 protected:
  bool TakesUnknownFlags() const override { return true; }

 private:
  // The service that the flag --gateway.http or --no-gateway.log-requests is for; "" for none.
  static std::string ServiceOf(const std::string& word) {
    absl::string_view name = word;
    if (!absl::ConsumePrefix(&name, "--")) return "";
    absl::ConsumePrefix(&name, "no-");
    for (const char* service : kServices) {
      if (absl::StartsWith(name, absl::StrCat(service, "."))) return service;
    }
    return "";
  }

  absl::Status CheckServiceNames() const {
    for (const std::string& word : unknown_flags_) {
      if (!absl::StartsWith(word, "--") || !ServiceOf(word).empty()) continue;
      return UsageError(absl::StrCat("unknown option ", word,
                                     "; a service's own go behind its name: --gateway.http"));
    }
    return absl::OkStatus();
  }

  // The children read the same file, variables and flags as this process; what it has to know of
  // them, their model and addresses, it passes on as it has read it.
  absl::StatusOr<ClusterOptions> SplitOptions(const SettingsSource& source) const {
    // Before the settings are read: it adds to the variables.
    RETURN_IF_ERROR(ShareStateFolder());
    ASSIGN_OR_RETURN(Settings settings, LoadSettings(source));
    RETURN_IF_ERROR(FindModelOf(source, &settings));
    ClusterOptions options;
    options.is_private = false;
    options.model = settings.decoder.engine.model_path;
    options.adapter_base = settings.modifiers.catalogue.base_model;
    const auto placed = [](const char* name, const std::string& address,
                           std::map<std::string, std::string>* addresses) {
      if (address != kOwnSocket) (*addresses)[name] = address;
    };
    placed("decoder", settings.decoder.server.address, &options.addresses);
    placed("router", settings.router.server.address, &options.addresses);
    placed("modifiers", settings.modifiers.server.address, &options.addresses);
    placed("decoder", settings.gateway.decoder, &options.backends);
    placed("router", settings.gateway.router, &options.backends);
    placed("modifiers", settings.gateway.modifiers, &options.backends);
    if (!config_.empty()) {
      for (const char* service : kServices) options.flags[service] = {"--config", config_};
    }
    // --gateway.http X becomes --http X of the gateway.
    std::vector<std::string>* last = nullptr;
    for (const std::string& word : unknown_flags_) {
      const std::string service = ServiceOf(word);
      if (service.empty()) {
        last->push_back(word);  // the value of the flag before it
        continue;
      }
      last = &options.flags[service];
      last->push_back(absl::StrReplaceAll(word, {{absl::StrCat(service, "."), ""}}));
    }
    return options;
  }

  void Announce(const ClusterRecord& record) const {
    if (json()) {
      JsonArray services;
      for (const auto& service : record.services) {
        JsonObject object;
        object.Add("service", service.service)
            .Add("pid", service.pid)
            .Add("address", service.address)
            .Add("metrics", service.metrics);
        for (const auto& [key, value] : service.extra) object.Add(key, value);
        services.Add(object);
      }
      std::puts(JsonObject()
                    .Add("supervisor", record.supervisor)
                    .Add("mode", record.mode)
                    .Add("model", record.model)
                    .Add("services", services)
                    .str()
                    .c_str());
    } else {
      std::printf("serving %s\n", record.model.c_str());
      for (const auto& service : record.services) {
        std::string more;
        for (const auto& [key, value] : service.extra)
          absl::StrAppend(&more, "  ", key, " ", value);
        std::printf("  %-10s pid %-8d %s%s\n", service.service.c_str(),
                    static_cast<int>(service.pid), service.address.c_str(), more.c_str());
      }
    }
    std::fflush(stdout);
  }

  bool split_ = false;
  std::string config_;
};

}  // namespace

std::unique_ptr<Verb> MakeServeVerb() { return std::make_unique<ServeVerb>(); }

}  // namespace cogumi::cli
