// DecoderService in process over the engine's double.
#include "services/decoder/decoder_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cogumi/v1/decoder.grpc.pb.h"
#include "engine/core/clock.h"
#include "services/common/server.h"
#include "services/common/status.h"
#include "services/common/text.h"
#include "services/decoder/adapter_store.h"
#include "services/decoder/convert.h"
#include "tests/services/support/fake_engine.h"

namespace cogumi::services {
namespace {

using test::FakeEngine;
using test::FakeEngineOptions;
using testing::ElementsAre;
using testing::HasSubstr;

bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return condition();
}

struct Answer {
  std::string text;
  std::vector<v1::GenerateChunk> chunks;
  int completes = 0;
  v1::GenerateComplete complete;
  absl::Status status;
};

class DecoderTest : public testing::Test {
 protected:
  void Start(FakeEngineOptions options = {}, const std::string& address = "") {
    engine_ = std::make_unique<FakeEngine>(std::move(options));
    service_ = DecoderService::Create(runtime_, *engine_, {4, 8}, nullptr);
    ServerOptions server;
    server.address = address;
    server.log_requests = false;
    server.max_streams = 4096;
    auto host = ServiceHost::Create(
        runtime_, server, {{service_->grpc_service(), DecoderService::full_name()}},
        [this] { return engine_->Healthy() ? absl::OkStatus() : absl::UnavailableError("slow"); });
    ASSERT_TRUE(host.ok()) << host.status();
    host_ = *std::move(host);
    grpc::ChannelArguments arguments;
    // The caller's window stays at 64 KiB: what it does not read stays with the service.
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    channel_ = address.empty()
                   ? host_->InProcessChannel()
                   : grpc::CreateCustomChannel(host_->address(), grpc::InsecureChannelCredentials(),
                                               arguments);
    stub_ = v1::DecoderService::NewStub(channel_);
  }

  Answer Generate(const v1::GenerateRequest& request, grpc::ClientContext* context = nullptr) {
    grpc::ClientContext own;
    auto reader = stub_->Generate(context != nullptr ? context : &own, request);
    Answer answer;
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      if (response.has_chunk()) {
        EXPECT_EQ(answer.completes, 0) << "a chunk behind the end";
        answer.text += response.chunk().text();
        answer.chunks.push_back(response.chunk());
      } else {
        ++answer.completes;
        answer.complete = response.complete();
      }
    }
    answer.status = FromGrpc(reader->Finish());
    return answer;
  }

  v1::GenerateRequest Text(const std::string& text) {
    v1::GenerateRequest request;
    request.set_text(text);
    return request;
  }

  std::string Metrics() { return RenderMetrics(*runtime_.metrics); }

  ServiceRuntime runtime_{"decoder"};
  std::unique_ptr<FakeEngine> engine_;
  std::unique_ptr<DecoderService> service_;
  std::unique_ptr<ServiceHost> host_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::DecoderService::Stub> stub_;
};

TEST_F(DecoderTest, StreamsChunksThenOneComplete) {
  Start();
  v1::GenerateRequest request = Text("h\xC3\xB6llo");
  request.mutable_sampling()->set_seed(99);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.text, "echo: h\xC3\xB6llo");
  EXPECT_EQ(answer.completes, 1);
  EXPECT_EQ(answer.complete.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(answer.complete.usage().prompt_tokens(), 6);
  EXPECT_EQ(answer.complete.usage().completion_tokens(), 11);
  EXPECT_EQ(answer.complete.prompt_token_ids_size(), 6);
  EXPECT_EQ(answer.complete.receipt().seed(), 99u);
  EXPECT_EQ(answer.complete.receipt().model_digest(), std::string(64, 'a'));
  EXPECT_EQ(answer.complete.receipt().kernel_configuration(), "fake/f32/kv-f16");
  for (const auto& chunk : answer.chunks) {
    EXPECT_TRUE(IsValidUtf8(chunk.text()));
    EXPECT_EQ(chunk.logprobs_size(), 0);
    EXPECT_EQ(chunk.features_size(), 0);
  }
}

TEST_F(DecoderTest, MessagesAndTokensReachTheEngine) {
  Start();
  v1::GenerateRequest request;
  auto* message = request.mutable_messages()->add_messages();
  message->set_role(v1::ROLE_SYSTEM);
  message->set_content("be brief");
  message = request.mutable_messages()->add_messages();
  message->set_role(v1::ROLE_USER);
  message->set_content("hi");
  const Answer chat = Generate(request);
  ASSERT_TRUE(chat.status.ok());
  EXPECT_EQ(engine_->LastPromptText(), "system:be brief\nuser:hi\n");
  EXPECT_EQ(chat.complete.receipt().template_digest(), std::string(64, 'c'));

  v1::GenerateRequest tokens;
  tokens.mutable_tokens()->add_ids('x');
  tokens.mutable_tokens()->add_ids('y');
  EXPECT_EQ(Generate(tokens).text, "echo: xy");
}

TEST_F(DecoderTest, EverySamplingFieldReachesTheEngine) {
  Start();
  v1::GenerateRequest request = Text("x");
  request.set_priority(-100);
  auto* sampling = request.mutable_sampling();
  sampling->set_temperature(0.5f);
  sampling->set_top_k(11);
  sampling->set_top_p(0.75f);
  sampling->set_min_p(0.125f);
  sampling->set_presence_penalty(1.5f);
  sampling->set_frequency_penalty(-1.5f);
  sampling->set_repetition_penalty(1.25f);
  sampling->set_seed(7);
  (*sampling->mutable_logit_bias())[5] = -100;
  sampling->set_max_tokens(3);
  sampling->add_stop("stop");
  sampling->add_stop_token_ids(9);
  sampling->set_ignore_eos(true);
  sampling->set_logprobs(true);
  sampling->set_top_logprobs(2);
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "r-1");
  context.AddMetadata("cogumi-tenant", "acme");
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  const Answer answer = Generate(request, &context);
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.complete.finish_reason(), v1::FINISH_REASON_LENGTH);

  const GenerationRequest seen = engine_->LastRequest();
  EXPECT_EQ(seen.request_id, "r-1");
  EXPECT_EQ(seen.tenant, "acme");
  EXPECT_EQ(seen.priority, -100);
  EXPECT_NEAR(seen.deadline - runtime_.clock->Now(), 60, 5);
  EXPECT_EQ(seen.sampling.temperature, 0.5f);
  EXPECT_EQ(seen.sampling.top_k, 11);
  EXPECT_EQ(seen.sampling.top_p, 0.75f);
  EXPECT_EQ(seen.sampling.min_p, 0.125f);
  EXPECT_EQ(seen.sampling.presence_penalty, 1.5f);
  EXPECT_EQ(seen.sampling.frequency_penalty, -1.5f);
  EXPECT_EQ(seen.sampling.repetition_penalty, 1.25f);
  EXPECT_EQ(seen.sampling.seed, 7u);
  EXPECT_THAT(seen.sampling.logit_bias, ElementsAre(std::pair<TokenId, float>(5, -100.0f)));
  EXPECT_EQ(seen.sampling.max_tokens, 3);
  EXPECT_THAT(seen.sampling.stop, ElementsAre("stop"));
  EXPECT_THAT(seen.sampling.stop_token_ids, ElementsAre(9));
  EXPECT_TRUE(seen.sampling.ignore_eos);
  EXPECT_TRUE(seen.sampling.logprobs);
  EXPECT_EQ(seen.sampling.top_logprobs, 2);
}

TEST_F(DecoderTest, UnsetFieldsTakeTheEnginesDefaults) {
  Start();
  ASSERT_TRUE(Generate(Text("x")).status.ok());
  const SamplingParams seen = engine_->LastRequest().sampling;
  const SamplingParams defaults;
  EXPECT_EQ(seen.temperature, defaults.temperature);
  EXPECT_EQ(seen.top_p, defaults.top_p);
  EXPECT_EQ(seen.repetition_penalty, defaults.repetition_penalty);
  EXPECT_FALSE(seen.seed.has_value());
  EXPECT_FALSE(seen.max_tokens.has_value());
  EXPECT_EQ(engine_->LastRequest().deadline, 0);
}

TEST_F(DecoderTest, LogprobsAndFeaturesOnlyWhenAskedFor) {
  Start();
  v1::GenerateRequest request = Text("ab");
  request.mutable_sampling()->set_logprobs(true);
  request.mutable_sampling()->set_top_logprobs(3);
  request.set_features(true);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok());
  int tokens = 0;
  for (const auto& chunk : answer.chunks) {
    EXPECT_EQ(chunk.logprobs_size(), chunk.token_ids_size());
    EXPECT_EQ(chunk.features_size(), chunk.token_ids_size());
    tokens += chunk.token_ids_size();
    for (const auto& logprob : chunk.logprobs()) EXPECT_EQ(logprob.top_size(), 3);
    for (const auto& feature : chunk.features()) EXPECT_EQ(feature.margin(), 2.0f);
  }
  EXPECT_EQ(tokens, answer.complete.usage().completion_tokens());
}

TEST_F(DecoderTest, ReservedFieldsAreUnimplementedByName) {
  Start();
  v1::GenerateRequest grammar = Text("x");
  grammar.mutable_grammar()->set_regex("a*");
  v1::GenerateRequest tools = Text("x");
  tools.add_tools()->set_name("t");
  const std::vector<std::pair<std::string, v1::GenerateRequest>> cases = {{"grammar", grammar},
                                                                          {"tools", tools}};
  for (const auto& [field, request] : cases) {
    const absl::Status status = Generate(request).status;
    EXPECT_TRUE(absl::IsUnimplemented(status)) << field;
    EXPECT_EQ(FieldOf(status), field);
    EXPECT_THAT(std::string(status.message()), HasSubstr(field));
  }
}

TEST_F(DecoderTest, BadInputNamesItsField) {
  Start();
  const auto field_of = [this](const v1::GenerateRequest& request) {
    const absl::Status status = Generate(request).status;
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return FieldOf(status);
  };
  EXPECT_EQ(field_of(v1::GenerateRequest()), "input");
  v1::GenerateRequest request;
  request.mutable_tokens();
  EXPECT_EQ(field_of(request), "tokens.ids");
  for (const int32_t id : {-1, FakeEngine::kVocabulary, std::numeric_limits<int32_t>::max(),
                           std::numeric_limits<int32_t>::min()}) {
    v1::GenerateRequest tokens;
    tokens.mutable_tokens()->add_ids(id);
    EXPECT_EQ(field_of(tokens), "tokens") << id;
  }
  request.mutable_messages();
  EXPECT_EQ(field_of(request), "messages.messages");
  request.mutable_messages()->add_messages()->set_content("no role");
  EXPECT_EQ(field_of(request), "messages.messages[0].role");
  request.mutable_messages()->mutable_messages(0)->set_role(static_cast<v1::Role>(77));
  EXPECT_EQ(field_of(request), "messages.messages[0].role");
  v1::GenerateRequest many;
  for (int i = 0; i < kMaxMessages + 1; ++i) {
    many.mutable_messages()->add_messages()->set_role(v1::ROLE_USER);
  }
  EXPECT_EQ(field_of(many), "messages.messages");
  EXPECT_EQ(field_of(Text(std::string(kMaxPromptBytes + 1, 'x'))), "text");
  for (const int32_t priority :
       {-101, 101, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()}) {
    v1::GenerateRequest bad = Text("x");
    bad.set_priority(priority);
    EXPECT_EQ(field_of(bad), "priority") << priority;
  }
  for (const float temperature : {-0.01f, 2.01f, std::numeric_limits<float>::quiet_NaN(),
                                  std::numeric_limits<float>::infinity(), 1e30f}) {
    v1::GenerateRequest bad = Text("x");
    bad.mutable_sampling()->set_temperature(temperature);
    EXPECT_EQ(field_of(bad), "sampling.temperature") << temperature;
  }
  v1::GenerateRequest bad = Text("x");
  bad.mutable_sampling()->set_max_tokens(0);
  EXPECT_EQ(field_of(bad), "sampling.max_tokens");
  // After all that it still works.
  EXPECT_TRUE(Generate(Text("x")).status.ok());
}

TEST_F(DecoderTest, ContextOverflowIsOutOfRange) {
  FakeEngineOptions options;
  options.context_length = 8;
  Start(options);
  const absl::Status status = Generate(Text("nine bytes")).status;
  EXPECT_TRUE(absl::IsOutOfRange(status));
  EXPECT_EQ(ReasonOf(status), "CONTEXT_OVERFLOW");
}

TEST_F(DecoderTest, AFullQueueSaysWhenToRetry) {
  FakeEngineOptions options;
  options.automatic = false;
  options.max_running = 1;
  options.max_queued = 1;
  Start(options);
  grpc::ClientContext first;
  grpc::ClientContext second;
  auto one = stub_->Generate(&first, Text("a"));
  auto two = stub_->Generate(&second, Text("b"));
  ASSERT_TRUE(engine_->WaitSubmitted(2));
  const absl::Status status = Generate(Text("c")).status;
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_EQ(ReasonOf(status), "QUEUE_FULL");
  EXPECT_TRUE(RetryAfterOf(status).has_value());
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_engine_requests_rejected_total{model_name=\"fake\"} 1"));
  first.TryCancel();
  second.TryCancel();
  EXPECT_TRUE(Eventually([&] {
    engine_->Step();
    return engine_->Stats().running + engine_->Stats().queued == 0;
  }));
}

TEST_F(DecoderTest, CancellationReachesTheEngine) {
  FakeEngineOptions options;
  options.automatic = false;
  options.answer = std::vector<std::string>(1000, "x");
  Start(options, "127.0.0.1:0");
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, Text("a"));
  ASSERT_TRUE(engine_->WaitSubmitted(1));
  engine_->Step();
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  // The call ends without a step; the next one frees the slot.
  EXPECT_TRUE(Eventually([&] { return runtime_.calls.running() == 0; }));
  engine_->Step();
  EXPECT_TRUE(engine_->WaitIdle());
  EXPECT_EQ(engine_->Stats().cancelled, 1u);
  EXPECT_EQ(engine_->Stats().running, 0);
  EXPECT_THAT(Metrics(), HasSubstr("finished_reason=\"abort\",model_name=\"fake\"} 1"));
}

TEST_F(DecoderTest, DisconnectReachesTheEngine) {
  FakeEngineOptions options;
  options.automatic = false;
  options.answer = std::vector<std::string>(1000, "x");
  Start(options, "127.0.0.1:0");
  {
    grpc::ClientContext context;
    auto reader = stub_->Generate(&context, Text("a"));
    ASSERT_TRUE(engine_->WaitSubmitted(1));
  }
  EXPECT_TRUE(Eventually([&] { return runtime_.calls.running() == 0; }));
  engine_->Step();
  EXPECT_EQ(engine_->Stats().cancelled, 1u);
}

TEST_F(DecoderTest, TheDeadlineEndsTheCall) {
  FakeEngineOptions options;
  options.automatic = false;
  Start(options, "127.0.0.1:0");
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  EXPECT_TRUE(absl::IsDeadlineExceeded(Generate(Text("a"), &context).status));
  EXPECT_TRUE(Eventually([&] { return runtime_.calls.running() == 0; }));
  engine_->Step();
  EXPECT_EQ(engine_->Stats().running + engine_->Stats().queued, 0);
}

TEST_F(DecoderTest, EngineFaultsAreInternalAndEndTheStream) {
  FakeEngineOptions options;
  options.automatic = false;
  options.answer = {"one", "two", "three"};
  Start(options);
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, Text("a"));
  ASSERT_TRUE(engine_->WaitSubmitted(1));
  engine_->Step();
  engine_->FailNextStep(absl::InternalError("the logits are not finite"));
  engine_->Step();
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.chunk().text(), "one");
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::INTERNAL);
}

TEST_F(DecoderTest, ASlowReaderStopsTheWork) {
  FakeEngineOptions options;
  options.answer = {std::string(4096, 'x')};
  options.endless = true;
  Start(options, "127.0.0.1:0");
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, Text("a"));  // reads nothing until the engine gave up
  ASSERT_TRUE(engine_->WaitSubmitted(1));
  EXPECT_TRUE(engine_->WaitIdle());
  EXPECT_EQ(engine_->Stats().cancelled, 1u);
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_slow_readers_total{model_name=\"fake\"} 1"));
}

TEST_F(DecoderTest, ManyStreamsAtOnce) {
  FakeEngineOptions options;
  options.max_running = 32;
  options.max_queued = 64;
  Start(options, "127.0.0.1:0");
  std::vector<std::thread> callers;
  std::atomic<int> right{0};
  for (int i = 0; i < 32; ++i) {
    callers.emplace_back([this, i, &right] {
      const std::string text = "caller " + std::to_string(i);
      const Answer answer = Generate(Text(text));
      if (answer.status.ok() && answer.text == "echo: " + text && answer.completes == 1) ++right;
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(right, 32);
  EXPECT_TRUE(Eventually([&] { return runtime_.calls.running() == 0; }));
}

TEST_F(DecoderTest, TokenizeAndDetokenize) {
  Start();
  {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    request.set_text("abc");
    v1::TokenizeResponse response;
    ASSERT_TRUE(stub_->Tokenize(&context, request, &response).ok());
    EXPECT_THAT(std::vector<int32_t>(response.ids().begin(), response.ids().end()),
                ElementsAre('a', 'b', 'c'));
  }
  {
    // Large enough for the worker.
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    request.set_text(std::string(1 << 20, 'x'));
    v1::TokenizeResponse response;
    ASSERT_TRUE(stub_->Tokenize(&context, request, &response).ok());
    EXPECT_EQ(response.ids_size(), 1 << 20);
  }
  {
    grpc::ClientContext context;
    v1::TokenizeResponse response;
    EXPECT_EQ(FieldOf(FromGrpc(stub_->Tokenize(&context, {}, &response))), "input");
  }
  {
    grpc::ClientContext context;
    v1::DetokenizeRequest request;
    request.add_ids('a');
    request.add_ids(0xFF);
    request.add_ids(FakeEngine::kEnd);
    request.set_special(true);
    v1::DetokenizeResponse response;
    ASSERT_TRUE(stub_->Detokenize(&context, request, &response).ok());
    EXPECT_EQ(response.text(), "a\xEF\xBF\xBD<end>");
    EXPECT_EQ(response.raw(), "a\xFF<end>");
  }
  for (const int32_t id : {-1, FakeEngine::kVocabulary, std::numeric_limits<int32_t>::max()}) {
    grpc::ClientContext context;
    v1::DetokenizeRequest request;
    request.add_ids(id);
    v1::DetokenizeResponse response;
    EXPECT_EQ(FieldOf(FromGrpc(stub_->Detokenize(&context, request, &response))), "ids") << id;
  }
}

TEST_F(DecoderTest, Score) {
  Start();
  v1::ScoreRequest request;
  request.set_text("abcd");
  request.set_top_logprobs(2);
  {
    grpc::ClientContext context;
    v1::ScoreResponse response;
    ASSERT_TRUE(stub_->Score(&context, request, &response).ok());
    EXPECT_EQ(response.token_ids_size(), 4);
    ASSERT_EQ(response.logprobs_size(), 3);
    EXPECT_EQ(response.logprobs(0).token_id(), 'b');
    EXPECT_EQ(response.logprobs(0).top_size(), 2);
    EXPECT_EQ(response.receipt().kernel_configuration(), "fake/f32/kv-f16");
  }
  EXPECT_TRUE(engine_->LastRequest().score);
  for (const int32_t top : {-1, 21, std::numeric_limits<int32_t>::max()}) {
    grpc::ClientContext context;
    v1::ScoreResponse response;
    request.set_top_logprobs(top);
    EXPECT_EQ(FieldOf(FromGrpc(stub_->Score(&context, request, &response))), "top_logprobs");
  }
}

TEST_F(DecoderTest, ACancelledScoreLeavesTheEngine) {
  FakeEngineOptions options;
  options.automatic = false;
  Start(options, "127.0.0.1:0");
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  v1::ScoreRequest request;
  request.set_text("abcd");
  v1::ScoreResponse response;
  EXPECT_EQ(stub_->Score(&context, request, &response).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([&] {
    engine_->Step();
    return runtime_.calls.running() == 0;
  }));
  EXPECT_EQ(engine_->Stats().running + engine_->Stats().queued, 0);
}

TEST_F(DecoderTest, ModelInfo) {
  Start();
  grpc::ClientContext context;
  v1::ModelInfoResponse response;
  ASSERT_TRUE(stub_->ModelInfo(&context, {}, &response).ok());
  EXPECT_EQ(response.model().id(), "fake");
  EXPECT_EQ(response.model().digest(), std::string(64, 'a'));
  EXPECT_EQ(response.model().context_length(), 4096);
  EXPECT_EQ(response.kv_pages(), 64);
  EXPECT_EQ(response.kv_pages_free(), 64);
  EXPECT_EQ(response.max_running(), 4);
  EXPECT_EQ(response.max_queued(), 8);
}

TEST_F(DecoderTest, DrainLetsTheStreamFinish) {
  FakeEngineOptions options;
  options.automatic = false;
  options.answer = {"a", "b", "c"};
  Start(options, "127.0.0.1:0");
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, Text("x"));
  ASSERT_TRUE(engine_->WaitSubmitted(1));
  host_->StartDraining();
  engine_->Drain();
  EXPECT_TRUE(absl::IsUnavailable(Generate(Text("late")).status));
  std::thread drain([this] { EXPECT_TRUE(host_->Drain(60).ok()); });
  for (int i = 0; i < 3; ++i) engine_->Step();
  std::string text;
  v1::GenerateResponse response;
  while (reader->Read(&response)) text += response.chunk().text();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text, "abc");
  drain.join();
}

TEST_F(DecoderTest, TheRequestChoosesItsDrafter) {
  Start();
  const std::pair<v1::Speculation, Speculation> choices[] = {
      {v1::SPECULATION_UNSPECIFIED, Speculation::kDefault},
      {v1::SPECULATION_OFF, Speculation::kOff},
      {v1::SPECULATION_NGRAM, Speculation::kNgram},
      {v1::SPECULATION_DRAFT_MODEL, Speculation::kDraftModel}};
  for (const auto& [sent, arrived] : choices) {
    v1::GenerateRequest request = Text("x");
    request.set_speculation(sent);
    ASSERT_TRUE(Generate(request).status.ok());
    EXPECT_EQ(engine_->LastRequest().speculation, arrived);
  }
  v1::GenerateRequest request = Text("x");
  request.set_speculation(static_cast<v1::Speculation>(9));
  const absl::Status status = Generate(request).status;
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_EQ(FieldOf(status), "speculation");
}

TEST_F(DecoderTest, MetricsMove) {
  Start();
  ASSERT_TRUE(Generate(Text("abc")).status.ok());
  EXPECT_TRUE(Eventually([&] { return runtime_.calls.running() == 0; }));
  const std::string text = Metrics();
  for (const char* expected :
       {"vllm:num_requests_running{model_name=\"fake\"} 0",
        "vllm:num_requests_waiting{model_name=\"fake\"} 0",
        "vllm:kv_cache_usage_perc{model_name=\"fake\"} 0",
        "vllm:prompt_tokens_total{model_name=\"fake\"} 3",
        "vllm:generation_tokens_total{model_name=\"fake\"} 9",
        "vllm:num_preemptions_total{model_name=\"fake\"} 0",
        "vllm:prefix_cache_queries_total{model_name=\"fake\"} 0",
        "vllm:prefix_cache_hits_total{model_name=\"fake\"} 0",
        "cogumi_kv_pages{state=\"cached\",precision=\"f16\",model_name=\"fake\"} 0",
        "vllm:spec_decode_num_drafts_total{model_name=\"fake\"} 6",
        "vllm:spec_decode_num_draft_tokens_total{model_name=\"fake\"} 9",
        "vllm:spec_decode_num_accepted_tokens_total{model_name=\"fake\"} 7",
        "vllm:spec_decode_num_accepted_tokens_per_pos_total{position=\"0\",model_name=\"fake\"} 5",
        "vllm:spec_decode_num_accepted_tokens_per_pos_total{position=\"1\",model_name=\"fake\"} 2",
        "finished_reason=\"stop\",model_name=\"fake\"} 1",
        "vllm:time_to_first_token_seconds_count{model_name=\"fake\"} 1",
        "vllm:inter_token_latency_seconds_count{model_name=\"fake\"} 8",
        "vllm:request_time_per_output_token_seconds_count{model_name=\"fake\"} 1",
        "vllm:e2e_request_latency_seconds_count{model_name=\"fake\"} 1",
        "cogumi_queue_wait_seconds_count{model_name=\"fake\"} 1",
        "cogumi_kv_pages{state=\"free\",precision=\"f16\",model_name=\"fake\"} 64",
        "cogumi_kv_bytes_used{precision=\"int8\",model_name=\"fake\"} 49152",
        "cogumi_kv_bytes_used{precision=\"int4\",model_name=\"fake\"} 40960",
        "cogumi_kv_blocks_used{precision=\"int4\",model_name=\"fake\"} 5",
        "cogumi_engine_healthy{model_name=\"fake\"} 1",
        "cogumi_rpc_calls_total{code=\"OK\",method=\"Generate\",service=\"decoder\"} 1"}) {
    EXPECT_THAT(text, HasSubstr(expected));
  }
}

// A catalogue that never answers.
class NoSupplier : public AdapterSupplier {
 public:
  absl::StatusOr<v1::Adapter> Get(const std::string& /*key*/) override { return Gone(); }
  absl::Status Fetch(
      const std::string& /*digest*/,
      const std::function<absl::Status(const v1::FetchResponse&)>& /*on_piece*/) override {
    return Gone();
  }
  absl::Status Watch(const std::function<void(const v1::WatchResponse&)>& /*on_change*/) override {
    return Gone();
  }
  void Stop() override {}

 private:
  static absl::Status Gone() { return absl::UnavailableError("gone"); }
};

TEST_F(DecoderTest, ACatalogueOutOfReachIsSeenInTheMetrics) {
  FakeClock clock;
  clock.Advance(10);
  engine_ = std::make_unique<FakeEngine>(FakeEngineOptions());
  AdapterStore store(*engine_, std::make_unique<NoSupplier>(), {.clock = &clock, .pause = {}});
  service_ = DecoderService::Create(runtime_, *engine_, {4, 8}, &store);
  clock.Advance(7);
  const std::string text = Metrics();
  EXPECT_THAT(text, HasSubstr("cogumi_adapter_catalogue_current{model_name=\"fake\"} 0"));
  EXPECT_THAT(text, HasSubstr("cogumi_adapter_catalogue_age_seconds{model_name=\"fake\"} 7"));
  service_.reset();
}

TEST_F(DecoderTest, OnlyModelInfoWaitsForTheDigest) {
  Start();
  // Every family is there before the first answer.
  EXPECT_THAT(Metrics(),
              HasSubstr("vllm:time_to_first_token_seconds_count{model_name=\"fake\"} 0"));
  EXPECT_TRUE(Generate(Text("x")).status.ok());
  EXPECT_THAT(Metrics(),
              HasSubstr("vllm:time_to_first_token_seconds_count{model_name=\"fake\"} 1"));
  EXPECT_EQ(engine_->model_calls(), 0);
  grpc::ClientContext context;
  v1::ModelInfoResponse info;
  EXPECT_TRUE(stub_->ModelInfo(&context, {}, &info).ok());
  EXPECT_EQ(engine_->model_calls(), 1);
}

TEST(ConvertTest, EngineErrorsNameTheirField) {
  EXPECT_EQ(FieldOf(WithEngineDetails(absl::InvalidArgumentError("top_logprobs: 21"))),
            "sampling.top_logprobs");
  EXPECT_EQ(FieldOf(WithEngineDetails(absl::InvalidArgumentError("stop_token_ids[2] is bad"))),
            "sampling.stop_token_ids");
  EXPECT_EQ(FieldOf(WithEngineDetails(absl::InvalidArgumentError("nothing known"))), "");
  EXPECT_EQ(FieldOf(WithEngineDetails(absl::InternalError("temperature"))), "");
}

TEST(ConvertTest, MergedChunksEqualOne) {
  Chunk first;
  first.text = "a";
  first.tokens.resize(1);
  first.tokens[0].id = 1;
  Chunk second;
  second.text = "b";
  second.tokens.resize(2);
  second.tokens[1].id = 3;
  v1::GenerateChunk merged;
  ToProto(first, true, true, &merged);
  v1::GenerateChunk next;
  ToProto(second, true, true, &next);
  MergeChunk(std::move(next), &merged);
  EXPECT_EQ(merged.text(), "ab");
  EXPECT_EQ(merged.token_ids_size(), 3);
  EXPECT_EQ(merged.token_ids(2), 3);
  EXPECT_EQ(merged.logprobs_size(), 3);
  EXPECT_EQ(merged.features_size(), 3);
}

}  // namespace
}  // namespace cogumi::services
