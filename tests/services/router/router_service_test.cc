// The router's three services in process.
#include "services/router/router_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <string>

#include "cogumi/v1/router.grpc.pb.h"
#include "services/common/status.h"
#include "services/router/start.h"

namespace cogumi::services {
namespace {

using testing::HasSubstr;

class RouterTest : public testing::Test {
 protected:
  RouterTest() {
    RouterConfig config;
    config.server.address = "";
    config.server.metrics_address = "";
    config.server.log_requests = false;
    auto service = StartRouter(config);
    EXPECT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
    channel_ = service_->host().InProcessChannel();
  }

  static void Add(google::protobuf::RepeatedPtrField<v1::Message>* messages, v1::Role role,
                  const std::string& content) {
    v1::Message* message = messages->Add();
    message->set_role(role);
    message->set_content(content);
  }

  absl::Status Route(const v1::RouteRequest& request, v1::RouteResponse* response) {
    grpc::ClientContext context;
    return FromGrpc(v1::RouterService::NewStub(channel_)->Route(&context, request, response));
  }
  absl::Status Detect(const v1::DetectRequest& request, v1::DetectResponse* response) {
    grpc::ClientContext context;
    return FromGrpc(
        v1::EscalationService::NewStub(channel_)->Detect(&context, request, response));
  }
  absl::Status Assess(const v1::AssessRequest& request, v1::AssessResponse* response) {
    grpc::ClientContext context;
    return FromGrpc(
        v1::ConfidenceService::NewStub(channel_)->Assess(&context, request, response));
  }
  std::string Metrics() { return RenderMetrics(*service_->host().runtime().metrics); }

  std::unique_ptr<RunningService> service_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(RouterTest, RoutesTheLastQuestion) {
  v1::RouteRequest request;
  Add(request.mutable_messages(), v1::ROLE_USER, "Tell me about Rome.");
  Add(request.mutable_messages(), v1::ROLE_ASSISTANT, "A city.");
  Add(request.mutable_messages(), v1::ROLE_USER, "Debug my Python function, it has a bug");
  v1::RouteResponse response;
  ASSERT_TRUE(Route(request, &response).ok());
  EXPECT_EQ(response.domain(), v1::DOMAIN_CODE);
  EXPECT_FALSE(response.abstained());
  EXPECT_EQ(response.tier(), "base");
  EXPECT_EQ(response.model(), "lexicon-1");
  EXPECT_FALSE(response.calibrated());
  EXPECT_EQ(response.scores_size(), 4);
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_routing_decisions_total{abstained=\"false\","
                                   "domain=\"code\",tier=\"base\"} 1"));
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_router_latency_seconds_count{call=\"Route\"} 1"));
}

TEST_F(RouterTest, BadMessagesNameTheirField) {
  v1::RouteResponse response;
  v1::RouteRequest request;
  EXPECT_EQ(FieldOf(Route(request, &response)), "messages");
  Add(request.mutable_messages(), v1::ROLE_UNSPECIFIED, "x");
  EXPECT_EQ(FieldOf(Route(request, &response)), "messages[0].role");
  request.mutable_messages(0)->set_role(static_cast<v1::Role>(9));
  EXPECT_EQ(FieldOf(Route(request, &response)), "messages[0].role");
  request.mutable_messages(0)->set_role(v1::ROLE_SYSTEM);
  EXPECT_EQ(FieldOf(Route(request, &response)), "messages");
  v1::RouteRequest many;
  for (int i = 0; i < 1025; ++i) Add(many.mutable_messages(), v1::ROLE_USER, "x");
  EXPECT_EQ(FieldOf(Route(many, &response)), "messages");
  many.mutable_messages()->DeleteSubrange(0, 1);
  EXPECT_TRUE(Route(many, &response).ok());
  v1::RouteRequest huge;
  Add(huge.mutable_messages(), v1::ROLE_USER, std::string((4 << 20) + 1, 'x'));
  EXPECT_EQ(FieldOf(Route(huge, &response)), "messages");
}

TEST_F(RouterTest, DetectsComplaints) {
  v1::DetectRequest request;
  Add(request.mutable_messages(), v1::ROLE_USER, "What is the capital of Australia?");
  Add(request.mutable_messages(), v1::ROLE_ASSISTANT, "Sydney.");
  Add(request.mutable_messages(), v1::ROLE_USER, "That's wrong.");
  v1::DetectResponse response;
  ASSERT_TRUE(Detect(request, &response).ok());
  EXPECT_EQ(response.feedback(), v1::FEEDBACK_FRUSTRATED);
  EXPECT_TRUE(response.escalate());
  EXPECT_EQ(response.model(), "lexicon-1");
  EXPECT_FALSE(response.calibrated());
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_escalations_total{reason=\"frustrated\"} 1"));
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_feedback_total{feedback=\"frustrated\"} 1"));

  // Control: without the complaint nothing escalates.
  request.mutable_messages(2)->set_content("And of Austria?");
  ASSERT_TRUE(Detect(request, &response).ok());
  EXPECT_EQ(response.feedback(), v1::FEEDBACK_NONE);
  EXPECT_FALSE(response.escalate());

  request.mutable_messages(2)->set_role(v1::ROLE_ASSISTANT);
  EXPECT_EQ(FieldOf(Detect(request, &response)), "messages[2].role");
}

TEST_F(RouterTest, AssessesFeatures) {
  v1::AssessRequest request;
  request.add_logprobs(-0.1f);
  request.add_margins(3);
  request.add_entropies(0.2f);
  request.set_domain(v1::DOMAIN_CODE);
  request.set_prompt_tokens(12);
  request.set_finish_reason(v1::FINISH_REASON_STOP);
  v1::AssessResponse response;
  ASSERT_TRUE(Assess(request, &response).ok());
  EXPECT_GT(response.confidence(), 0.5f);
  EXPECT_LE(response.confidence(), 1.0f);
  EXPECT_EQ(response.model(), "lexicon-1");
  EXPECT_FALSE(response.calibrated());
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_confidence_ratio_count"));
}

TEST_F(RouterTest, BadFeaturesNameTheirField) {
  v1::AssessResponse response;
  v1::AssessRequest request;
  EXPECT_EQ(FieldOf(Assess(request, &response)), "logprobs");
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const float value : {kNan, kInf, -kInf, 1.0f}) {
    v1::AssessRequest bad;
    bad.add_logprobs(value);
    EXPECT_EQ(FieldOf(Assess(bad, &response)), "logprobs") << value;
  }
  request.add_logprobs(-1);
  request.add_margins(1);
  request.add_margins(1);
  EXPECT_EQ(FieldOf(Assess(request, &response)), "margins");
  request.clear_margins();
  request.add_entropies(-5);
  EXPECT_EQ(FieldOf(Assess(request, &response)), "entropies");
  request.clear_entropies();
  for (const int32_t tokens : {-1, std::numeric_limits<int32_t>::min(),
                               std::numeric_limits<int32_t>::max()}) {
    request.set_prompt_tokens(tokens);
    EXPECT_EQ(FieldOf(Assess(request, &response)), "prompt_tokens") << tokens;
  }
  request.set_prompt_tokens(0);
  request.set_domain(static_cast<v1::Domain>(99));
  EXPECT_EQ(FieldOf(Assess(request, &response)), "domain");
  request.set_domain(v1::DOMAIN_UNSPECIFIED);
  request.set_finish_reason(static_cast<v1::FinishReason>(99));
  EXPECT_EQ(FieldOf(Assess(request, &response)), "finish_reason");
  request.set_finish_reason(v1::FINISH_REASON_UNSPECIFIED);
  EXPECT_TRUE(Assess(request, &response).ok());
}

TEST_F(RouterTest, AddressesOfOtherMachinesNeedTheFlag) {
  RouterConfig config;
  config.server.address = "0.0.0.0:0";
  config.server.metrics_address = "";
  EXPECT_TRUE(absl::IsInvalidArgument(StartRouter(config).status()));
  config.server.allow_remote = true;
  EXPECT_TRUE(StartRouter(config).ok());
}

}  // namespace
}  // namespace cogumi::services
