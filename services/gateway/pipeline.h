// The way of one request, the same for gRPC and HTTP:
//   role -> quota -> checks -> session lock -> model name -> stored turns -> Route and Detect
//   -> Generate (one stream a choice) -> commit of the turn -> done -> Assess (for operators).
//
// Nothing blocks: each step is a task in the call's serial queue, posted by whichever thread
// brought the answer of the step before. No gRPC and no HTTP in here.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "cogumi/v1/gateway.pb.h"
#include "engine/core/clock.h"
#include "services/common/request_context.h"
#include "services/gateway/backends.h"
#include "services/gateway/explain_log.h"
#include "services/gateway/metrics.h"
#include "services/gateway/model_catalogue.h"
#include "services/gateway/quota.h"
#include "services/gateway/session_store.h"
#include "services/gateway/tenants.h"
#include "services/gateway/validate.h"

namespace cogumi::gateway {

inline constexpr int kMaxChoices = 8;

// Exactly one of `chat` and `prompts` is set.
struct CallRequest {
  services::RequestContext context;  // the tenant in it is the identity's
  Identity identity;
  double started = 0;  // Clock::Now() at arrival
  std::optional<cogumi::v1::ChatRequest> chat;
  std::vector<cogumi::v1::CompleteRequest> prompts;
  // Answers to each prompt; answer i of prompt p is choice p * n + i, its seed is seed + i. At most
  // kMaxChoices choices in all, and one with a session.
  int n = 1;
};

struct CallOutcome {
  // Prompt and cached tokens count once per prompt, completion tokens of all choices together.
  cogumi::v1::Usage usage;
  cogumi::v1::Timings timings;      // of choice 0
  double first_token_seconds = -1;  // from the arrival; negative when there was none
};

// Where a call's answer goes. Calls come one at a time from any thread, and must not block.
class CallObserver {
 public:
  virtual ~CallObserver() = default;
  // Text and ids, and log-probabilities when asked for: features are gone already.
  virtual void OnChunk(int choice, cogumi::v1::GenerateChunk chunk) = 0;
  // The choice is complete; with a session, after its turn is committed.
  virtual void OnChoiceDone(int choice, const cogumi::v1::GenerateComplete& complete) = 0;
  // Exactly once, last.
  virtual void OnDone(const absl::Status& status, const CallOutcome& outcome) = 0;
};

// A call on its way. Thread-safe.
class PipelineCall {
 public:
  virtual ~PipelineCall() = default;
  // Once.
  virtual void Start() = 0;
  // Stops the work; OnDone says `why`, unless the call had ended or its turn was being committed.
  virtual void Cancel(absl::Status why) = 0;
};

struct PipelineOptions {
  RequestLimits limits;
  double max_request_seconds = 600;  // the deadline of requests without an earlier one
  double router_seconds = 0.05;      // for Route and Detect together
  double assess_seconds = 1;
};

// What the pipeline works with; all of it outlives the pipeline.
struct PipelineParts {
  Backends* backends = nullptr;
  SessionStore* sessions = nullptr;
  QuotaManager* quotas = nullptr;
  ModelCatalogue* models = nullptr;
  ExplainLog* explain = nullptr;
  GatewayMetrics* metrics = nullptr;
  const Clock* clock = nullptr;
};

// ABORTED, reason SESSION_BUSY.
absl::Status SessionBusyError();

class Pipeline {
 public:
  Pipeline(const PipelineOptions& options, const PipelineParts& parts);
  // Cancels what runs and waits for its end.
  ~Pipeline();
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  std::shared_ptr<PipelineCall> Prepare(CallRequest request,
                                        std::shared_ptr<CallObserver> observer);
  // Calls and assessments that run.
  int running() const;

  // Turns of a session, and what changes it otherwise, go one at a time. False: another one runs;
  // the caller is told SessionBusyError.
  using SessionKey = std::pair<std::string, std::string>;  // tenant, session
  bool LockSession(const SessionKey& key);
  void UnlockSession(const SessionKey& key);

  const PipelineOptions& options() const { return options_; }
  const PipelineParts& parts() const { return parts_; }

 private:
  friend class Call;

  void Enter(PipelineCall* call, std::weak_ptr<PipelineCall> weak);
  // After it the pipeline may be gone.
  void Leave(PipelineCall* call);

  const PipelineOptions options_;
  const PipelineParts parts_;
  mutable std::mutex mutex_;
  std::condition_variable idle_;
  std::map<PipelineCall*, std::weak_ptr<PipelineCall>> calls_;
  int assessments_ = 0;
  std::set<SessionKey> locked_;
};

}  // namespace cogumi::gateway
