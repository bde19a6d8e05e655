// The gateway over gRPC, between doubles of the decoder and the router.
#include <google/protobuf/text_format.h>

#include <thread>

#include "gmock/gmock.h"
#include "tests/services/gateway/gateway_fixture.h"

namespace cogumi::gateway {
namespace {

using test::Eventually;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class GatewayGrpcTest : public GatewayFixture {};

// Golden: exactly what a person gets. Scores, routes and features are nowhere in it.
TEST_F(GatewayGrpcTest, GoldenAnswer) {
  Start();
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "id-1");
  Answer answer = Chat(&context, Ask("hello"));
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "echo: hello");
  // Chunks may be joined on their way; together they are these.
  v1::ChatChunk all;
  for (const v1::ChatResponse& message : answer.messages) all.MergeFrom(message.chunk());
  all.set_text(answer.text);
  std::string shown;
  google::protobuf::TextFormat::PrintToString(all, &shown);
  EXPECT_EQ(shown, "text: \"echo: hello\"\ntoken_ids: 100\ntoken_ids: 101\ntoken_ids: 102\n");
  google::protobuf::TextFormat::PrintToString(answer.complete(), &shown);
  EXPECT_EQ(shown,
            "finish_reason: FINISH_REASON_STOP\n"
            "usage {\n  prompt_tokens: 11\n  completion_tokens: 3\n  cached_tokens: 4\n}\n"
            "timings {\n}\n"
            "receipt {\n  model_digest: \"digest\"\n  kernel_digest: \"kernels\"\n"
            "  kernel_configuration: \"fake\"\n}\n"
            "request_id: \"id-1\"\nprompt_token_ids: 1\n");
  for (const auto& metadata :
       {context.GetServerInitialMetadata(), context.GetServerTrailingMetadata()}) {
    for (const auto& [key, value] : metadata) {
      EXPECT_EQ(std::string(key.data(), key.size()), "x-request-id");
      EXPECT_EQ(std::string(value.data(), value.size()), "id-1");
    }
  }
}

TEST_F(GatewayGrpcTest, LogProbabilitiesOnlyWhenAskedFor) {
  Start();
  v1::ChatRequest request = Ask("x");
  request.mutable_sampling()->set_logprobs(true);
  Answer answer = Chat(request);
  int rows = 0;
  for (const v1::ChatResponse& message : answer.messages) rows += message.chunk().logprobs_size();
  EXPECT_EQ(rows, 3);
}

TEST_F(GatewayGrpcTest, InternalCallsCarryWhoAsks) {
  StartWithTokens();
  grpc::ClientContext context;
  Authorize(context, "acme");
  context.AddMetadata("x-request-id", "id-2");
  context.AddMetadata("cogumi-tenant", "other");  // not for callers to say
  const std::string trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  context.AddMetadata("traceparent", trace);
  const auto deadline = std::chrono::system_clock::now() + std::chrono::seconds(30);
  context.set_deadline(deadline);
  ASSERT_TRUE(Chat(&context, Ask("x")).status.ok());
  auto metadata = decoder().metadata();
  EXPECT_EQ(metadata["cogumi-tenant"], "acme");
  EXPECT_EQ(metadata["x-request-id"], "id-2");
  EXPECT_EQ(metadata["traceparent"], trace);
  EXPECT_EQ(metadata.count("authorization"), 0u);
  EXPECT_LT(std::chrono::abs(decoder().deadline() - deadline), std::chrono::seconds(5));
}

TEST_F(GatewayGrpcTest, CompleteTakesTextAndTokens) {
  Start();
  for (const bool tokens : {false, true}) {
    grpc::ClientContext context;
    v1::CompleteRequest request;
    if (tokens) {
      request.mutable_tokens()->add_ids(5);
      decoder().SetScript({.pieces = {"t"}});
    } else {
      request.set_text("raw");
      request.set_parse_special(true);
    }
    auto reader = stub_->Complete(&context, request);
    v1::CompleteResponse response;
    std::string text;
    while (reader->Read(&response)) text += response.chunk().text();
    ASSERT_TRUE(reader->Finish().ok());
    EXPECT_EQ(text, tokens ? "t" : "echo: raw");
    EXPECT_TRUE(response.has_complete());
    EXPECT_EQ(decoder().last().has_tokens(), tokens);
    EXPECT_EQ(decoder().last().parse_special(), !tokens);
  }
}

TEST_F(GatewayGrpcTest, FiveTurnsAreRememberedAcrossARestart) {
  Start();
  for (int i = 1; i <= 6; ++i) {
    ASSERT_TRUE(Chat(Ask("q" + std::to_string(i), "s")).status.ok());
  }
  EXPECT_THAT(Turns("s"), ElementsAre("q2", "q3", "q4", "q5", "q6"));
  gateway_ = nullptr;
  Start();
  EXPECT_THAT(Turns("s"), ElementsAre("q2", "q3", "q4", "q5", "q6"));
  ASSERT_TRUE(Chat(Ask("q7", "s")).status.ok());
  const v1::Messages prompt = decoder().last().messages();
  ASSERT_EQ(prompt.messages_size(), 11);
  EXPECT_EQ(prompt.messages(0).content(), "q2");
  EXPECT_EQ(prompt.messages(1).content(), "echo: q2");
  EXPECT_EQ(prompt.messages(10).content(), "q7");

  grpc::ClientContext context;
  v1::EraseSessionRequest erase;
  erase.set_session_id("s");
  v1::EraseSessionResponse erased;
  ASSERT_TRUE(stub_->EraseSession(&context, erase, &erased).ok());
  EXPECT_EQ(erased.erased_turns(), 5);
  EXPECT_THAT(Turns("s"), IsEmpty());
}

TEST_F(GatewayGrpcTest, TenantsNeverMix) {
  StartWithTokens();
  ASSERT_TRUE(Chat(Ask("CANARY-A", "s"), "acme").status.ok());
  ASSERT_TRUE(Chat(Ask("CANARY-B", "s"), "other").status.ok());
  EXPECT_THAT(Turns("s", "acme"), ElementsAre("CANARY-A"));
  EXPECT_THAT(Turns("s", "other"), ElementsAre("CANARY-B"));
  EXPECT_THAT(Turns("s", "limited"), IsEmpty());
  ASSERT_TRUE(Chat(Ask("again", "s"), "acme").status.ok());
  EXPECT_THAT(decoder().last().DebugString(), Not(HasSubstr("CANARY-B")));
  EXPECT_THAT(Metrics(), Not(HasSubstr("CANARY")));
}

TEST_F(GatewayGrpcTest, EveryMethodNeedsAToken) {
  StartWithTokens();
  const auto codes = [&](const std::string& authorization) {
    std::vector<grpc::StatusCode> result;
    const auto context = [&] {
      auto made = std::make_unique<grpc::ClientContext>();
      if (!authorization.empty()) made->AddMetadata("authorization", authorization);
      return made;
    };
    auto c = context();
    result.push_back(Chat(c.get(), Ask("x")).status.error_code());
    c = context();
    v1::CompleteRequest complete;
    complete.set_text("x");
    auto reader = stub_->Complete(c.get(), complete);
    v1::CompleteResponse completed;
    while (reader->Read(&completed)) {
    }
    result.push_back(reader->Finish().error_code());
    v1::GetSessionRequest get;
    get.set_session_id("s");
    v1::GetSessionResponse got;
    c = context();
    result.push_back(stub_->GetSession(c.get(), get, &got).error_code());
    v1::EraseSessionRequest erase;
    erase.set_session_id("s");
    v1::EraseSessionResponse erased;
    c = context();
    result.push_back(stub_->EraseSession(c.get(), erase, &erased).error_code());
    v1::ListModelsResponse models;
    c = context();
    result.push_back(stub_->ListModels(c.get(), {}, &models).error_code());
    v1::ExplainRequest explain;
    explain.set_request_id("unheard-of");
    v1::ExplainResponse explained;
    c = context();
    result.push_back(stub_->Explain(c.get(), explain, &explained).error_code());
    return result;
  };
  for (const char* authorization : {"", "Bearer wrong-secret-0123456789", "acme-secret-0123456789",
                                    "Bearer acme-secret-012345678"}) {
    EXPECT_THAT(codes(authorization), ::testing::Each(grpc::StatusCode::UNAUTHENTICATED));
  }
  EXPECT_EQ(decoder().started(), 0);
  using enum grpc::StatusCode;
  EXPECT_THAT(codes("Bearer acme-secret-0123456789"),
              ElementsAre(OK, OK, OK, OK, OK, PERMISSION_DENIED));
  EXPECT_THAT(codes("Bearer operator-secret-0123456789"),
              ElementsAre(PERMISSION_DENIED, PERMISSION_DENIED, PERMISSION_DENIED,
                          PERMISSION_DENIED, OK, NOT_FOUND));
}

TEST_F(GatewayGrpcTest, ExplainTellsOperatorsWhatHappened) {
  StartWithTokens();
  Answer answer = Chat(Ask("x"), "acme");
  ASSERT_TRUE(answer.status.ok());
  v1::ExplainResponse explained;
  // The assessment comes after the answer.
  EXPECT_TRUE(Eventually([&] {
    grpc::ClientContext context;
    Authorize(context, "operator");
    v1::ExplainRequest request;
    request.set_request_id(answer.complete().request_id());
    EXPECT_TRUE(stub_->Explain(&context, request, &explained).ok());
    return explained.has_confidence();
  }));
  EXPECT_EQ(explained.tenant(), "acme");
  EXPECT_EQ(explained.route().domain(), v1::DOMAIN_CODE);
  EXPECT_EQ(explained.confidence().confidence(), 0.8125f);
  EXPECT_EQ(explained.tier(), "base");
  EXPECT_GT(explained.total_seconds(), 0);
}

TEST_F(GatewayGrpcTest, QuotasRefuseWithRetryInfo) {
  StartWithTokens();
  ASSERT_TRUE(Chat(Ask("x"), "limited").status.ok());
  const absl::Status refused = services::FromGrpc(Chat(Ask("x"), "limited").status);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(services::ReasonOf(refused), "REQUEST_QUOTA");
  EXPECT_GT(services::RetryAfterOf(refused).value(), 0);
  EXPECT_TRUE(Chat(Ask("x"), "acme").status.ok());
}

TEST_F(GatewayGrpcTest, ErrorsOfTheDecoderComeThroughWithDetails) {
  Start();
  decoder().SetScript(
      {.pieces = {"a"}, .end = services::FieldError("sampling.top_k", "is larger than 300")});
  Answer answer = Chat(Ask("x"));
  const absl::Status status = services::FromGrpc(answer.status);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(services::FieldOf(status), "sampling.top_k");
  EXPECT_EQ(answer.text, "a");
}

TEST_F(GatewayGrpcTest, CancelReachesTheDecoder) {
  Start();
  decoder().SetScript({.pieces = {"a", "b"}, .hold_after = 1});
  grpc::ClientContext context;
  auto reader = stub_->Chat(&context, Ask("x", "s"));
  v1::ChatResponse response;
  ASSERT_TRUE(reader->Read(&response));
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return decoder().cancelled() == 1; }));
  EXPECT_TRUE(Eventually(
      [&] { return Metrics().find("cogumi_gateway_streams 0\n") != std::string::npos; }));
  EXPECT_THAT(Turns("s"), IsEmpty());
}

TEST_F(GatewayGrpcTest, TheLogKnowsWhatACancelledAnswerCost) {
  config_.server.log_requests = true;
  Start();
  decoder().SetScript({.pieces = {"a", "b"}, .hold_after = 1});
  // Either may end first, the caller's stream or the decoder's: each is tried often.
  for (int round = 0; round < 20; ++round) {
    const std::string log = LogOf([&] {
      grpc::ClientContext context;
      auto reader = stub_->Chat(&context, Ask("x"));
      v1::ChatResponse response;
      ASSERT_TRUE(reader->Read(&response));
      context.TryCancel();
      EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
    });
    EXPECT_THAT(log, HasSubstr(R"("status":"CANCELLED")"));
    EXPECT_THAT(log, HasSubstr(R"("prompt_tokens":1,"completion_tokens":1)"));
    EXPECT_EQ(log.find("\"request_id\""), log.rfind("\"request_id\"")) << log;
  }
}

TEST_F(GatewayGrpcTest, AnErasureWaitsForNoTurn) {
  Start();
  decoder().SetScript({.pieces = {"a", "b"}, .hold_after = 1});
  grpc::ClientContext context;
  auto reader = stub_->Chat(&context, Ask("x", "s"));
  v1::ChatResponse response;
  ASSERT_TRUE(reader->Read(&response));
  const auto erase = [this] {
    grpc::ClientContext erasing;
    v1::EraseSessionRequest request;
    request.set_session_id("s");
    v1::EraseSessionResponse erased;
    const grpc::Status status = stub_->EraseSession(&erasing, request, &erased);
    return status.ok() ? absl::StatusOr<int>(erased.erased_turns()) : services::FromGrpc(status);
  };
  // Otherwise the running turn would come back after the erasure.
  EXPECT_EQ(services::ReasonOf(erase().status()), "SESSION_BUSY");
  decoder().Release();
  while (reader->Read(&response)) {
  }
  ASSERT_TRUE(reader->Finish().ok());
  const auto erased = erase();
  ASSERT_TRUE(erased.ok()) << erased.status();
  EXPECT_EQ(*erased, 1);
  EXPECT_THAT(Turns("s"), IsEmpty());
  EXPECT_TRUE(Chat(Ask("x", "s")).status.ok());  // and it is unlocked again
}

TEST_F(GatewayGrpcTest, MetricsForOtherMachinesNeedAWord) {
  config_.tokens = folder_.File("tokens.yaml");
  std::ofstream(config_.tokens) << kTokens;
  config_.server.metrics_address = "0.0.0.0:0";
  const auto refused = StartGateway(
      config_, {.decoder = backend_.Channel(), .router = nullptr, .modifiers = nullptr});
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("metrics: 0.0.0.0:0"));
  config_.server.allow_remote = true;
  Start();
}

TEST_F(GatewayGrpcTest, DeadlineEndsTheWork) {
  Start();
  decoder().SetScript({.pieces = {"a", "b"}, .hold_after = 1});
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  EXPECT_EQ(Chat(&context, Ask("x")).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([&] { return decoder().cancelled() == 1; }));
}

TEST_F(GatewayGrpcTest, TheServersDeadlineCountsToo) {
  config_.max_request_seconds = 1;
  Start();
  decoder().SetScript({.pieces = {"a", "b"}, .hold_after = 1});
  EXPECT_EQ(Chat(Ask("x")).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(GatewayGrpcTest, ASlowReaderIsCutOff) {
  Start();
  decoder().SetScript({.pieces = {std::string(4096, 'x')}, .endless = true});
  // Over TCP, with its windows.
  auto slow = v1::GatewayService::NewStub(
      grpc::CreateChannel(gateway_->host().address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  auto reader = slow->Chat(&context, Ask("x"));
  v1::ChatResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_TRUE(Eventually([&] { return decoder().cancelled() == 1; }));
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_gateway_slow_readers_total 1"));
}

TEST_F(GatewayGrpcTest, AHangingRouterDelaysAndDoesNotStop) {
  Start();
  backend_.router.Hang();
  Answer answer = Chat(Ask("x"));
  EXPECT_TRUE(answer.status.ok());
  grpc::ClientContext context;
  v1::ExplainRequest request;
  request.set_request_id(answer.complete().request_id());
  v1::ExplainResponse explained;
  ASSERT_TRUE(stub_->Explain(&context, request, &explained).ok());
  EXPECT_THAT(explained.notes(0), HasSubstr("router unavailable"));
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_gateway_router_degraded_total"));
}

TEST_F(GatewayGrpcTest, ADrainFinishesWhatRuns) {
  Start();
  decoder().SetScript({.pieces = {"a", "b"}, .hold_after = 1});
  grpc::ClientContext context;
  auto reader = stub_->Chat(&context, Ask("x", "s"));
  v1::ChatResponse response;
  ASSERT_TRUE(reader->Read(&response));
  gateway_->host().StartDraining();
  gateway_->OnDrain();
  EXPECT_EQ(Chat(Ask("y")).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  decoder().Release();
  std::string text = response.chunk().text();
  while (reader->Read(&response)) text += response.chunk().text();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text, "ab");
  EXPECT_TRUE(response.has_complete());
  EXPECT_TRUE(gateway_->host().Drain(20).ok());
}

TEST_F(GatewayGrpcTest, BadRequestsAreRefusedBeforeTheDecoder) {
  Start();
  v1::ChatRequest request = Ask("x");
  request.mutable_sampling()->set_temperature(-1);
  EXPECT_EQ(services::FieldOf(services::FromGrpc(Chat(request).status)), "sampling.temperature");
  request = Ask("x");
  request.set_adapter(std::string(65, 'a'));
  EXPECT_EQ(services::FieldOf(services::FromGrpc(Chat(request).status)), "adapter");
  request = Ask("x");
  request.set_model("tiny:poet");
  request.set_adapter("coder");
  EXPECT_EQ(services::FieldOf(services::FromGrpc(Chat(request).status)), "adapter");
  request = Ask("x");
  request.set_model("gpt-99");
  EXPECT_EQ(Chat(request).status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Chat(Ask("x", "bad session")).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(decoder().started(), 0);
}

TEST_F(GatewayGrpcTest, OpenMeansLoopbackOnly) {
  for (const char* address : {"0.0.0.0:0", "[::]:0", "10.0.0.1:0"}) {
    config_.server.address = address;
    EXPECT_EQ(StartGateway(config_,
                           {.decoder = backend_.Channel(), .router = nullptr, .modifiers = nullptr})
                  .status()
                  .code(),
              absl::StatusCode::kInvalidArgument)
        << address;
    config_.server.address = "127.0.0.1:0";
    config_.http = address;
    EXPECT_FALSE(
        StartGateway(config_,
                     {.decoder = backend_.Channel(), .router = nullptr, .modifiers = nullptr})
            .ok());
    config_.http = "127.0.0.1:0";
  }
  config_.server.address = "0.0.0.0:0";
  config_.http = "0.0.0.0:0";
  StartWithTokens();
  EXPECT_TRUE(Chat(Ask("x"), "acme").status.ok());
}

TEST_F(GatewayGrpcTest, ManyStreamsAtOnceEachGetTheirOwn) {
  Start();
  constexpr int kStreams = 32;
  std::vector<std::thread> threads;
  std::vector<std::string> texts(kStreams);
  for (int i = 0; i < kStreams; ++i) {
    threads.emplace_back([this, i, &texts] {
      for (int round = 0; round < 3; ++round) {
        texts[static_cast<size_t>(i)] =
            Chat(Ask("question " + std::to_string(i), "s" + std::to_string(i))).text;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < kStreams; ++i) {
    EXPECT_EQ(texts[static_cast<size_t>(i)], "echo: question " + std::to_string(i));
    EXPECT_EQ(Turns("s" + std::to_string(i)).size(), 3u);
  }
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_session_commits_total 96"));
}

}  // namespace
}  // namespace cogumi::gateway
