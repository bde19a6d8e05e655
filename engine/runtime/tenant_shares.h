// Fairness by tokens between the tenants of one priority: who has been given least comes next.
//
// An account counts the tokens that were computed for a tenant at a priority: its prompts when they
// are admitted, its answers as they grow. A tenant that comes with nothing to its name starts level
// with the least served of those present, so that neither absence nor novelty is worth anything;
// one that comes back owing more keeps its account. Accounts that say nothing any more are dropped.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

namespace cogumi {

class TenantShares {
 public:
  struct Account {
    uint64_t served = 0;       // what decides who comes next
    uint64_t prompt_rows = 0;  // computed: who gets the odd row of a chunk
    int32_t requests = 0;      // in the queue or running
  };

  // A request comes. The account stays where it is until the last request has left.
  Account* Enter(int32_t priority, const std::string& tenant);
  void Leave(int32_t priority, const std::string& tenant);

  size_t size() const { return accounts_.size(); }

 private:
  using Key = std::pair<int32_t, std::string>;

  std::map<Key, Account> accounts_;
};

}  // namespace cogumi
