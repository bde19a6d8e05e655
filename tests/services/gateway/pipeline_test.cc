#include "services/gateway/pipeline.h"

#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "prometheus/text_serializer.h"
#include "services/common/status.h"

namespace cogumi::gateway {
namespace {

namespace v1 = cogumi::v1;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A Generate call that the test plays by hand.
class FakeStream : public BackendCall {
 public:
  FakeStream(services::RequestContext c, v1::GenerateRequest r, std::shared_ptr<GenerateSink> s)
      : context(std::move(c)), request(std::move(r)), sink(std::move(s)) {}

  // As gRPC may do it: the end is reported from inside the cancellation.
  void Cancel() override {
    cancelled = true;
    if (!finished) Finish(absl::CancelledError("cancelled"));
  }
  void Text(const std::string& text, float logprob = -0.5f) {
    v1::GenerateResponse response;
    v1::GenerateChunk* chunk = response.mutable_chunk();
    chunk->set_text(text);
    chunk->add_token_ids(7);
    chunk->add_logprobs()->set_logprob(logprob);
    if (request.features()) {
      chunk->add_features()->set_logprob(logprob);
      chunk->mutable_features(0)->set_margin(2);
      chunk->mutable_features(0)->set_entropy(1);
    }
    sink->OnResponse(response);
  }
  void Complete(int prompt_tokens = 10, int completion_tokens = 2) {
    v1::GenerateResponse response;
    v1::GenerateComplete* complete = response.mutable_complete();
    complete->set_finish_reason(v1::FINISH_REASON_STOP);
    complete->mutable_usage()->set_prompt_tokens(prompt_tokens);
    complete->mutable_usage()->set_completion_tokens(completion_tokens);
    complete->mutable_receipt()->set_model_digest("digest");
    complete->mutable_receipt()->set_kernel_digest("kernels");
    sink->OnResponse(response);
    Finish(absl::OkStatus());
  }
  void Finish(absl::Status status) {
    finished = true;
    const auto held = std::move(sink);
    held->OnFinished(std::move(status));
  }

  const services::RequestContext context;
  const v1::GenerateRequest request;
  std::shared_ptr<GenerateSink> sink;
  bool cancelled = false;
  bool finished = false;
};

class NoCall : public BackendCall {
 public:
  void Cancel() override {}
};

class FakeBackends : public Backends {
 public:
  FakeBackends() {
    model.mutable_model()->set_id("tiny");
    model.mutable_model()->set_digest("digest");
    model.set_kernel_digest("kernels");
    route.set_domain(v1::DOMAIN_CODE);
    route.set_tier("base");
    route.set_model("lexicon-1");
    detect.set_feedback(v1::FEEDBACK_FRUSTRATED);
    detect.set_escalate(true);
    assess.set_confidence(0.625f);
  }

  std::shared_ptr<BackendCall> Generate(const services::RequestContext& context,
                                        const v1::GenerateRequest& request,
                                        std::shared_ptr<GenerateSink> sink) override {
    streams.push_back(std::make_shared<FakeStream>(context, request, std::move(sink)));
    return streams.back();
  }
  std::shared_ptr<BackendCall> ModelInfo(const services::RequestContext&,
                                         BackendCallback<v1::ModelInfoResponse> done) override {
    ++model_calls;
    if (hold_model) {
      held_model = std::move(done);
    } else if (model_status.ok()) {
      done(model);
    } else {
      done(model_status);
    }
    return std::make_shared<NoCall>();
  }
  std::shared_ptr<BackendCall> Route(const services::RequestContext& context,
                                     const v1::RouteRequest& request,
                                     BackendCallback<v1::RouteResponse> done) override {
    route_request = request;
    router_context = context;
    Answer(route, std::move(done));
    return std::make_shared<NoCall>();
  }
  std::shared_ptr<BackendCall> Detect(const services::RequestContext&,
                                      const v1::DetectRequest& request,
                                      BackendCallback<v1::DetectResponse> done) override {
    detect_request = request;
    Answer(detect, std::move(done));
    return std::make_shared<NoCall>();
  }
  std::shared_ptr<BackendCall> Assess(const services::RequestContext&,
                                      const v1::AssessRequest& request,
                                      BackendCallback<v1::AssessResponse> done) override {
    assess_request = request;
    Answer(assess, std::move(done));
    return std::make_shared<NoCall>();
  }
  bool has_router() const override { return with_router; }
  bool DecoderReady() override { return true; }
  uint64_t DecoderGeneration() override { return generation; }
  std::vector<std::pair<std::string, bool>> Reachable() override { return {{"decoder", true}}; }

  template <typename Response>
  void Answer(const Response& response, BackendCallback<Response> done) {
    if (hold_router) {
      held.push_back([this, response, done = std::move(done)] { Answer(response, done); });
    } else if (router_status.ok()) {
      done(response);
    } else {
      done(router_status);
    }
  }
  void ReleaseRouter() {
    hold_router = false;
    for (const auto& call : std::exchange(held, {})) call();
  }

  v1::ModelInfoResponse model;
  v1::RouteResponse route;
  v1::DetectResponse detect;
  v1::AssessResponse assess;
  absl::Status model_status;
  absl::Status router_status;
  bool with_router = true;
  bool hold_router = false;
  bool hold_model = false;
  std::vector<std::function<void()>> held;
  BackendCallback<v1::ModelInfoResponse> held_model;
  int model_calls = 0;
  uint64_t generation = 0;
  services::RequestContext router_context;
  v1::RouteRequest route_request;
  v1::DetectRequest detect_request;
  v1::AssessRequest assess_request;
  std::vector<std::shared_ptr<FakeStream>> streams;
};

// Turns in memory; commits are held or fail when told so.
class FakeSessions : public SessionStore {
 public:
  void Load(std::string tenant, std::string session, TurnsCallback done) override {
    if (!load_status.ok()) return done(load_status);
    const auto found = turns.find({tenant, session});
    done(found == turns.end() ? std::vector<StoredTurn>() : found->second);
  }
  void Commit(std::string tenant, std::string session, std::string user, std::string assistant,
              NumberCallback done) override {
    auto commit = [this, key = std::pair(tenant, session), user, assistant, done] {
      if (!commit_status.ok()) return done(commit_status);
      auto& list = turns[key];
      list.push_back(
          {.number = static_cast<int64_t>(list.size()) + 1, .user = user, .assistant = assistant});
      done(list.back().number);
    };
    if (hold_commit) {
      held = commit;
    } else {
      commit();
    }
  }
  void Erase(std::string, std::string, NumberCallback done) override { done(0); }
  SessionStoreStats Stats() const override { return {}; }

  std::map<std::pair<std::string, std::string>, std::vector<StoredTurn>> turns;
  absl::Status load_status;
  absl::Status commit_status;
  bool hold_commit = false;
  std::function<void()> held;
};

struct Recorder : public CallObserver {
  void OnChunk(int choice, v1::GenerateChunk chunk) override {
    EXPECT_FALSE(done.has_value());
    text[choice] += chunk.text();
    chunks.push_back(std::move(chunk));
  }
  void OnChoiceDone(int choice, const v1::GenerateComplete& c) override {
    EXPECT_FALSE(done.has_value());
    complete[choice] = c;
  }
  void OnDone(const absl::Status& status, const CallOutcome& o) override {
    EXPECT_FALSE(done.has_value()) << "twice";
    done = status;
    outcome = o;
  }
  std::map<int, std::string> text;
  std::vector<v1::GenerateChunk> chunks;
  std::map<int, v1::GenerateComplete> complete;
  std::optional<absl::Status> done;
  CallOutcome outcome;
};

class PipelineTest : public ::testing::Test {
 protected:
  struct Running {
    std::shared_ptr<Recorder> answer = std::make_shared<Recorder>();
    std::shared_ptr<PipelineCall> call;
  };

  CallRequest Request(const std::string& question, const std::string& session = "",
                      const std::string& tenant = "acme") {
    CallRequest request;
    request.identity = {.tenant = tenant, .user = true};
    request.context.request_id = "r" + std::to_string(++requests_);
    request.started = clock_.Now();
    request.chat.emplace();
    request.chat->add_messages()->set_role(v1::ROLE_USER);
    request.chat->mutable_messages(0)->set_content(question);
    request.chat->set_session_id(session);
    return request;
  }
  Running Start(CallRequest request) {
    Running running;
    running.call = pipeline_->Prepare(std::move(request), running.answer);
    running.call->Start();
    return running;
  }
  absl::StatusCode Code(const Running& running) {
    EXPECT_TRUE(running.answer->done.has_value());
    return running.answer->done ? running.answer->done->code() : absl::StatusCode::kUnknown;
  }
  FakeStream& Stream(size_t index) { return *backends_.streams.at(index); }
  std::string Metrics() { return prometheus::TextSerializer().Serialize(registry_.Collect()); }
  static std::string Prompt(const FakeStream& stream) {
    std::string text;
    for (const v1::Message& message : stream.request.messages().messages()) {
      text += std::string("SUAx").substr(static_cast<size_t>(message.role()) - 1, 1) + ":" +
              message.content() + "|";
    }
    return text;
  }

  FakeClock clock_;
  FakeBackends backends_;
  FakeSessions sessions_;
  std::map<std::string, Quota> limits_{{"acme", {.concurrent_streams = 8}}, {"other", {}}};
  QuotaManager quotas_{limits_, clock_};
  prometheus::Registry registry_;
  GatewayMetrics metrics_{registry_, {.prompt = 1e6, .completion = 2e6}};
  ExplainLog explain_{16};
  ModelCatalogue models_{backends_, clock_};
  std::unique_ptr<Pipeline> pipeline_ = std::make_unique<Pipeline>(
      PipelineOptions{},
      PipelineParts{&backends_, &sessions_, &quotas_, &models_, &explain_, &metrics_, &clock_});
  int requests_ = 0;
};

TEST_F(PipelineTest, AnAnswerFromEndToEnd) {
  CallRequest request = Request("hello");
  request.chat->mutable_sampling()->set_temperature(0.5f);
  request.chat->set_priority(3);
  request.chat->set_speculation(v1::SPECULATION_OFF);
  request.context.traceparent = "trace";
  Running running = Start(std::move(request));
  ASSERT_EQ(backends_.streams.size(), 1u);
  const v1::GenerateRequest& sent = Stream(0).request;
  EXPECT_EQ(Prompt(Stream(0)), "U:hello|");
  EXPECT_EQ(sent.sampling().temperature(), 0.5f);
  EXPECT_EQ(sent.priority(), 3);
  EXPECT_EQ(sent.speculation(), v1::SPECULATION_OFF);
  EXPECT_TRUE(sent.features());
  EXPECT_EQ(Stream(0).context.tenant, "acme");
  EXPECT_EQ(Stream(0).context.request_id, "r1");
  EXPECT_EQ(Stream(0).context.traceparent, "trace");
  EXPECT_EQ(Stream(0).context.deadline, 600);
  clock_.Advance(0.25);
  Stream(0).Text("wor");
  EXPECT_EQ(running.answer->text[0], "wor");
  Stream(0).Text("ld");
  EXPECT_FALSE(running.answer->done.has_value());
  Stream(0).Complete();
  EXPECT_EQ(running.answer->text[0], "world");
  EXPECT_EQ(Code(running), absl::StatusCode::kOk);
  EXPECT_EQ(running.answer->complete[0].usage().prompt_tokens(), 10);
  EXPECT_EQ(running.answer->outcome.usage.completion_tokens(), 2);
  EXPECT_EQ(running.answer->outcome.first_token_seconds, 0.25);
  EXPECT_EQ(pipeline_->running(), 0);
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_gateway_streams 0"));
  EXPECT_THAT(Metrics(),
              HasSubstr(R"(cogumi_gateway_tokens_total{kind="prompt",tenant="acme"} 10)"));
  // 10 prompt tokens at a dollar, two others at two.
  EXPECT_THAT(Metrics(), HasSubstr(R"(cogumi_query_cost_dollars_total{tenant="acme"} 14)"));
}

TEST_F(PipelineTest, PeopleSeeNoFeatures) {
  Running plain = Start(Request("x"));
  Stream(0).Text("a");
  EXPECT_THAT(plain.answer->chunks[0].features(), IsEmpty());
  EXPECT_THAT(plain.answer->chunks[0].logprobs(), IsEmpty());
  Stream(0).Complete();
  CallRequest asked = Request("x");
  asked.chat->mutable_sampling()->set_logprobs(true);
  Running with = Start(std::move(asked));
  Stream(1).Text("a");
  EXPECT_THAT(with.answer->chunks[0].features(), IsEmpty());
  EXPECT_EQ(with.answer->chunks[0].logprobs_size(), 1);
  Stream(1).Complete();
}

TEST_F(PipelineTest, OperatorsSeeEverything) {
  Running running = Start(Request("x"));
  Stream(0).Text("a", -0.5f);
  Stream(0).Text("b", -1.5f);
  Stream(0).Complete();
  const auto record = explain_.Find("r1");
  ASSERT_TRUE(record.has_value());
  EXPECT_EQ(record->tenant(), "acme");
  EXPECT_EQ(record->model(), "tiny");
  EXPECT_EQ(record->route().domain(), v1::DOMAIN_CODE);
  EXPECT_TRUE(record->escalation().escalate());
  EXPECT_EQ(record->confidence().confidence(), 0.625f);
  EXPECT_EQ(record->tier(), "base");
  EXPECT_EQ(record->status(), "OK");
  EXPECT_EQ(record->usage().prompt_tokens(), 10);
  EXPECT_EQ(record->receipt().model_digest(), "digest");
  EXPECT_THAT(record->notes(), IsEmpty());
  EXPECT_THAT(backends_.assess_request.logprobs(), ElementsAre(-0.5f, -1.5f));
  EXPECT_THAT(backends_.assess_request.margins(), ElementsAre(2, 2));
  EXPECT_EQ(backends_.assess_request.domain(), v1::DOMAIN_CODE);
  EXPECT_EQ(backends_.assess_request.prompt_tokens(), 10);
}

TEST_F(PipelineTest, ASessionRemembersAndCommitsBeforeItCompletes) {
  sessions_.hold_commit = true;
  Running first = Start(Request("one", "s"));
  Stream(0).Text("first answer");
  Stream(0).Complete();
  EXPECT_TRUE(first.answer->complete.empty());
  EXPECT_FALSE(first.answer->done.has_value());
  sessions_.held();
  EXPECT_EQ(first.answer->complete.size(), 1u);
  EXPECT_EQ(Code(first), absl::StatusCode::kOk);

  sessions_.hold_commit = false;
  CallRequest request = Request("two", "s");
  request.chat->clear_messages();
  request.chat->add_messages()->set_role(v1::ROLE_SYSTEM);
  request.chat->mutable_messages(0)->set_content("be brief");
  request.chat->add_messages()->set_role(v1::ROLE_USER);
  request.chat->mutable_messages(1)->set_content("two");
  Running second = Start(std::move(request));
  EXPECT_EQ(Prompt(Stream(1)), "S:be brief|U:one|A:first answer|U:two|");
  // The router sees the conversation, without the system's message.
  EXPECT_EQ(backends_.route_request.messages_size(), 3);
  EXPECT_EQ(backends_.detect_request.messages(2).content(), "two");
  Stream(1).Text("x");
  Stream(1).Complete();
  const auto& turns = sessions_.turns[{"acme", "s"}];
  ASSERT_EQ(turns.size(), 2u);
  EXPECT_EQ(turns[1].user, "two");
  // Another tenant's session of the same name is another one.
  Running other = Start(Request("mine", "s", "other"));
  EXPECT_EQ(Prompt(Stream(2)), "U:mine|");
  Stream(2).Complete();
}

TEST_F(PipelineTest, ATurnThatCannotBeStoredIsNotAcknowledged) {
  sessions_.commit_status = absl::ResourceExhaustedError("disk full");
  Running running = Start(Request("x", "s"));
  Stream(0).Text("a");
  Stream(0).Complete();
  EXPECT_EQ(Code(running), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(running.answer->complete.empty());
  EXPECT_THAT(Metrics(), HasSubstr(R"(cogumi_session_errors_total{code="RESOURCE_EXHAUSTED",)"
                                   R"(operation="commit"} 1)"));
  sessions_.load_status = absl::DataLossError("damaged");
  EXPECT_EQ(Code(Start(Request("x", "s"))), absl::StatusCode::kDataLoss);
  EXPECT_EQ(backends_.streams.size(), 1u);
}

TEST_F(PipelineTest, OneTurnAtATimePerSession) {
  Running first = Start(Request("one", "s"));
  Running second = Start(Request("two", "s"));
  EXPECT_EQ(Code(second), absl::StatusCode::kAborted);
  EXPECT_EQ(services::ReasonOf(*second.answer->done), "SESSION_BUSY");
  Running elsewhere = Start(Request("x", "t"));
  Running foreign = Start(Request("x", "s", "other"));
  EXPECT_EQ(backends_.streams.size(), 3u);
  Stream(0).Finish(absl::InternalError("x"));
  EXPECT_EQ(Code(first), absl::StatusCode::kInternal);
  // Free again, also after a failure, and nothing was stored.
  Running third = Start(Request("three", "s"));
  EXPECT_EQ(Prompt(Stream(3)), "U:three|");
  for (size_t i = 1; i < 4; ++i) Stream(i).Complete();
}

TEST_F(PipelineTest, OldTurnsGoWhenTheContextIsTooSmall) {
  sessions_.turns[{"acme", "s"}] = {{.user = "1", .assistant = "a"},
                                    {.user = "2", .assistant = "b"}};
  Running running = Start(Request("3", "s"));
  EXPECT_EQ(Prompt(Stream(0)), "U:1|A:a|U:2|A:b|U:3|");
  Stream(0).Finish(absl::OutOfRangeError("too long"));
  EXPECT_EQ(Prompt(Stream(1)), "U:2|A:b|U:3|");
  Stream(1).Finish(absl::OutOfRangeError("too long"));
  EXPECT_EQ(Prompt(Stream(2)), "U:3|");
  Stream(2).Text("c");
  Stream(2).Complete();
  EXPECT_EQ(Code(running), absl::StatusCode::kOk);
  EXPECT_THAT(explain_.Find("r1")->notes(0), HasSubstr("2 stored turns"));
  // What does not fit by itself is an error.
  Running alone = Start(Request("4"));
  Stream(3).Finish(absl::OutOfRangeError("too long"));
  EXPECT_EQ(Code(alone), absl::StatusCode::kOutOfRange);
}

TEST_F(PipelineTest, WithoutARouterItGoesOnAndSaysSo) {
  backends_.router_status = absl::UnavailableError("down");
  Running running = Start(Request("x"));
  Stream(0).Text("a");
  Stream(0).Complete();
  EXPECT_EQ(Code(running), absl::StatusCode::kOk);
  const auto record = explain_.Find("r1");
  EXPECT_EQ(record->notes_size(), 2);
  EXPECT_THAT(record->notes(0), HasSubstr("router unavailable"));
  EXPECT_FALSE(record->has_route());
  EXPECT_FALSE(record->has_confidence());
  for (const char* call : {"Route", "Detect", "Assess"}) {
    EXPECT_THAT(Metrics(), HasSubstr(std::string(R"(cogumi_gateway_router_degraded_total{call=")") +
                                     call + "\"} 1"));
  }
  backends_.with_router = false;
  Running none = Start(Request("x"));
  EXPECT_FALSE(Stream(1).request.features());
  Stream(1).Complete();
  EXPECT_THAT(explain_.Find("r2")->notes(), IsEmpty());
}

TEST_F(PipelineTest, TheRouterHasFiftyMilliseconds) {
  backends_.hold_router = true;
  clock_.Advance(5);
  Running running = Start(Request("x"));
  EXPECT_NEAR(backends_.router_context.deadline, 5.05, 1e-9);
  EXPECT_TRUE(backends_.streams.empty());
  backends_.ReleaseRouter();
  ASSERT_EQ(backends_.streams.size(), 1u);
  Stream(0).Complete();
}

TEST_F(PipelineTest, UnavailableIsRepeatedOnceBeforeTheFirstMessage) {
  Running running = Start(Request("x"));
  Stream(0).Finish(absl::UnavailableError("gone"));
  ASSERT_EQ(backends_.streams.size(), 2u);
  Stream(1).Text("a");
  Stream(1).Complete();
  EXPECT_EQ(Code(running), absl::StatusCode::kOk);
  EXPECT_EQ(running.answer->text[0], "a");

  Running twice = Start(Request("x"));
  Stream(2).Finish(absl::UnavailableError("gone"));
  Stream(3).Finish(absl::UnavailableError("gone"));
  EXPECT_EQ(Code(twice), absl::StatusCode::kUnavailable);
  EXPECT_EQ(backends_.streams.size(), 4u);

  Running late = Start(Request("x"));
  Stream(4).Text("a");
  Stream(4).Finish(absl::UnavailableError("gone"));
  EXPECT_EQ(Code(late), absl::StatusCode::kUnavailable);
  EXPECT_EQ(backends_.streams.size(), 5u);
}

TEST_F(PipelineTest, ErrorsKeepTheirDetails) {
  Running running = Start(Request("x"));
  Stream(0).Finish(services::WithRetry(
      services::WithReason(absl::ResourceExhaustedError("full"), "QUEUE_FULL"), 2));
  EXPECT_EQ(services::ReasonOf(*running.answer->done), "QUEUE_FULL");
  EXPECT_EQ(services::RetryAfterOf(*running.answer->done), 2);
  Running broken = Start(Request("x"));
  Stream(1).Text("a");
  Stream(1).Finish(absl::OkStatus());
  EXPECT_EQ(services::ReasonOf(*broken.answer->done), "BROKEN_STREAM");
}

TEST_F(PipelineTest, CancelReachesTheDecoderAndNothingIsStored) {
  Running running = Start(Request("x", "s"));
  Stream(0).Text("a");
  running.call->Cancel(absl::CancelledError("gone"));
  EXPECT_TRUE(Stream(0).cancelled);
  EXPECT_EQ(Code(running), absl::StatusCode::kCancelled);
  EXPECT_THAT(sessions_.turns, IsEmpty());
  EXPECT_EQ(pipeline_->running(), 0);
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_gateway_streams 0"));
  // Later ones do nothing.
  running.call->Cancel(absl::InternalError("x"));
  EXPECT_EQ(Code(running), absl::StatusCode::kCancelled);
}

TEST_F(PipelineTest, CancelWorksInEveryStage) {
  backends_.hold_model = true;
  Running asking = Start(Request("x"));
  asking.call->Cancel(absl::CancelledError("gone"));
  EXPECT_FALSE(asking.answer->done.has_value());
  backends_.held_model(backends_.model);
  EXPECT_EQ(Code(asking), absl::StatusCode::kCancelled);

  backends_.hold_router = true;
  Running routing = Start(Request("x", "s"));
  routing.call->Cancel(absl::CancelledError("gone"));
  backends_.ReleaseRouter();
  EXPECT_EQ(Code(routing), absl::StatusCode::kCancelled);
  EXPECT_TRUE(backends_.streams.empty());

  // A turn that is being committed is finished: its text was sent.
  sessions_.hold_commit = true;
  Running committing = Start(Request("x", "s"));
  Stream(0).Complete();
  committing.call->Cancel(absl::CancelledError("gone"));
  sessions_.held();
  EXPECT_EQ(Code(committing), absl::StatusCode::kOk);
  EXPECT_EQ(pipeline_->running(), 0);
}

TEST_F(PipelineTest, TheEndOfThePipelineStopsWhatRuns) {
  Running running = Start(Request("x"));
  pipeline_ = nullptr;
  EXPECT_TRUE(Stream(0).cancelled);
  EXPECT_EQ(Code(running), absl::StatusCode::kUnavailable);
}

TEST_F(PipelineTest, SeveralChoices) {
  CallRequest request = Request("x");
  request.n = 3;
  request.chat->mutable_sampling()->set_seed(100);
  Running running = Start(std::move(request));
  ASSERT_EQ(backends_.streams.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(Stream(i).request.sampling().seed(), 100 + i);
  EXPECT_FALSE(Stream(1).request.features());
  Stream(2).Text("c");
  Stream(0).Text("a");
  Stream(2).Complete();
  EXPECT_EQ(running.answer->complete.count(2), 1u);
  Stream(1).Text("b");
  Stream(1).Complete();
  EXPECT_FALSE(running.answer->done.has_value());
  Stream(0).Complete();
  EXPECT_EQ(Code(running), absl::StatusCode::kOk);
  EXPECT_EQ(running.answer->text, (std::map<int, std::string>{{0, "a"}, {1, "b"}, {2, "c"}}));
  // One prompt, three answers.
  EXPECT_EQ(running.answer->outcome.usage.prompt_tokens(), 10);
  EXPECT_EQ(running.answer->outcome.usage.completion_tokens(), 6);
}

TEST_F(PipelineTest, OneFailedChoiceStopsTheOthers) {
  CallRequest request = Request("x");
  request.n = 3;
  Running running = Start(std::move(request));
  Stream(0).Text("a");
  Stream(1).Finish(absl::InternalError("broken"));
  EXPECT_TRUE(Stream(0).cancelled && Stream(2).cancelled);
  EXPECT_EQ(Code(running), absl::StatusCode::kInternal);
}

TEST_F(PipelineTest, PromptsAndChoicesMultiply) {
  CallRequest request = Request("");
  request.chat.reset();
  for (const char* text : {"p", "q"}) {
    request.prompts.emplace_back().set_text(text);
    request.prompts.back().set_parse_special(true);
  }
  request.n = 2;
  Running running = Start(request);
  ASSERT_EQ(backends_.streams.size(), 4u);
  EXPECT_EQ(Stream(1).request.text(), "p");
  EXPECT_EQ(Stream(2).request.text(), "q");
  EXPECT_TRUE(Stream(2).request.parse_special());
  for (size_t i = 0; i < 4; ++i) Stream(i).Complete();
  EXPECT_EQ(running.answer->outcome.usage.prompt_tokens(), 20);
  request.n = 5;
  EXPECT_EQ(services::FieldOf(*Start(request).answer->done), "n");
  request.n = 0;
  EXPECT_EQ(services::FieldOf(*Start(request).answer->done), "n");
  request.n = INT_MAX;
  EXPECT_EQ(services::FieldOf(*Start(request).answer->done), "n");
  CallRequest session = Request("x", "s");
  session.n = 2;
  EXPECT_EQ(services::FieldOf(*Start(std::move(session)).answer->done), "n");
}

TEST_F(PipelineTest, ModelNames) {
  const auto with = [&](const std::string& name) {
    CallRequest request = Request("x");
    request.chat->set_model(name);
    Running running = Start(std::move(request));
    if (running.answer->done) return *running.answer->done;
    Stream(backends_.streams.size() - 1).Complete();
    return *running.answer->done;
  };
  EXPECT_TRUE(with("").ok());
  EXPECT_TRUE(with("tiny").ok());
  EXPECT_EQ(with("gpt-99").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(services::ReasonOf(with("gpt-99")), "MODEL_NOT_FOUND");
  EXPECT_EQ(Stream(backends_.streams.size() - 1).request.adapter(), "");
  EXPECT_TRUE(with("tiny:poet").ok());
  EXPECT_EQ(Stream(backends_.streams.size() - 1).request.adapter(), "poet");
  EXPECT_EQ(with("tiny:").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(with("other:poet").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(backends_.model_calls, 1);
  // Another receipt means another model: the next request asks again.
  Running running = Start(Request("x"));
  v1::GenerateResponse response;
  response.mutable_complete()->mutable_receipt()->set_model_digest("new");
  FakeStream& stream = Stream(backends_.streams.size() - 1);
  stream.sink->OnResponse(response);
  stream.Finish(absl::OkStatus());
  EXPECT_TRUE(with("").ok());
  EXPECT_EQ(backends_.model_calls, 2);
  clock_.Advance(31);
  EXPECT_TRUE(with("").ok());
  EXPECT_EQ(backends_.model_calls, 3);
}

TEST_F(PipelineTest, ADecoderThatIsNotThereIsAskedAgainLater) {
  backends_.model_status = absl::UnavailableError("down");
  EXPECT_EQ(Code(Start(Request("x"))), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Code(Start(Request("x"))), absl::StatusCode::kUnavailable);
  backends_.model_status = absl::OkStatus();
  Running running = Start(Request("x"));
  Stream(0).Complete();
  EXPECT_EQ(Code(running), absl::StatusCode::kOk);
}

TEST_F(PipelineTest, QuotasAndRoles) {
  CallRequest wide = Request("x");
  wide.n = 8;
  Running eight = Start(std::move(wide));
  Running refused = Start(Request("x"));
  EXPECT_EQ(services::ReasonOf(*refused.answer->done), "STREAM_QUOTA");
  EXPECT_THAT(Metrics(), HasSubstr(R"(cogumi_quota_refusals_total{reason="STREAM_QUOTA",)"
                                   R"(tenant="acme"} 1)"));
  for (size_t i = 0; i < 8; ++i) Stream(i).Complete();
  Running after = Start(Request("x"));
  Stream(8).Complete();
  EXPECT_EQ(Code(after), absl::StatusCode::kOk);

  CallRequest nobody = Request("x");
  nobody.identity.user = false;
  nobody.identity.is_operator = true;
  EXPECT_EQ(Code(Start(std::move(nobody))), absl::StatusCode::kPermissionDenied);
}

TEST_F(PipelineTest, BrokenOffAnswersArePaidFor) {
  limits_["acme"] = {.tokens_per_minute = 100};
  QuotaManager quotas(limits_, clock_);
  PipelineParts parts = pipeline_->parts();
  parts.quotas = &quotas;
  Pipeline pipeline(PipelineOptions{}, parts);
  auto answer = std::make_shared<Recorder>();
  auto call = pipeline.Prepare(Request(std::string(400, 'x')), answer);
  call->Start();
  Stream(0).Text("a");
  call->Cancel(absl::CancelledError("gone"));
  // About a hundred for the prompt and one for the answer.
  EXPECT_EQ(services::ReasonOf(quotas.Admit("acme", 1).status()), "TOKEN_QUOTA");
}

TEST_F(PipelineTest, WhoLeavesBeforeTheFirstTokenPaysForThePrompt) {
  limits_["acme"] = {.tokens_per_minute = 100};
  QuotaManager quotas(limits_, clock_);
  PipelineParts parts = pipeline_->parts();
  parts.quotas = &quotas;
  Pipeline pipeline(PipelineOptions{}, parts);
  auto recorder = std::make_shared<Recorder>();
  auto call = pipeline.Prepare(Request(std::string(1000, 'x')), recorder);
  call->Start();
  call->Cancel(absl::CancelledError("gone"));
  EXPECT_EQ(recorder->outcome.usage.prompt_tokens(), 251);
  EXPECT_EQ(services::ReasonOf(quotas.Admit("acme", 1).status()), "TOKEN_QUOTA");
  // What the decoder refused cost nothing.
  clock_.Advance(3600);
  recorder = std::make_shared<Recorder>();
  pipeline.Prepare(Request(std::string(1000, 'x')), recorder)->Start();
  Stream(1).Finish(absl::ResourceExhaustedError("the queue is full"));
  EXPECT_EQ(recorder->outcome.usage.prompt_tokens(), 0);
  EXPECT_TRUE(quotas.Admit("acme", 1).ok());
}

TEST_F(PipelineTest, AnotherDecoderIsAskedWhatItServes) {
  Start(Request("x"));
  Stream(0).Complete();
  EXPECT_EQ(backends_.model_calls, 1);
  // The connection broke: behind it may be another process with another model.
  backends_.generation = 1;
  backends_.model.mutable_model()->set_id("other");
  Running running = Start(Request("x"));
  EXPECT_EQ(backends_.model_calls, 2);
  EXPECT_EQ(models_.Peek()->model().id(), "other");
  Stream(1).Complete();
  CallRequest request = Request("x");
  request.chat->set_model("tiny");
  EXPECT_EQ(Code(Start(std::move(request))), absl::StatusCode::kNotFound);
  EXPECT_EQ(backends_.model_calls, 2);
  // While it cannot be asked, nobody is told of the old one.
  backends_.generation = 2;
  backends_.model_status = absl::UnavailableError("gone");
  EXPECT_EQ(Code(Start(Request("x"))), absl::StatusCode::kUnavailable);
  backends_.model_status = absl::OkStatus();
  Start(Request("x"));
  EXPECT_EQ(backends_.streams.size(), 3u);
  Stream(2).Complete();
}

TEST_F(PipelineTest, TheRecordsAreBounded) {
  for (int i = 0; i < 40; ++i) {
    Running running = Start(Request("x"));
    Stream(static_cast<size_t>(i)).Complete();
  }
  EXPECT_FALSE(explain_.Find("r24").has_value());
  EXPECT_TRUE(explain_.Find("r25").has_value());
  EXPECT_TRUE(explain_.Find("r40").has_value());
}

}  // namespace
}  // namespace cogumi::gateway
