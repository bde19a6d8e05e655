#include "services/gateway/quota.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "services/common/status.h"

namespace cogumi::gateway {
namespace {

constexpr double kMinute = 60;
// How long a stream lasts is not known; a second is a fair time to ask again.
constexpr double kStreamRetrySeconds = 1;

absl::Status Refusal(const char* reason, const std::string& message, double retry_seconds) {
  return services::WithRetry(services::WithReason(absl::ResourceExhaustedError(message), reason),
                             retry_seconds);
}

double PerSecond(int64_t per_minute) { return static_cast<double>(per_minute) / kMinute; }

}  // namespace

QuotaManager::QuotaManager(const std::map<std::string, Quota>& quotas, const Clock& clock)
    : clock_(clock) {
  for (const auto& [tenant, quota] : quotas) {
    states_[tenant] = {.quota = quota,
                       .requests = static_cast<double>(quota.requests_per_minute),
                       .tokens = static_cast<double>(quota.tokens_per_minute),
                       .refilled = clock.Now()};
  }
}

QuotaManager::Lease::Lease(QuotaManager* manager, std::string tenant, int streams)
    : manager_(manager), tenant_(std::move(tenant)), streams_(streams) {}

QuotaManager::Lease::~Lease() { manager_->Release(tenant_, streams_); }

void QuotaManager::Lease::Charge(int64_t tokens) { manager_->Charge(tenant_, tokens); }

void QuotaManager::Refill(State& state) const {
  const double now = clock_.Now();
  const double elapsed = std::max(0.0, now - state.refilled);
  state.refilled = now;
  state.requests = std::min(static_cast<double>(state.quota.requests_per_minute),
                            state.requests + elapsed * PerSecond(state.quota.requests_per_minute));
  state.tokens = std::min(static_cast<double>(state.quota.tokens_per_minute),
                          state.tokens + elapsed * PerSecond(state.quota.tokens_per_minute));
}

absl::StatusOr<std::unique_ptr<QuotaManager::Lease>> QuotaManager::Admit(const std::string& tenant,
                                                                         int streams) {
  std::lock_guard lock(mutex_);
  const auto it = states_.find(tenant);
  if (it == states_.end()) {
    return absl::PermissionDeniedError(absl::StrCat("tenant ", tenant, " is not known"));
  }
  State& state = it->second;
  const Quota& quota = state.quota;
  Refill(state);
  if (quota.concurrent_streams > 0 && streams > quota.concurrent_streams) {
    return services::WithReason(
        absl::InvalidArgumentError(absl::StrCat("the request needs ", streams,
                                                " streams at once, the tenant's limit is ",
                                                quota.concurrent_streams)),
        "STREAM_QUOTA");
  }
  if (quota.concurrent_streams > 0 && state.streams + streams > quota.concurrent_streams) {
    return Refusal("STREAM_QUOTA",
                   absl::StrCat("all ", quota.concurrent_streams,
                                " concurrent streams of the tenant are in use"),
                   kStreamRetrySeconds);
  }
  if (quota.requests_per_minute > 0 && state.requests < 1) {
    return Refusal(
        "REQUEST_QUOTA",
        absl::StrCat("the limit of ", quota.requests_per_minute, " requests a minute is reached"),
        (1 - state.requests) / PerSecond(quota.requests_per_minute));
  }
  if (quota.tokens_per_minute > 0 && state.tokens <= 0) {
    return Refusal(
        "TOKEN_QUOTA",
        absl::StrCat("the limit of ", quota.tokens_per_minute, " tokens a minute is reached"),
        (1 - state.tokens) / PerSecond(quota.tokens_per_minute));
  }
  state.requests -= 1;
  state.streams += streams;
  return std::make_unique<Lease>(this, tenant, streams);
}

void QuotaManager::Release(const std::string& tenant, int streams) {
  std::lock_guard lock(mutex_);
  states_.at(tenant).streams -= streams;
}

void QuotaManager::Charge(const std::string& tenant, int64_t tokens) {
  std::lock_guard lock(mutex_);
  State& state = states_.at(tenant);
  Refill(state);
  state.tokens -= static_cast<double>(tokens);
}

}  // namespace cogumi::gateway
