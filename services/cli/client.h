// Calls to the services. The one part of the command line that includes gRPC.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cogumi/types.h"

namespace cogumi::cli {

// Stops the call that runs in this process when Ctrl-C comes; outside of calls Ctrl-C does what it
// did before. Made on the main thread, one at a time.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  bool interrupted() const;
  // Called once when Ctrl-C has come or comes, on whichever thread; it must not block. null takes
  // it back: after that it is not and will not be running.
  void OnInterrupt(std::function<void()> callback);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A prompt for the gateway: messages through Chat, or raw text through Complete.
struct Question {
  std::vector<Message> messages;
  std::string raw;  // used when there are no messages
  std::string session_id;
  SamplingParams sampling;
  Speculation speculation = Speculation::kDefault;
};

struct Answer {
  std::string text;
  std::vector<TokenId> token_ids;
  std::vector<TokenInfo> logprobs;  // when asked for
  Completion completion;            // prompt_tokens, usage, timings, receipt, finish_reason
  std::string request_id;
};

struct StoredTurn {
  int64_t number = 0;
  std::string user;
  std::string assistant;
  int64_t created_ms = 0;
};

class GatewayClient {
 public:
  // `address` as a ready line says it. COGUMI_TOKEN, when set, is sent as the bearer token.
  explicit GatewayClient(const std::string& address);
  ~GatewayClient();

  // Streams: `on_text` gets each piece as it comes. CANCELLED after Ctrl-C; `answer` then holds
  // what has come.
  absl::Status Ask(const Question& question, const std::function<void(std::string_view)>& on_text,
                   InterruptGuard* interrupt, Answer* answer);
  absl::StatusOr<std::vector<ModelDescription>> ListModels();
  absl::StatusOr<std::vector<StoredTurn>> GetSession(const std::string& id);
  absl::StatusOr<int> EraseSession(const std::string& id);
  // The operator's view of an answered request, as JSON.
  absl::StatusOr<std::string> Explain(const std::string& request_id);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct RouteDecision {
  std::string domain;
  std::string tier;
  std::string model;
  bool calibrated = false;
  bool abstained = false;
  double margin = 0;
  std::vector<std::pair<std::string, double>> scores;
  std::string feedback;
  bool escalate = false;
  std::vector<std::string> reasons;
};
// What the router says about a prompt: Route, and Detect over it.
absl::StatusOr<RouteDecision> AskRouter(const std::string& address, const std::string& prompt);

struct AdapterInfo {
  std::string name, digest, domain, base_model, license, description;
  int32_t rank = 0;
  double alpha = 0;
  int64_t bytes = 0, parameters = 0, registered_ms = 0;
  std::vector<std::string> target_modules;
  bool unchanged = false;  // of Register
};

class ModifiersClient {
 public:
  explicit ModifiersClient(const std::string& address);
  ~ModifiersClient();
  absl::StatusOr<std::vector<AdapterInfo>> List();
  absl::StatusOr<AdapterInfo> Get(const std::string& name);
  absl::StatusOr<AdapterInfo> Register(const std::string& name, const std::string& path);
  absl::StatusOr<AdapterInfo> Remove(const std::string& name);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// OK when the service at `address` answers grpc.health.v1 Check with SERVING within `seconds`.
absl::Status CheckHealth(const std::string& address, double seconds);
// The same, and waits for SERVING as long as that: a gateway serves once it reaches its decoder.
absl::Status AwaitHealth(const std::string& address, double seconds);

}  // namespace cogumi::cli
