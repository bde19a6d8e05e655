#include "services/modifiers/start.h"

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <utility>

#include "engine/core/status_macros.h"
#include "services/modifiers/modifiers_service.h"

namespace cogumi::services {
namespace {

class RunningModifiers : public RunningService {
 public:
  RunningModifiers() : runtime_("modifiers") {}

  absl::Status Start(const ModifiersConfig& config, const CatalogueOptions& options) {
    ASSIGN_OR_RETURN(catalogue_, Catalogue::Create(options));
    service_ = ModifiersService::Create(runtime_, *catalogue_);
    ASSIGN_OR_RETURN(host_, ServiceHost::Create(runtime_, config.server, {service_->hosted()}));
    if (!options.folder.empty()) {
      watcher_ = std::thread([this, pause = config.folder_seconds] { WatchFolder(pause); });
    }
    return absl::OkStatus();
  }

  ~RunningModifiers() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (watcher_.joinable()) watcher_.join();
  }

  ServiceHost& host() override { return *host_; }
  // Watch streams would run for ever.
  void OnDrain() override { catalogue_->CloseListeners(); }

 private:
  void WatchFolder(double pause) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (
        !wake_.wait_for(lock, std::chrono::duration<double>(pause), [this] { return stopping_; })) {
      lock.unlock();
      catalogue_->ScanFolder();
      lock.lock();
    }
  }

  // Destroyed from the last to the first.
  ServiceRuntime runtime_;
  std::unique_ptr<Catalogue> catalogue_;
  std::unique_ptr<ModifiersService> service_;
  std::unique_ptr<ServiceHost> host_;

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread watcher_;
};

}  // namespace

ModifiersConfig::ModifiersConfig() {
  server.address = "127.0.0.1:7073";
  server.metrics_address = "127.0.0.1:7173";
}

void DeclareModifiersOptions(OptionSet& set, ModifiersConfig* config) {
  DeclareServerOptions(set, &config->server);
  CatalogueOptions& catalogue = config->catalogue;
  BaseModel& base = catalogue.base;
  constexpr int32_t kMax = 1 << 20;
  set.String("state_dir", &catalogue.state_dir,
             "Folder of the stored adapters; empty: ~/.local/state/cogumi/modifiers.")
      .String("folder", &catalogue.folder,
              "Folder of adapter folders that the catalogue follows; when set, nothing outside it "
              "can be registered.")
      .Duration("folder_seconds", &config->folder_seconds, 0.01, 3600,
                "Between two looks at the folder.")
      .String("base.model", &catalogue.base_model,
              "GGUF file of the base model; when set, name, digest and shape are read from it, and "
              "the following options are not used. `cogumi serve` sets it to the served model.")
      .String("base.name", &base.name, "Name of the base model.")
      .String("base.digest", &base.digest, "SHA-256 of the base model's file.")
      .Int("base.layers", &base.layers, 1, 1024, "Layers of the base.")
      .Int("base.embedding_length", &base.embedding_length, 1, kMax, "Width of the base.")
      .Int("base.heads", &base.heads, 1, 1024, "Query heads of the base.")
      .Int("base.kv_heads", &base.kv_heads, 1, 1024, "Key and value heads of the base.")
      .Int("base.head_length", &base.head_length, 1, 4096, "Width of a head.")
      .Int("base.feed_forward_length", &base.feed_forward_length, 1, kMax,
           "Inner width of the feed-forward block.");
}

std::string DefaultModifiersStateDir() {
  const auto variable = [](const char* name) -> std::string {
    const char* value = std::getenv(name);
    return value != nullptr ? value : "";
  };
  std::string state = variable("XDG_STATE_HOME");
  if (state.empty()) state = variable("HOME") + "/.local/state";
  return state + "/cogumi/modifiers";
}

absl::StatusOr<std::unique_ptr<RunningService>> StartModifiers(const ModifiersConfig& config) {
  CatalogueOptions options = config.catalogue;
  if (options.state_dir.empty()) options.state_dir = DefaultModifiersStateDir();
  if (options.base_model.empty() && !IsValidDigest(options.base.digest)) {
    return absl::InvalidArgumentError(
        "base.digest: 64 lower-case hexadecimal digits are wanted");
  }
  auto modifiers = std::make_unique<RunningModifiers>();
  RETURN_IF_ERROR(modifiers->Start(config, options));
  return modifiers;
}

}  // namespace cogumi::services
