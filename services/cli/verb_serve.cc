// `cogumi serve`: the whole cluster, in this process or as supervised child processes.
#include <unistd.h>

#include <cstdio>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "services/cli/cluster.h"
#include "services/cli/json.h"
#include "services/cli/paths.h"
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
    ASSIGN_OR_RETURN(const ModelFile file, FindModel(positionals_.empty() ? "" : positionals_[0]));
    if (!split_) {
      SingleProcessOptions options;
      options.model = file.path;
      options.config = config_;
      options.flags = unknown_flags_;
      return ServeInThisProcess(options, [this](const ClusterRecord& record) { Announce(record); });
    }
    Cluster::BlockSignals();
    ClusterOptions options;
    options.is_private = false;
    options.model = file.path;
    RETURN_IF_ERROR(ServiceFlags(&options.flags));
    ASSIGN_OR_RETURN(const auto cluster, Cluster::Start(options));
    Announce(cluster->record());
    RETURN_IF_ERROR(cluster->Supervise());
    return kExitOk;
  }

 protected:
  bool TakesUnknownFlags() const override { return true; }

 private:
  // --gateway.http X becomes --http X of the gateway.
  absl::Status ServiceFlags(std::map<std::string, std::vector<std::string>>* flags) const {
    if (!config_.empty()) {
      for (const char* service : kServices) (*flags)[service] = {"--config", config_};
    }
    std::vector<std::string>* last = nullptr;
    for (const std::string& word : unknown_flags_) {
      if (!absl::StartsWith(word, "--")) {
        last->push_back(word);  // the value of the flag before it
        continue;
      }
      last = nullptr;
      for (const char* service : kServices) {
        const std::string prefix = absl::StrCat("--", service, ".");
        if (!absl::StartsWith(word, prefix)) continue;
        last = &(*flags)[service];
        last->push_back("--" + word.substr(prefix.size()));
      }
      if (last == nullptr) {
        return UsageError(absl::StrCat("unknown option ", word,
                                       "; a service's own go behind its name: --gateway.http"));
      }
    }
    return absl::OkStatus();
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
