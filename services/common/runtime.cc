#include "services/common/runtime.h"

#include <chrono>
#include <utility>

namespace cogumi::services {

bool CallTracker::Enter() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (draining_) return false;
  ++running_;
  return true;
}

void CallTracker::Leave() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (--running_ == 0) idle_.notify_all();
}

void CallTracker::StartDraining() {
  std::lock_guard<std::mutex> lock(mutex_);
  draining_ = true;
}

bool CallTracker::draining() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return draining_;
}

int64_t CallTracker::running() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return running_;
}

bool CallTracker::WaitIdle(double seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  return idle_.wait_for(lock, std::chrono::duration<double>(seconds),
                        [this] { return running_ == 0; });
}

ServiceRuntime::ServiceRuntime(std::string service_name, const Clock* service_clock)
    : name(std::move(service_name)),
      clock(service_clock != nullptr ? service_clock : Clock::Real()),
      registry(std::make_shared<prometheus::Registry>()),
      metrics(std::make_shared<MetricsHub>(registry)),
      rpc(*registry, name) {}

void ServiceRuntime::LogRequest(const RequestLogEntry& entry) const {
  if (log_requests) services::LogRequest(entry);
}

}  // namespace cogumi::services
