// Which models the decoder serves, cached: names are checked and listed without a call per request.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cogumi/v1/decoder.pb.h"
#include "engine/core/clock.h"
#include "services/common/request_context.h"
#include "services/gateway/backends.h"

namespace cogumi::gateway {

using ModelSnapshot = std::shared_ptr<const cogumi::v1::ModelInfoResponse>;

// Thread-safe. Borrows its arguments; waits at its end for a call that runs.
class ModelCatalogue {
 public:
  using Callback = std::function<void(absl::StatusOr<ModelSnapshot>)>;

  ModelCatalogue(Backends& backends, const Clock& clock);
  ~ModelCatalogue();
  ModelCatalogue(const ModelCatalogue&) = delete;
  ModelCatalogue& operator=(const ModelCatalogue&) = delete;

  // Answers at once from the cache (a copy older than half a minute is renewed in the background),
  // or asks the decoder, for at most five seconds. A copy from before the decoder's connection
  // broke is not used: another model may be served since.
  void Get(const Callback& done);
  // Asks the decoder, and answers from the cache only when that fails: for lists, which show what
  // came a moment ago.
  void GetFresh(const Callback& done);
  // The last copy, or null.
  ModelSnapshot Peek() const;
  // A receipt shows what really answered: another digest makes the copy stale.
  void Observe(const cogumi::v1::Receipt& receipt);

 private:
  // Under the lock: whether the caller must Ask.
  bool StartAsking(uint64_t generation);
  void Ask();
  void Answered(absl::StatusOr<cogumi::v1::ModelInfoResponse> response);

  Backends& backends_;
  const Clock& clock_;
  mutable std::mutex mutex_;
  std::condition_variable idle_;
  bool asking_ = false;  // an answer is on its way; whoever waits gets it
  int calls_ = 0;        // calls whose callback has not returned
  bool stale_ = true;
  bool lost_ = false;  // the connection broke since the copy was made
  double fetched_ = 0;
  uint64_t generation_ = 0;  // of the decoder when it was asked last
  ModelSnapshot snapshot_;
  std::vector<Callback> waiting_;
};

// The adapter that a model's name asks for: "" for the default (empty) name and the base's own,
// "x" for "BASE:x", which the decoder then knows or not. NOT_FOUND (reason MODEL_NOT_FOUND).
absl::StatusOr<std::string> AdapterOfModel(const std::string& name,
                                           const cogumi::v1::ModelInfoResponse& info);

absl::Status ModelNotFound(const std::string& name, const cogumi::v1::ModelInfoResponse& info);

// What is served: the base, then "BASE:ADAPTER" for each adapter.
std::vector<cogumi::v1::ModelDescription> ServedModels(const cogumi::v1::ModelInfoResponse& info);

// "fp_" and 12 hexadecimal digits that change when the model, its adapter or the arithmetic does.
std::string SystemFingerprint(const std::string& model_digest, const std::string& kernel_digest,
                              const std::string& adapter_digest = "");

}  // namespace cogumi::gateway
