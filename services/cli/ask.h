// What `run`, `chat` and `check` share: sampling options, a cluster to ask, an answer as JSON.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/cli/client.h"
#include "services/cli/cluster.h"
#include "services/cli/json.h"
#include "services/common/config.h"

namespace cogumi::cli {

// Options that become SamplingParams. Greedy unless told otherwise.
class SamplingFlags {
 public:
  void Declare(services::OptionSet& options);
  // INVALID_ARGUMENT for a seed that is no number.
  absl::StatusOr<SamplingParams> Get() const;

 private:
  int32_t max_tokens_ = 0;
  double temperature_ = 0;
  int32_t top_k_ = 0;
  double top_p_ = 1;
  double min_p_ = 0;
  double repetition_penalty_ = 1;
  std::string seed_;
  std::vector<std::string> stop_;
  bool ignore_eos_ = false;
};

// A running cluster that serves the model, or a private one that ends with this object.
class Connection {
 public:
  enum class Sessions { kTemporary, kKept };
  // `model` is a listed name, a GGUF path, or "" for the default. A running cluster of another
  // build is left alone. Kept sessions are in the user's store also when the cluster is private.
  static absl::StatusOr<std::unique_ptr<Connection>> Open(const std::string& model,
                                                          Sessions sessions);
  // Always a private cluster.
  static absl::StatusOr<std::unique_ptr<Connection>> OpenPrivate(const std::string& model);

  GatewayClient& gateway() { return *gateway_; }
  const ClusterRecord& record() const { return own_ ? own_->record() : record_; }
  // False when the cluster was there already and stays.
  bool started_here() const { return own_ != nullptr; }

 private:
  Connection() = default;
  absl::Status Start(const std::string& model_path, Sessions sessions);
  absl::Status Connect();

  std::unique_ptr<Cluster> own_;
  ClusterRecord record_;
  std::unique_ptr<GatewayClient> gateway_;
};

// {text, token_ids, prompt_token_ids, finish_reason, usage, timings, receipt, request_id}
JsonObject ToJson(const Answer& answer);

}  // namespace cogumi::cli
