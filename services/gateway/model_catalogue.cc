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
    if (!fresh && !asking_) {
      lost_ = lost_ || !same;
      generation_ = generation;
      asking_ = true;
      ++calls_;
      ask = true;
    }
  }
  if (snapshot != nullptr) done(snapshot);
  if (ask) Ask();
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

absl::Status CheckModelName(const std::string& name, const cogumi::v1::ModelInfoResponse& info) {
  const std::string& id = info.model().id();
  if (name.empty() || name == id) return absl::OkStatus();
  if (name.size() > id.size() + 1 && name.compare(0, id.size(), id) == 0 &&
      name[id.size()] == ':') {
    // The field that the caller used: the model's name names the adapter too.
    return services::WithReason(
        services::WithField(absl::UnimplementedError(absl::StrCat("adapters are not built yet: \"",
                                                                  name.substr(0, 128), "\"")),
                            "model"),
        "NOT_BUILT");
  }
  return services::WithReason(services::WithField(absl::NotFoundError(absl::StrCat(
                                                      "the model \"", name.substr(0, 128),
                                                      "\" does not exist; served is \"", id, "\"")),
                                                  "model"),
                              "MODEL_NOT_FOUND");
}

std::string SystemFingerprint(const std::string& model_digest, const std::string& kernel_digest) {
  return absl::StrCat("fp_", Sha256::Hex(model_digest + "/" + kernel_digest).substr(0, 12));
}

}  // namespace cogumi::gateway
