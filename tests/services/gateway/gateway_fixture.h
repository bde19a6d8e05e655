// A gateway between doubles, with real sockets in front.
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cogumi/v1/gateway.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "gtest/gtest.h"
#include "services/common/logging.h"
#include "services/common/metrics.h"
#include "services/gateway/gateway.h"
#include "tests/services/gateway/fake_services.h"
#include "tests/services/gateway/temp_folder.h"

namespace cogumi::gateway {

namespace v1 = cogumi::v1;

inline constexpr char kTokens[] = R"(
tokens:
  - {token: acme-secret-0123456789, tenant: acme}
  - {token: other-secret-0123456789, tenant: other}
  - {token: operator-secret-0123456789, tenant: ops, roles: [operator]}
  - {token: limited-secret-0123456789, tenant: limited}
tenants:
  limited: {requests_per_minute: 1}
)";

struct Answer {
  std::string text;
  std::vector<v1::ChatResponse> messages;
  grpc::Status status;
  const v1::ChatComplete& complete() const { return messages.back().complete(); }
};

class GatewayFixture : public ::testing::Test {
 protected:
  GatewayFixture() {
    config_.server.address = "127.0.0.1:0";
    config_.server.log_requests = false;
    config_.http = "127.0.0.1:0";
    config_.modifiers = "";
    config_.sessions = folder_.File("sessions.db");
  }

  void Start() {
    auto gateway = StartGateway(
        config_,
        {.decoder = backend_.Channel(), .router = backend_.Channel(), .modifiers = nullptr});
    ASSERT_TRUE(gateway.ok()) << gateway.status();
    gateway_ = *std::move(gateway);
    stub_ = v1::GatewayService::NewStub(gateway_->host().InProcessChannel());
    ASSERT_TRUE(test::Eventually([this] {
      return Metrics().find("cogumi_gateway_backend_up{service=\"decoder\"} 1") !=
             std::string::npos;
    }));
  }
  void StartWithTokens() {
    config_.tokens = folder_.File("tokens.yaml");
    std::ofstream(config_.tokens) << kTokens;
    Start();
  }

  std::string Metrics() { return services::RenderMetrics(*gateway_->host().runtime().metrics); }
  // As grpc.health.v1 says.
  bool Healthy() {
    auto health = grpc::health::v1::Health::NewStub(gateway_->host().InProcessChannel());
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckResponse response;
    return health->Check(&context, {}, &response).ok() &&
           response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
  }

  static void Authorize(grpc::ClientContext& context, const std::string& name) {
    if (!name.empty()) {
      context.AddMetadata("authorization", "Bearer " + name + "-secret-0123456789");
    }
  }
  static v1::ChatRequest Ask(const std::string& question, const std::string& session = "") {
    v1::ChatRequest request;
    request.add_messages()->set_role(v1::ROLE_USER);
    request.mutable_messages(0)->set_content(question);
    request.set_session_id(session);
    return request;
  }
  Answer Chat(const v1::ChatRequest& request, const std::string& who = "") {
    grpc::ClientContext context;
    Authorize(context, who);
    return Chat(&context, request);
  }
  Answer Chat(grpc::ClientContext* context, const v1::ChatRequest& request) {
    Answer answer;
    auto reader = stub_->Chat(context, request);
    v1::ChatResponse response;
    while (reader->Read(&response)) {
      answer.text += response.chunk().text();
      answer.messages.push_back(response);
    }
    answer.status = reader->Finish();
    return answer;
  }
  std::vector<std::string> Turns(const std::string& session, const std::string& who = "") {
    grpc::ClientContext context;
    Authorize(context, who);
    v1::GetSessionRequest request;
    request.set_session_id(session);
    v1::GetSessionResponse response;
    const grpc::Status status = stub_->GetSession(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    std::vector<std::string> users;
    for (const v1::Turn& turn : response.turns()) users.push_back(turn.user());
    return users;
  }
  // What stands in the log about the request that `work` makes and ends.
  std::string LogOf(const std::function<void()>& work) {
    ::testing::internal::CaptureStderr();
    work();
    EXPECT_TRUE(test::Eventually([&] { return gateway_->host().runtime().calls.running() == 0; }));
    services::FlushLog();
    return ::testing::internal::GetCapturedStderr();
  }
  test::FakeDecoder& decoder() { return backend_.decoder; }

  test::TempFolder folder_;
  test::FakeBackendServer backend_;
  GatewayConfig config_;
  std::unique_ptr<Gateway> gateway_;
  std::unique_ptr<v1::GatewayService::Stub> stub_;
};

}  // namespace cogumi::gateway
