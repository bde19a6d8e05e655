// What is there and what runs: list, show, ps, stop, version.
#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cogumi/engine.h"
#include "engine/core/clock.h"
#include "engine/core/status_macros.h"
#include "services/cli/cluster.h"
#include "services/cli/human.h"
#include "services/cli/json.h"
#include "services/cli/paths.h"
#include "services/cli/verbs.h"

namespace cogumi::cli {
namespace {

class ListVerb : public Verb {
 public:
  ListVerb() : Verb("list", "", "Lists the models of this machine.", 0, 0) {}

  absl::StatusOr<int> Run() override {
    const auto models = ListModels();
    if (json()) {
      JsonArray array;
      for (const ModelFile& model : models) {
        array.Add(JsonObject()
                      .Add("name", model.name)
                      .Add("bytes", model.bytes)
                      .Add("path", model.path)
                      .Add("running", FindServingCluster(model.path).has_value()));
      }
      std::puts(JsonObject().Add("models", array).str().c_str());
      return kExitOk;
    }
    for (const ModelFile& model : models) {
      std::printf("%-40s %10s  %s%s\n", model.name.c_str(), HumanBytes(model.bytes).c_str(),
                  model.path.c_str(),
                  FindServingCluster(model.path).has_value() ? "  (running)" : "");
    }
    if (models.empty()) {
      std::fprintf(stderr, "no models in %s\n  then: ./run fetches the default model\n",
                   ModelFolder().c_str());
    }
    return kExitOk;
  }
};

class ShowVerb : public Verb {
 public:
  ShowVerb() : Verb("show", "[MODEL]", "Describes a model.", 0, 1) {}

  absl::StatusOr<int> Run() override {
    ASSIGN_OR_RETURN(const ModelFile file, FindModel(positionals_.empty() ? "" : positionals_[0]));
    EngineOptions options;
    options.model_path = file.path;
    ASSIGN_OR_RETURN(const auto engine, Engine::Create(options));
    const ModelDescription& model = engine->Model();
    const Receipt& kernels = engine->Configuration();
    if (json()) {
      std::puts(JsonObject()
                    .Add("name", file.name)
                    .Add("id", model.id)
                    .Add("path", file.path)
                    .Add("architecture", model.architecture)
                    .Add("digest", model.digest)
                    .Add("file_bytes", model.file_bytes)
                    .Add("parameters", model.parameters)
                    .Add("quantization", model.quantization)
                    .Add("context_length", model.context_length)
                    .Add("vocabulary_size", model.vocabulary_size)
                    .Add("layers", model.layers)
                    .Add("embedding_length", model.embedding_length)
                    .Add("chat_template", model.chat_template)
                    .Add("kernel_configuration", kernels.kernel_configuration)
                    .str()
                    .c_str());
      return kExitOk;
    }
    auto row = [](const char* name, const std::string& value) {
      std::printf("%-14s %s\n", name, value.c_str());
    };
    row("name", file.name);
    row("id", model.id);
    row("file", absl::StrCat(file.path, " (", HumanBytes(model.file_bytes), ")"));
    row("digest", model.digest);
    row("architecture", absl::StrCat(model.architecture, ", ", model.layers, " layers of width ",
                                     model.embedding_length));
    row("parameters",
        absl::StrFormat("%.1f million, %s", static_cast<double>(model.parameters) / 1e6,
                        model.quantization));
    row("context", absl::StrCat(model.context_length, " tokens"));
    row("vocabulary", absl::StrCat(model.vocabulary_size));
    row("chat template", model.chat_template.empty() ? "unknown" : model.chat_template);
    row("kernels", kernels.kernel_configuration);
    return kExitOk;
  }
};

class PsVerb : public Verb {
 public:
  PsVerb() : Verb("ps", "", "Shows the clusters and services that run.", 0, 0) {}

  absl::StatusOr<int> Run() override {
    JsonArray clusters;
    int shown = 0;
    for (const ClusterRecord& cluster : FindClusters()) {
      ++shown;
      if (!json()) {
        std::printf("cluster %d (%s), model %s\n", static_cast<int>(cluster.supervisor),
                    cluster.mode.c_str(), cluster.model.c_str());
      }
      JsonArray services;
      for (const auto& service : cluster.services) {
        const auto usage = ReadUsage(service.pid);
        JsonObject object;
        object.Add("service", service.service)
            .Add("pid", service.pid)
            .Add("address", service.address)
            .Add("metrics", service.metrics)
            .Add("alive", usage.has_value());
        std::string more;
        for (const auto& [key, value] : service.extra) {
          object.Add(key, value);
          absl::StrAppend(&more, "  ", key, " ", value);
        }
        if (usage.has_value()) {
          object.Add("resident_bytes", usage->resident_bytes)
              .Add("cpu_seconds", usage->cpu_seconds)
              .Add("uptime_seconds", usage->uptime_seconds);
        }
        services.Add(object);
        if (!json()) {
          std::printf("  %-10s pid %-8d %-10s %-40s%s\n", service.service.c_str(),
                      static_cast<int>(service.pid),
                      usage.has_value() ? HumanBytes(usage->resident_bytes).c_str() : "not there",
                      service.address.c_str(), more.c_str());
        }
      }
      clusters.Add(JsonObject()
                       .Add("supervisor", cluster.supervisor)
                       .Add("mode", cluster.mode)
                       .Add("started", cluster.started)
                       .Add("version", cluster.version)
                       .Add("model", cluster.model)
                       .Add("services", services));
    }
    if (json()) {
      std::puts(JsonObject().Add("clusters", clusters).str().c_str());
    } else if (shown == 0) {
      std::puts("nothing runs; `cogumi serve` starts a cluster");
    }
    return kExitOk;
  }
};

class StopVerb : public Verb {
 public:
  StopVerb()
      : Verb("stop", "",
             "Stops the clusters that `cogumi serve` started. Running answers get drain_grace (by "
             "default 30 s) to finish.",
             0, 0) {
    options_.Duration("timeout", &timeout_, 0, 3600, "how long to wait for them");
  }

  absl::StatusOr<int> Run() override {
    std::vector<ClusterRecord> stopping;
    for (ClusterRecord& cluster : FindClusters()) {
      if (cluster.mode == "run") continue;  // somebody waits for its answer
      if (::kill(static_cast<pid_t>(cluster.supervisor), SIGTERM) != 0) {
        return absl::PermissionDeniedError(absl::StrCat(
            "process ", cluster.supervisor, " cannot be stopped: ", std::strerror(errno)));
      }
      stopping.push_back(std::move(cluster));
    }
    const double deadline = Clock::Real()->Now() + timeout_;
    JsonArray stopped;
    for (const ClusterRecord& cluster : stopping) {
      while (IsRunning(cluster)) {
        if (Clock::Real()->Now() > deadline) {
          return WithAdvice(
              absl::DeadlineExceededError(absl::StrCat("cluster ", cluster.supervisor,
                                                       " still drains after ", timeout_, " s")),
              "run this again with a longer --timeout; a second signal cuts its answers off");
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
      stopped.Add(static_cast<double>(cluster.supervisor));
      if (!json()) std::printf("stopped cluster %d\n", static_cast<int>(cluster.supervisor));
    }
    if (json()) {
      std::puts(JsonObject().Add("stopped", stopped).str().c_str());
    } else if (stopping.empty()) {
      std::puts("nothing runs");
    }
    return kExitOk;
  }

 private:
  double timeout_ = 60;
};

class VersionVerb : public Verb {
 public:
  VersionVerb() : Verb("version", "", "Prints the version.", 0, 0) {}

  absl::StatusOr<int> Run() override {
    const std::string version(services::Version());
    std::puts(json() ? JsonObject().Add("version", version).str().c_str()
                     : absl::StrCat("cogumi ", version).c_str());
    return kExitOk;
  }
};

}  // namespace

std::unique_ptr<Verb> MakeListVerb() { return std::make_unique<ListVerb>(); }
std::unique_ptr<Verb> MakeShowVerb() { return std::make_unique<ShowVerb>(); }
std::unique_ptr<Verb> MakePsVerb() { return std::make_unique<PsVerb>(); }
std::unique_ptr<Verb> MakeStopVerb() { return std::make_unique<StopVerb>(); }
std::unique_ptr<Verb> MakeVersionVerb() { return std::make_unique<VersionVerb>(); }

}  // namespace cogumi::cli
