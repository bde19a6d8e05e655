#include <fstream>

#include "engine/core/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/common/status.h"
#include "services/gateway/quota.h"
#include "services/gateway/tenants.h"
#include "tests/services/gateway/temp_folder.h"

namespace cogumi::gateway {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kToken[] = "acme-secret-0123456789";
constexpr char kHashed[] = "hashed-secret-0123456789";

std::string File() {
  return std::string("tokens:\n  - token: ") + kToken +
         "\n    tenant: acme\n"
         "  - sha256: " +
         Sha256::Hex(kHashed) +
         "\n    tenant: ops\n    roles: [user, operator]\n"
         "tenants:\n  acme: {requests_per_minute: 60, tokens_per_minute: 600, "
         "concurrent_streams: 2}\n";
}

TEST(TenantsTest, TokensStandForIdentities) {
  const auto directory = TenantDirectory::FromYaml(File(), "test");
  ASSERT_TRUE(directory.ok()) << directory.status();
  EXPECT_FALSE(directory->open());
  auto identity = directory->Identify(std::string("Bearer ") + kToken);
  ASSERT_TRUE(identity.ok());
  EXPECT_EQ(identity->tenant, "acme");
  EXPECT_TRUE(identity->user);
  EXPECT_FALSE(identity->is_operator);
  identity = directory->Identify(std::string("bearer ") + kHashed);
  ASSERT_TRUE(identity.ok());
  EXPECT_EQ(identity->tenant, "ops");
  EXPECT_TRUE(identity->is_operator);
  EXPECT_EQ(directory->quotas().at("acme").tokens_per_minute, 600);
  EXPECT_EQ(directory->quotas().at("ops").tokens_per_minute, 0);
}

TEST(TenantsTest, WhateverElseIsUnauthenticatedAndNotRepeated) {
  const auto directory = TenantDirectory::FromYaml(File(), "test");
  for (const std::string& value :
       {std::string(), std::string("Bearer"), std::string("Bearer "),
        std::string("Basic ") + kToken, std::string(kToken), "Bearer " + Sha256::Hex(kHashed),
        std::string("Bearer ") + kToken + " ", std::string("Bearer acme-secret-012345678"),
        "Bearer " + std::string(100000, 'x')}) {
    const auto identity = directory->Identify(value);
    EXPECT_EQ(identity.status().code(), absl::StatusCode::kUnauthenticated) << value.substr(0, 60);
    EXPECT_THAT(std::string(identity.status().message()), Not(HasSubstr("acme-secret")));
  }
}

TEST(TenantsTest, WithoutAFileEveryoneIsEverybody) {
  const TenantDirectory directory = TenantDirectory::Open();
  const auto identity = directory.Identify("");
  ASSERT_TRUE(identity.ok());
  EXPECT_EQ(identity->tenant, "default");
  EXPECT_TRUE(identity->user && identity->is_operator);
}

TEST(TenantsTest, ErrorsNameTheEntryAndNeverTheToken) {
  const struct {
    std::string yaml;
    std::string want;
  } kCases[] = {
      {"", "tokens"},
      {"tokens: []", "tokens"},
      {"tokens: 5", "tokens"},
      {"tokens: [5]", "tokens[0]"},
      {"tokens: [{tenant: a}]", "tokens[0]"},
      {"tokens: [{token: secret-of-16-bytes, sha256: x, tenant: a}]", "tokens[0]"},
      {"tokens: [{token: short-secret, tenant: a}]", "tokens[0].token"},
      {"tokens: [{token: 'secret with spaces 0123', tenant: a}]", "tokens[0].token"},
      {"tokens: [{sha256: ABCDEF, tenant: a}]", "tokens[0].sha256"},
      {"tokens: [{token: secret-of-16-bytes}]", "tokens[0].tenant"},
      {"tokens: [{token: secret-of-16-bytes, tenant: 'a b'}]", "tokens[0].tenant"},
      {"tokens: [{token: secret-of-16-bytes, tenant: a, roles: [king]}]", "king"},
      {"tokens: [{token: secret-of-16-bytes, tenant: a, roles: []}]", "tokens[0].roles"},
      {"tokens: [{token: secret-of-16-bytes, tenant: a, role: user}]", "tokens[0].role"},
      {"tokens: [{token: secret-of-16-bytes, tenant: a}, "
       "{token: secret-of-16-bytes, tenant: b}]",
       "tokens[1]"},
      {"tokens: [{token: secret-of-16-bytes, tenant: a}]\ntenants: {b: {}}", "tenants.b"},
      {"tokens: [{token: secret-of-16-bytes, tenant: a}]\ntenants: {a: {requests: 1}}",
       "tenants.a.requests"},
      {"tokens: [{token: secret-of-16-bytes, tenant: a}]\n"
       "tenants: {a: {requests_per_minute: -1}}",
       "tenants.a.requests_per_minute"},
      {"tokens: [{token: secret-of-16-bytes, tenant: a}]\ntenants: {a: {tokens_per_minute: x}}",
       "tenants.a.tokens_per_minute"},
      {"token: x", "token"},
      {"tokens: [", "tokens file test"},
  };
  for (const auto& test : kCases) {
    const auto directory = TenantDirectory::FromYaml(test.yaml, "test");
    ASSERT_FALSE(directory.ok()) << test.yaml;
    EXPECT_EQ(directory.status().code(), absl::StatusCode::kInvalidArgument);
    const std::string message(directory.status().message());
    EXPECT_THAT(message, HasSubstr(test.want)) << test.yaml;
    EXPECT_THAT(message, Not(HasSubstr("secret"))) << test.yaml;
  }
}

TEST(TenantsTest, FilesAreReadAndTheExampleIsValid) {
  EXPECT_EQ(TenantDirectory::FromFile("/does/not/exist.yaml").status().code(),
            absl::StatusCode::kNotFound);
  const auto example = TenantDirectory::FromFile("config/tokens.example.yaml");
  ASSERT_TRUE(example.ok()) << example.status();
  EXPECT_EQ(example->Identify("Bearer change-me-0123456789abcdef")->tenant, "acme");
  EXPECT_TRUE(example->Identify("Bearer change-me-too-0123456789")->is_operator);
}

class QuotaTest : public ::testing::Test {
 protected:
  absl::Status Refused(int streams = 1) { return quotas_.Admit("t", streams).status(); }

  FakeClock clock_;
  std::map<std::string, Quota> limits_{
      {"t", {.requests_per_minute = 60, .tokens_per_minute = 600, .concurrent_streams = 4}},
      {"free", {}}};
  QuotaManager quotas_{limits_, clock_};
};

TEST_F(QuotaTest, RequestsComeBackWithTime) {
  for (int i = 0; i < 60; ++i) ASSERT_TRUE(quotas_.Admit("t", 1).ok()) << i;
  const absl::Status refused = Refused();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(services::ReasonOf(refused), "REQUEST_QUOTA");
  EXPECT_NEAR(services::RetryAfterOf(refused).value(), 1.0, 1e-6);
  clock_.Advance(0.5);
  EXPECT_NEAR(services::RetryAfterOf(Refused()).value(), 0.5, 1e-6);
  clock_.Advance(0.5);
  EXPECT_TRUE(quotas_.Admit("t", 1).ok());
  EXPECT_FALSE(quotas_.Admit("t", 1).ok());
  // A long pause fills one minute's worth, not more.
  clock_.Advance(3600);
  for (int i = 0; i < 60; ++i) ASSERT_TRUE(quotas_.Admit("t", 1).ok()) << i;
  EXPECT_FALSE(quotas_.Admit("t", 1).ok());
}

TEST_F(QuotaTest, TokensArePaidAfterwards) {
  quotas_.Admit("t", 1).value()->Charge(599);
  ASSERT_TRUE(quotas_.Admit("t", 1).ok());
  quotas_.Admit("t", 1).value()->Charge(101);
  const absl::Status refused = Refused();
  EXPECT_EQ(services::ReasonOf(refused), "TOKEN_QUOTA");
  // 100 below zero, 10 a second, and one above zero is needed.
  EXPECT_NEAR(services::RetryAfterOf(refused).value(), 10.1, 1e-6);
  clock_.Advance(10.2);
  EXPECT_TRUE(quotas_.Admit("t", 1).ok());
}

TEST_F(QuotaTest, StreamsAreGivenBack) {
  auto three = quotas_.Admit("t", 3).value();
  auto one = quotas_.Admit("t", 1).value();
  const absl::Status refused = Refused();
  EXPECT_EQ(services::ReasonOf(refused), "STREAM_QUOTA");
  EXPECT_TRUE(services::RetryAfterOf(refused).has_value());
  one = nullptr;
  EXPECT_TRUE(quotas_.Admit("t", 1).ok());
  // More than there will ever be: no retry helps.
  EXPECT_EQ(Refused(5).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(QuotaTest, NoLimitIsNoLimit) {
  std::vector<std::unique_ptr<QuotaManager::Lease>> leases;
  for (int i = 0; i < 1000; ++i) {
    auto lease = quotas_.Admit("free", 8);
    ASSERT_TRUE(lease.ok());
    (*lease)->Charge(1000000);
    leases.push_back(*std::move(lease));
  }
  EXPECT_EQ(quotas_.Admit("nobody", 1).status().code(), absl::StatusCode::kPermissionDenied);
}

}  // namespace
}  // namespace cogumi::gateway
