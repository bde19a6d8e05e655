// What the handlers of one service share: instruments, the count of running calls, the name.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "engine/core/clock.h"
#include "services/common/logging.h"
#include "services/common/metrics.h"

namespace cogumi::services {

// Counts our own running calls, so that a drain can wait for zero: grpc::Server::Shutdown would
// wait for health Watch streams as well.
class CallTracker {
 public:
  // False once draining: the call must be answered UNAVAILABLE and is not counted.
  bool Enter();
  void Leave();
  // From now on Enter is false.
  void StartDraining();
  bool draining() const;
  int64_t running() const;
  // True when zero was reached within `seconds`.
  bool WaitIdle(double seconds);

 private:
  mutable std::mutex mutex_;
  std::condition_variable idle_;
  int64_t running_ = 0;
  bool draining_ = false;
};

struct ServiceRuntime {
  // `name` is "decoder", "router", ...; a null clock is the real one.
  explicit ServiceRuntime(std::string service_name, const Clock* service_clock = nullptr);

  const std::string name;
  const Clock* const clock;
  const std::shared_ptr<prometheus::Registry> registry;
  const std::shared_ptr<MetricsHub> metrics;  // the registry and what was added
  RpcMetrics rpc;
  CallTracker calls;
  // Set before the first call: whether requests have a line in the log.
  bool log_requests = true;
  void LogRequest(const RequestLogEntry& entry) const;
};

}  // namespace cogumi::services
