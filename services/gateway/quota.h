// Quotas of a tenant: requests and tokens a minute, streams at once.
//
// Token buckets that hold one minute's worth. A request takes one from the request bucket. Tokens
// are not known beforehand: a request is admitted while the token bucket is above zero and pays
// afterwards for what it really used, so the bucket may go below zero and the next request waits
// until it is filled again.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "engine/core/clock.h"
#include "services/gateway/tenants.h"

namespace cogumi::gateway {

// Thread-safe. Lives longer than its leases.
class QuotaManager {
 public:
  // Both are borrowed for the manager's life.
  QuotaManager(const std::map<std::string, Quota>& quotas, const Clock& clock);

  // Holds streams of a tenant; gives them back at its end.
  class Lease {
   public:
    Lease(QuotaManager* manager, std::string tenant, int streams);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    // Pays for tokens used.
    void Charge(int64_t tokens);

   private:
    QuotaManager* const manager_;
    const std::string tenant_;
    const int streams_;
  };

  // Admits a request of `streams` streams. RESOURCE_EXHAUSTED with RetryInfo and a reason:
  // REQUEST_QUOTA, TOKEN_QUOTA or STREAM_QUOTA; nothing is taken then.
  absl::StatusOr<std::unique_ptr<Lease>> Admit(const std::string& tenant, int streams);

 private:
  struct State {
    Quota quota;
    double requests = 0;  // what the buckets hold now
    double tokens = 0;
    double refilled = 0;  // Clock::Now() of that
    int64_t streams = 0;
  };

  void Release(const std::string& tenant, int streams);
  void Charge(const std::string& tenant, int64_t tokens);
  // With the lock held.
  void Refill(State& state) const;

  const Clock& clock_;
  std::mutex mutex_;
  std::map<std::string, State> states_;  // fixed keys
};

}  // namespace cogumi::gateway
