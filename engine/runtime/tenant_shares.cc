#include "engine/runtime/tenant_shares.h"

#include <algorithm>
#include <iterator>
#include <limits>

namespace cogumi {
namespace {

constexpr uint64_t kNobody = std::numeric_limits<uint64_t>::max();

}  // namespace

TenantShares::Account* TenantShares::Enter(int32_t priority, const std::string& tenant) {
  uint64_t least = kNobody;
  const auto begin = accounts_.lower_bound({priority, std::string()});
  for (auto it = begin; it != accounts_.end() && it->first.first == priority; ++it) {
    if (it->second.requests > 0) least = std::min(least, it->second.served);
  }
  Account& account = accounts_[{priority, tenant}];
  if (account.requests == 0 && least != kNobody) account.served = std::max(account.served, least);
  ++account.requests;
  return &account;
}

void TenantShares::Leave(int32_t priority, const std::string& tenant) {
  --accounts_.at({priority, tenant}).requests;
  // The level that a newcomer would start at: below it, an absent tenant's account says nothing.
  uint64_t least = kNobody;
  const auto begin = accounts_.lower_bound({priority, std::string()});
  auto end = begin;
  for (; end != accounts_.end() && end->first.first == priority; ++end) {
    if (end->second.requests > 0) least = std::min(least, end->second.served);
  }
  for (auto it = begin; it != end;) {
    const bool idle = it->second.requests == 0;
    const bool silent = idle && (least == kNobody || it->second.served <= least);
    it = silent ? accounts_.erase(it) : std::next(it);
  }
}

}  // namespace cogumi
