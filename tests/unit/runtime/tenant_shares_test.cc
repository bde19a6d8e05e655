#include "engine/runtime/tenant_shares.h"

#include "gtest/gtest.h"

namespace cogumi {
namespace {

TEST(TenantShares, ANewcomerStartsLevelWithTheLeastServed) {
  TenantShares shares;
  TenantShares::Account* a = shares.Enter(0, "a");
  a->served = 500;
  shares.Enter(0, "b")->served = 900;
  EXPECT_EQ(shares.Enter(0, "c")->served, 500u);
  EXPECT_EQ(shares.Enter(1, "c")->served, 0u);  // another priority, another account
  EXPECT_EQ(shares.Enter(0, "a"), a);
  EXPECT_EQ(a->requests, 2);
}

TEST(TenantShares, AbsenceIsWorthNothingAndDebtsStay) {
  TenantShares shares;
  shares.Enter(0, "stays")->served = 100;
  shares.Enter(0, "owes")->served = 700;
  shares.Enter(0, "owed")->served = 20;
  shares.Leave(0, "owes");
  shares.Leave(0, "owed");
  EXPECT_EQ(shares.Enter(0, "owes")->served, 700u);
  EXPECT_EQ(shares.Enter(0, "owed")->served, 100u);
}

TEST(TenantShares, AccountsThatSayNothingAreDropped) {
  TenantShares shares;
  for (int i = 0; i < 1000; ++i) {
    const std::string tenant = "tenant-" + std::to_string(i);
    shares.Enter(i % 3, tenant)->served = 10;
    shares.Leave(i % 3, tenant);
  }
  EXPECT_EQ(shares.size(), 0u);
  TenantShares::Account* present = shares.Enter(0, "present");
  shares.Enter(0, "ahead")->served = 50;
  shares.Leave(0, "ahead");
  EXPECT_EQ(shares.size(), 2u);
  present->served = 60;  // has caught up
  shares.Enter(0, "other");
  shares.Leave(0, "other");
  EXPECT_EQ(shares.size(), 1u);
}

}  // namespace
}  // namespace cogumi
