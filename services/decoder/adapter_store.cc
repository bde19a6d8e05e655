#include "services/decoder/adapter_store.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "engine/core/status_macros.h"
#include "services/common/status.h"
#include "services/common/text.h"
#include "services/decoder/adapter_bytes.h"

namespace cogumi::services {
namespace {

// Different adapters that wait for their bytes.
constexpr size_t kMaxWaiting = 64;
constexpr double kFirstPause = 0.1;
constexpr double kLongestPause = 5;

std::string Shown(const std::string& key) {
  return Cat("\"", ToValidUtf8(TruncateUtf8(key, 128)), "\"");
}

absl::Status Unknown(const std::string& key) {
  return WithReason(
      WithField(absl::NotFoundError(Cat("the adapter ", Shown(key), " does not exist")), "adapter"),
      "ADAPTER_NOT_FOUND");
}

absl::Status OutOfReach(const std::string& key) {
  return WithRetry(WithReason(absl::UnavailableError(
                                  Cat("the adapter ", Shown(key),
                                      " is not resident, and the catalogue of adapters cannot be "
                                      "reached")),
                              "ADAPTERS_UNREACHABLE"),
                   1);
}

// What a caller may see of a failed call of the catalogue.
absl::Status Seen(const absl::Status& status, const std::string& key) {
  if (absl::IsNotFound(status)) return Unknown(key);
  if (absl::IsUnavailable(status) || absl::IsCancelled(status) ||
      absl::IsDeadlineExceeded(status)) {
    return OutOfReach(key);
  }
  return status;
}

}  // namespace

AdapterStore::AdapterStore(Engine& engine, std::unique_ptr<AdapterSupplier> supplier,
                           AdapterStoreOptions options)
    : engine_(engine),
      supplier_(std::move(supplier)),
      options_(std::move(options)),
      clock_(options_.clock != nullptr ? *options_.clock : *Clock::Real()),
      catalogue_(clock_),
      loader_(std::make_unique<Worker>(kMaxWaiting)),
      follower_([this] { Follow(); }) {}

AdapterStore::~AdapterStore() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  supplier_->Stop();
  follower_.join();
  loader_.reset();  // runs what waits, which now ends at once
}

void AdapterStore::Resolve(const std::string& name_or_digest, Callback done) {
  const std::optional<v1::Adapter> known = catalogue_.Find(name_or_digest);
  const std::string digest = known                             ? known->digest()
                             : IsAdapterDigest(name_or_digest) ? name_or_digest
                                                               : "";
  if (!digest.empty()) {
    if (AdapterLease lease = engine_.FindAdapter(digest)) {
      return done(InUse(name_or_digest, digest, std::move(lease)));
    }
  }
  // What the catalogue's stream has not told may have been registered a moment ago: asked for.
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Callback>& callers = waiting_[name_or_digest];
    callers.push_back(std::move(done));
    if (callers.size() > 1) return;  // it is on its way
    if (loader_->Post([this, name_or_digest] { Load(name_or_digest); })) {
      return;
    }
    done = std::move(callers.back());
    waiting_.erase(name_or_digest);
  }
  done(WithReason(WithRetry(absl::ResourceExhaustedError("too many adapters are being loaded"), 1),
                  "QUEUE_FULL"));
}

void AdapterStore::Load(const std::string& key) {
  const absl::StatusOr<AdapterInUse> result = LoadNow(key);
  std::vector<Callback> callers;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto it = waiting_.find(key);
    callers = std::move(it->second);
    waiting_.erase(it);
  }
  for (Callback& caller : callers) {
    if (!result.ok()) {
      caller(result.status());
    } else {
      caller(InUse(result->name, result->digest, result->lease));
    }
  }
}

absl::StatusOr<AdapterInUse> AdapterStore::LoadNow(const std::string& key) {
  std::optional<v1::Adapter> described = catalogue_.Find(key);
  if (!described) {
    absl::StatusOr<v1::Adapter> asked = supplier_->Get(key);
    // A text that cannot be a name is none.
    if (absl::IsInvalidArgument(asked.status())) return Unknown(key);
    if (!asked.ok()) return Seen(asked.status(), key);
    described = *std::move(asked);
  }
  const std::string& digest = described->digest();
  AdapterLease lease = engine_.FindAdapter(digest);
  if (lease == nullptr) {
    absl::StatusOr<AdapterLease> fetched = Fetch(*described);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ++(fetched.ok() ? fetches_ : fetch_errors_);
    }
    if (!fetched.ok()) return Seen(fetched.status(), key);
    lease = *std::move(fetched);
    // Removed meanwhile: this request was first and is answered, no later one.
    if (catalogue_.Gone(digest)) engine_.UnloadAdapter(digest);
  }
  return InUse(key, digest, std::move(lease));
}

absl::StatusOr<AdapterLease> AdapterStore::Fetch(const v1::Adapter& described) {
  const std::string& base = engine_.Model().digest;
  if (described.base_model() != base) {
    return WithReason(
        absl::FailedPreconditionError(Cat("adapter ", described.digest(), " was made for the base ",
                                          ToValidUtf8(TruncateUtf8(described.base_model(), 64)),
                                          ", this model is ", base)),
        "ADAPTER_MISMATCH");
  }
  // In memory the weights take at least a quarter of what they take in the file (8 bits of 32).
  const int64_t budget = engine_.AdapterUse().budget_bytes;
  if (described.bytes() / 4 > budget) {
    return absl::ResourceExhaustedError(Cat("adapter ", described.digest(), " has ",
                                            described.bytes(), " bytes, adapter_bytes are ",
                                            budget));
  }
  ASSIGN_OR_RETURN(AdapterBytes bytes, AdapterBytes::Expect(described));
  RETURN_IF_ERROR(supplier_->Fetch(
      described.digest(), [&bytes](const v1::FetchResponse& piece) { return bytes.Add(piece); }));
  ASSIGN_OR_RETURN(const AdapterFiles files, std::move(bytes).Finish());
  absl::StatusOr<AdapterLease> loaded = engine_.LoadAdapter(described.digest(), files);
  if (absl::IsInvalidArgument(loaded.status())) {
    // What the catalogue took and this engine does not: no argument of the caller's.
    return absl::FailedPreconditionError(
        Cat("adapter ", described.digest(), ": ", Std(loaded.status().message())));
  }
  return loaded;
}

AdapterInUse AdapterStore::InUse(const std::string& key, const std::string& digest,
                                 AdapterLease lease) {
  {
    const std::lock_guard<std::mutex> lock(counts_->mutex);
    ++counts_->running[key];
  }
  std::shared_ptr<void> counted(counts_.get(), [counts = counts_, key](void*) {
    const std::lock_guard<std::mutex> lock(counts->mutex);
    if (--counts->running[key] == 0) counts->running.erase(key);
  });
  return {key, digest, std::move(lease), std::move(counted)};
}

void AdapterStore::Follow() {
  double pause = kFirstPause;
  while (true) {
    catalogue_.StreamBegan();
    bool told = false;
    const absl::Status ended = supplier_->Watch([&](const v1::WatchResponse& change) {
      told = true;
      for (const std::string& digest : catalogue_.Apply(change)) engine_.UnloadAdapter(digest);
    });
    catalogue_.StreamEnded();
    if (told) pause = kFirstPause;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (stopping_) return;
    }
    Pause(pause);
    pause = std::min(2 * pause, kLongestPause);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stopping_) return;
  }
}

void AdapterStore::Pause(double seconds) {
  if (options_.pause != nullptr) return options_.pause(seconds);
  std::unique_lock<std::mutex> lock(mutex_);
  wake_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return stopping_; });
}

AdapterStoreFigures AdapterStore::Figures() const {
  AdapterStoreFigures figures;
  figures.engine = engine_.AdapterUse();
  figures.current = catalogue_.current();
  figures.age = catalogue_.Age();
  figures.known = static_cast<int64_t>(catalogue_.List().size());
  {
    const std::lock_guard<std::mutex> lock(counts_->mutex);
    for (const auto& [name, count] : counts_->running) figures.running.push_back(name);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [name, callers] : waiting_) {
    // Names that nobody registered are no metric's label.
    if (catalogue_.Find(name)) figures.waiting.push_back(name);
  }
  figures.fetches = fetches_;
  figures.fetch_errors = fetch_errors_;
  return figures;
}

}  // namespace cogumi::services
