#include "services/gateway/model_catalogue.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/sha256.h"
#include "services/common/status.h"

namespace cogumi::gateway {
namespace {

constexpr double kFreshSeconds = 30;
constexpr double kAskSeconds = 5;

}  // namespace

ModelCatalogue::ModelCatalogue(Backends& backends, const Clock& clock)
    : backends_(backends), clock_(clock) {}

ModelCatalogue::~ModelCatalogue() {
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return calls_ == 0; });
}

void ModelCatalogue::Get(const Callback& done) {
  const uint64_t generation = backends_.DecoderGeneration();
  ModelSnapshot snapshot;
  bool ask = false;
  {
    std::lock_guard lock(mutex_);
    const bool same = generation == generation_;
    if (same && !lost_) snapshot = snapshot_;
    if (snapshot == nullptr) waiting_.push_back(done);
    const bool fresh = snapshot != nullptr && !stale_ && clock_.Now() - fetched_ < kFreshSeconds;
    ask = !fresh && StartAsking(generation);
  }
  if (snapshot != nullptr) done(snapshot);
  if (ask) Ask();
}

void ModelCatalogue::GetFresh(const Callback& done) {
  const uint64_t generation = backends_.DecoderGeneration();
  bool ask = false;
  {
    std::lock_guard lock(mutex_);
    waiting_.push_back(done);
    ask = StartAsking(generation);
  }
  if (ask) Ask();
}

bool ModelCatalogue::StartAsking(uint64_t generation) {
  if (asking_) return false;
  lost_ = lost_ || generation != generation_;
  generation_ = generation;
  asking_ = true;
  ++calls_;
  return true;
}

ModelSnapshot ModelCatalogue::Peek() const {
  std::lock_guard lock(mutex_);
  return snapshot_;
}

void ModelCatalogue::Observe(const cogumi::v1::Receipt& receipt) {
  std::lock_guard lock(mutex_);
  if (snapshot_ == nullptr) return;
  if (receipt.model_digest() != snapshot_->model().digest() ||
      receipt.kernel_digest() != snapshot_->kernel_digest()) {
    stale_ = true;
  }
}

void ModelCatalogue::Ask() {
  services::RequestContext context;
  context.request_id = services::NewRequestId();
  context.deadline = clock_.Now() + kAskSeconds;
  backends_.ModelInfo(context, [this](absl::StatusOr<cogumi::v1::ModelInfoResponse> response) {
    Answered(std::move(response));
  });
}

void ModelCatalogue::Answered(absl::StatusOr<cogumi::v1::ModelInfoResponse> response) {
  absl::StatusOr<ModelSnapshot> result =
      response.ok() ? absl::StatusOr<ModelSnapshot>(
                          std::make_shared<const cogumi::v1::ModelInfoResponse>(*response))
                    : response.status();
  std::vector<Callback> waiting;
  {
    std::lock_guard lock(mutex_);
    if (result.ok()) {
      snapshot_ = *result;
      lost_ = false;
      fetched_ = clock_.Now();
      stale_ = false;
    } else if (snapshot_ != nullptr && !lost_) {
      result = snapshot_;
    }
    waiting.swap(waiting_);
    asking_ = false;
  }
  for (Callback& done : waiting) done(result);
  // Last: from here on the destructor may run.
  std::lock_guard lock(mutex_);
  --calls_;
  idle_.notify_all();
}

absl::StatusOr<std::string> AdapterOfModel(const std::string& name,
                                           const cogumi::v1::ModelInfoResponse& info) {
  const std::string& id = info.model().id();
  if (name.empty() || name == id) return std::string();
  if (name.size() > id.size() + 1 && name.compare(0, id.size(), id) == 0 &&
      name[id.size()] == ':') {
    return name.substr(id.size() + 1);
  }
  return ModelNotFound(name, info);
}

absl::Status ModelNotFound(const std::string& name, const cogumi::v1::ModelInfoResponse& info) {
  return services::WithReason(
      services::WithField(
          absl::NotFoundError(absl::StrCat("the model \"", name.substr(0, 128),
                                           "\" does not exist; served is \"", info.model().id(),
                                           "\"")),
          "model"),
      "MODEL_NOT_FOUND");
}

std::vector<cogumi::v1::ModelDescription> ServedModels(const cogumi::v1::ModelInfoResponse& info) {
  std::vector<cogumi::v1::ModelDescription> models = {info.model()};
  for (const cogumi::v1::ServedAdapter& adapter : info.adapters()) {
    cogumi::v1::ModelDescription& model = models.emplace_back(info.model());
    model.set_id(absl::StrCat(info.model().id(), ":", adapter.name()));
    model.set_digest(adapter.digest());
    model.set_created(adapter.created());
  }
  return models;
}

std::string SystemFingerprint(const std::string& model_digest, const std::string& kernel_digest,
                              const std::string& adapter_digest) {
  std::string text = model_digest + "/" + kernel_digest;
  if (!adapter_digest.empty()) absl::StrAppend(&text, "/", adapter_digest);
  return absl::StrCat("fp_", Sha256::Hex(text).substr(0, 12));
}

}  // namespace cogumi::gateway
