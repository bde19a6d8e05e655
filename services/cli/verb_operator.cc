// For operators: route explain, adapter load, list, show and rm.
#include <cstdio>
#include <filesystem>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/core/status_macros.h"
#include "services/cli/client.h"
#include "services/cli/cluster.h"
#include "services/cli/human.h"
#include "services/cli/json.h"
#include "services/cli/paths.h"
#include "services/cli/verbs.h"

namespace cogumi::cli {
namespace {

// One service: that of the running cluster, or a private one that ends with this object.
class SingleService {
 public:
  static absl::StatusOr<std::unique_ptr<SingleService>> Open(const std::string& name) {
    std::unique_ptr<SingleService> service(new SingleService());
    if (auto running = FindServingCluster(""); running.has_value()) {
      if (const auto* line = running->Service(name); line != nullptr && !line->address.empty()) {
        service->address_ = line->address;
        return service;
      }
    }
    ClusterOptions options;
    options.only = name;
    if (const auto model = FindModel(""); model.ok()) options.adapter_base = model->path;
    ASSIGN_OR_RETURN(service->own_, Cluster::Start(options));
    service->address_ = service->own_->record().Service(name)->address;
    return service;
  }
  const std::string& address() const { return address_; }

 private:
  SingleService() = default;
  std::unique_ptr<Cluster> own_;
  std::string address_;
};

class RouteExplainVerb : public Verb {
 public:
  RouteExplainVerb()
      : Verb("route explain", "[PROMPT]",
             "Shows how the router sees a prompt; with --request, how an answered request went.", 0,
             1) {
    options_.String("request", &request_, "id of an answered request, from its last message");
  }

  absl::StatusOr<int> Run() override {
    if (positionals_.empty() == request_.empty()) {
      return UsageError("give either a PROMPT or --request ID");
    }
    if (!request_.empty()) return ExplainRequest();
    ASSIGN_OR_RETURN(const auto router, SingleService::Open("router"));
    ASSIGN_OR_RETURN(const RouteDecision route, AskRouter(router->address(), positionals_[0]));
    if (json()) {
      JsonObject scores;
      for (const auto& [domain, score] : route.scores) scores.Add(domain, score);
      JsonArray reasons;
      for (const std::string& reason : route.reasons) reasons.Add(reason);
      std::puts(JsonObject()
                    .Add("domain", route.domain)
                    .Add("abstained", route.abstained)
                    .Add("margin", route.margin)
                    .Add("scores", scores)
                    .Add("tier", route.tier)
                    .Add("model", route.model)
                    .Add("calibrated", route.calibrated)
                    .Add("feedback", route.feedback)
                    .Add("escalate", route.escalate)
                    .Add("reasons", reasons)
                    .str()
                    .c_str());
      return kExitOk;
    }
    std::printf("domain    %s%s\ntier      %s\nmargin    %.3f\n", route.domain.c_str(),
                route.abstained ? " (abstained)" : "", route.tier.c_str(), route.margin);
    for (const auto& [domain, score] : route.scores) {
      std::printf("  %-12s %.3f\n", domain.c_str(), score);
    }
    std::printf("feedback  %s%s%s\nmodel     %s%s\n", route.feedback.c_str(),
                route.escalate ? ", escalate" : "",
                route.reasons.empty()
                    ? ""
                    : absl::StrCat(" (", absl::StrJoin(route.reasons, ", "), ")").c_str(),
                route.model.c_str(), route.calibrated ? "" : ", not calibrated");
    return kExitOk;
  }

 private:
  absl::StatusOr<int> ExplainRequest() {
    const auto running = FindServingCluster("");
    const auto* gateway = running.has_value() ? running->Service("gateway") : nullptr;
    if (gateway == nullptr) {
      return WithAdvice(absl::NotFoundError("no cluster runs that could remember the request"),
                        "`cogumi serve` starts one");
    }
    ASSIGN_OR_RETURN(const std::string text, GatewayClient(gateway->address).Explain(request_));
    std::puts(text.c_str());
    return kExitOk;
  }

  std::string request_;
};

JsonObject ToJson(const AdapterInfo& adapter) {
  JsonArray modules;
  for (const std::string& module : adapter.target_modules) modules.Add(module);
  return std::move(JsonObject()
                       .Add("name", adapter.name)
                       .Add("digest", adapter.digest)
                       .Add("domain", adapter.domain)
                       .Add("base_model", adapter.base_model)
                       .Add("rank", adapter.rank)
                       .Add("alpha", adapter.alpha)
                       .Add("target_modules", modules)
                       .Add("bytes", adapter.bytes)
                       .Add("parameters", adapter.parameters)
                       .Add("license", adapter.license)
                       .Add("description", adapter.description)
                       .Add("registered_ms", adapter.registered_ms));
}

void PrintAdapter(const AdapterInfo& adapter) {
  std::printf("%-24s %-12s %-10s rank %-4d %10s  %s\n", adapter.name.c_str(),
              adapter.digest.substr(0, 12).c_str(), adapter.domain.c_str(), adapter.rank,
              HumanBytes(adapter.bytes).c_str(), adapter.description.c_str());
}

class AdapterLoadVerb : public Verb {
 public:
  AdapterLoadVerb()
      : Verb("adapter load", "FOLDER [NAME]",
             "Puts an adapter into the catalogue: a folder with adapter_config.json,\n"
             "adapter_model.safetensors and card.json. NAME is the folder's name when absent.",
             1, 2) {}

  absl::StatusOr<int> Run() override {
    std::error_code error;
    const auto folder = std::filesystem::weakly_canonical(positionals_[0], error);
    if (error || !std::filesystem::is_directory(folder, error)) {
      return absl::NotFoundError(absl::StrCat(positionals_[0], " is no folder"));
    }
    const std::string name = positionals_.size() > 1 ? positionals_[1] : folder.filename().string();
    ASSIGN_OR_RETURN(const auto modifiers, SingleService::Open("modifiers"));
    ASSIGN_OR_RETURN(const AdapterInfo adapter,
                     ModifiersClient(modifiers->address()).Register(name, folder.string()));
    if (json()) {
      std::puts(ToJson(adapter).Add("unchanged", adapter.unchanged).str().c_str());
    } else {
      std::printf("%s: ", adapter.unchanged ? "there already" : "loaded");
      PrintAdapter(adapter);
    }
    return kExitOk;
  }
};

class AdapterListVerb : public Verb {
 public:
  AdapterListVerb() : Verb("adapter list", "", "Lists the catalogue of adapters.", 0, 0) {}

  absl::StatusOr<int> Run() override {
    ASSIGN_OR_RETURN(const auto modifiers, SingleService::Open("modifiers"));
    ASSIGN_OR_RETURN(const auto adapters, ModifiersClient(modifiers->address()).List());
    JsonArray array;
    for (const AdapterInfo& adapter : adapters) {
      array.Add(ToJson(adapter));
      if (!json()) PrintAdapter(adapter);
    }
    if (json()) {
      std::puts(JsonObject().Add("adapters", array).str().c_str());
    } else if (adapters.empty()) {
      std::puts("no adapters; `cogumi adapter load FOLDER` adds one");
    }
    return kExitOk;
  }
};

class AdapterShowVerb : public Verb {
 public:
  AdapterShowVerb() : Verb("adapter show", "NAME", "Describes an adapter.", 1, 1) {}

  absl::StatusOr<int> Run() override {
    ASSIGN_OR_RETURN(const auto modifiers, SingleService::Open("modifiers"));
    ASSIGN_OR_RETURN(const AdapterInfo adapter,
                     ModifiersClient(modifiers->address()).Get(positionals_[0]));
    if (json()) {
      std::puts(ToJson(adapter).str().c_str());
      return kExitOk;
    }
    std::printf(
        "name        %s\ndigest      %s\ndomain      %s\nbase model  %s\n"
        "rank        %d, alpha %g, %s\nsize        %s\nlicense     %s\n%s\n",
        adapter.name.c_str(), adapter.digest.c_str(), adapter.domain.c_str(),
        adapter.base_model.c_str(), adapter.rank, adapter.alpha,
        absl::StrJoin(adapter.target_modules, " ").c_str(), HumanBytes(adapter.bytes).c_str(),
        adapter.license.c_str(), adapter.description.c_str());
    return kExitOk;
  }
};

class AdapterRemoveVerb : public Verb {
 public:
  AdapterRemoveVerb()
      : Verb("adapter rm", "NAME", "Removes an adapter from the catalogue.", 1, 1) {}

  absl::StatusOr<int> Run() override {
    ASSIGN_OR_RETURN(const auto modifiers, SingleService::Open("modifiers"));
    ASSIGN_OR_RETURN(const AdapterInfo adapter,
                     ModifiersClient(modifiers->address()).Remove(positionals_[0]));
    if (json()) {
      std::puts(JsonObject().Add("removed", ToJson(adapter)).str().c_str());
    } else {
      std::printf("removed %s (%s)\n", adapter.name.c_str(), adapter.digest.c_str());
    }
    return kExitOk;
  }
};

}  // namespace

std::unique_ptr<Verb> MakeRouteExplainVerb() { return std::make_unique<RouteExplainVerb>(); }
std::unique_ptr<Verb> MakeAdapterLoadVerb() { return std::make_unique<AdapterLoadVerb>(); }
std::unique_ptr<Verb> MakeAdapterListVerb() { return std::make_unique<AdapterListVerb>(); }
std::unique_ptr<Verb> MakeAdapterShowVerb() { return std::make_unique<AdapterShowVerb>(); }
std::unique_ptr<Verb> MakeAdapterRemoveVerb() { return std::make_unique<AdapterRemoveVerb>(); }

}  // namespace cogumi::cli
