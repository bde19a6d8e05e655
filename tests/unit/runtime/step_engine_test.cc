// The engine's threads: queueing, delivery, health, drain and shutdown over a fake model.
#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <future>
#include <string>
#include <thread>

#include "engine/core/clock.h"
#include "engine/core/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/fake_parts.h"
#include "tests/unit/runtime/scheduler_harness.h"

namespace cogumi {
namespace {

using testing::HasSubstr;

// A clock that several threads may use.
class SharedClock : public Clock {
 public:
  double Now() const override { return now_.load(); }
  double UnixNow() const override { return 1.7e9 + now_.load(); }
  void Set(double now) { now_.store(now); }

 private:
  std::atomic<double> now_{0};
};

// Stops the step thread inside Forward.
class Gate {
 public:
  absl::Status Pass() {
    std::unique_lock<std::mutex> lock(mutex_);
    ++arrived_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
    return absl::OkStatus();
  }
  void WaitForArrivals(int count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return arrived_ >= count; });
  }
  void SetOpen(bool open) {
    const std::lock_guard<std::mutex> lock(mutex_);
    open_ = open;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0;
  bool open_ = false;
};

std::unique_ptr<Engine> MakeEngine(const EngineOptions& options, EngineParts parts) {
  auto engine = CreateEngineFromParts(options, std::move(parts));
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}
std::unique_ptr<Engine> MakeEngine() { return MakeEngine({}, FakeParts({})); }

std::unique_ptr<Engine> MakeGatedEngine(const EngineOptions& options, Gate* gate) {
  auto model = std::make_unique<FakeModel>(512, ModelOptionsFor(options));
  model->on_forward = [gate](const StepPlan&) { return gate->Pass(); };
  return MakeEngine(options, FakeParts(options, std::move(model)));
}

std::shared_ptr<RecordingSink> MustSubmit(Engine& engine, GenerationRequest request,
                                          RequestHandle* handle = nullptr) {
  auto sink = std::make_shared<RecordingSink>();
  const auto result = engine.Submit(std::move(request), sink);
  EXPECT_TRUE(result.ok()) << result.status();
  if (handle != nullptr && result.ok()) *handle = *result;
  return sink;
}

TEST(StepEngine, AnswersWithAReceipt) {
  const auto engine = MakeEngine();
  GenerationRequest request = GreedyRequest(PromptOf(70), 40);
  request.template_digest = "td";
  request.sampling.seed = 77;
  const FakeAnswer expected = AnswerOf(request.tokens, request.sampling, 512);
  const auto sink = MustSubmit(*engine, request);
  sink->Wait();
  ASSERT_TRUE(sink->status().ok()) << sink->status();
  EXPECT_EQ(sink->tokens(), expected.tokens);
  EXPECT_EQ(sink->text(), expected.text);
  const Receipt& receipt = sink->completion().receipt;
  EXPECT_EQ(receipt.model_digest, std::string(64, 'd'));
  EXPECT_EQ(receipt.template_digest, "td");
  EXPECT_EQ(receipt.kernel_configuration, "fake/f32/kv-f32");
  EXPECT_EQ(receipt.kernel_digest.size(), 64u);
  EXPECT_EQ(receipt.seed, 77u);
  EXPECT_EQ(engine->Configuration().kernel_digest, receipt.kernel_digest);
  EXPECT_NE(receipt.kernel_digest, Sha256::Hex("fake/f32/kv-f32"));  // the version counts too
}

TEST(StepEngine, ManyAtOnceFromManyThreads) {
  EngineOptions options;
  options.max_running = 5;
  options.prefill_chunk = 40;
  options.kv_bytes = static_cast<int64_t>(FakeModel().kv_shape().WideBytes()) * 12;
  const auto engine = MakeEngine(options, FakeParts(options));
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int i = 0; i < 25; ++i) {
        const int which = caller * 100 + i;
        GenerationRequest request =
            GreedyRequest(PromptOf(static_cast<size_t>(1 + which % 150), which), 1 + which % 60);
        request.sampling.temperature = i % 2 == 0 ? 0.0f : 1.0f;
        request.sampling.seed = static_cast<uint64_t>(which);
        RequestHandle handle = 0;
        const auto sink = MustSubmit(*engine, request, &handle);
        if (i % 5 == 4) {
          engine->Cancel(handle);
          sink->Wait();
          continue;
        }
        sink->Wait();
        const FakeAnswer expected = AnswerOf(request.tokens, request.sampling, 512);
        if (sink->tokens() != expected.tokens || sink->text() != expected.text) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong.load(), 0);
  const EngineStats stats = engine->Stats();
  EXPECT_EQ(stats.running, 0);
  EXPECT_EQ(stats.queued, 0);
  EXPECT_EQ(stats.kv_pages_used, 0);
  EXPECT_EQ(stats.kv_pages, 12);
  EXPECT_EQ(stats.finished_stop + stats.finished_length + stats.cancelled, 100u);
}

TEST(StepEngine, SeedsAreDrawnWhenAbsentAndReproduce) {
  const auto engine = MakeEngine();
  GenerationRequest request = GreedyRequest(PromptOf(4), 30);
  request.sampling.temperature = 1;
  const auto first = MustSubmit(*engine, request);
  const auto second = MustSubmit(*engine, request);
  first->Wait();
  second->Wait();
  EXPECT_NE(first->completion().receipt.seed, second->completion().receipt.seed);
  EXPECT_NE(first->tokens(), second->tokens());
  request.sampling.seed = first->completion().receipt.seed;
  const auto again = MustSubmit(*engine, request);
  again->Wait();
  EXPECT_EQ(again->tokens(), first->tokens());
}

TEST(StepEngine, CancelStopsWithinTwoSteps) {
  Gate gate;
  const auto engine = MakeGatedEngine({}, &gate);
  RequestHandle handle = 0;
  const auto sink = MustSubmit(*engine, GreedyRequest(PromptOf(4), 400), &handle);
  gate.WaitForArrivals(1);
  const uint64_t steps = engine->Stats().steps;
  engine->Cancel(handle);
  gate.SetOpen(true);
  sink->Wait();
  EXPECT_EQ(sink->status().code(), absl::StatusCode::kCancelled);
  EXPECT_LE(engine->Stats().steps, steps + 2);
  EXPECT_EQ(engine->Stats().kv_pages_used, 0);
}

TEST(StepEngine, AnIdleEngineMakesNoSteps) {
  const auto engine = MakeEngine();
  const auto sink = MustSubmit(*engine, GreedyRequest(PromptOf(4), 3));
  sink->Wait();
  const uint64_t steps = engine->Stats().steps;
  EXPECT_EQ(steps, 3u);
  for (int i = 0; i < 100; ++i) std::this_thread::yield();
  EXPECT_EQ(engine->Stats().steps, steps);
}

TEST(StepEngine, TheWatchdogFollowsTheStep) {
  SharedClock clock;
  Gate gate;
  EngineOptions options;
  options.watchdog_seconds = 5;
  options.clock = &clock;
  const auto engine = MakeGatedEngine(options, &gate);
  clock.Set(1000);
  EXPECT_TRUE(engine->Healthy());  // idle for however long
  const auto sink = MustSubmit(*engine, GreedyRequest(PromptOf(4), 1));
  gate.WaitForArrivals(1);
  EXPECT_TRUE(engine->Healthy());
  clock.Set(1005);
  EXPECT_TRUE(engine->Healthy());
  clock.Set(1005.001);
  EXPECT_FALSE(engine->Healthy());
  gate.SetOpen(true);
  sink->Wait();
  clock.Set(2000);
  // The turn of the loop that told the end is over in a moment.
  const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!engine->Healthy() && std::chrono::steady_clock::now() < patience) {
    std::this_thread::yield();
  }
  EXPECT_TRUE(engine->Healthy());
}

TEST(StepEngine, DeadlinesUseTheClock) {
  SharedClock clock;
  Gate gate;
  EngineOptions options;
  options.clock = &clock;
  const auto engine = MakeGatedEngine(options, &gate);
  GenerationRequest request = GreedyRequest(PromptOf(4), 400);
  request.deadline = 10;
  const auto sink = MustSubmit(*engine, request);
  gate.WaitForArrivals(1);
  clock.Set(10);
  gate.SetOpen(true);
  sink->Wait();
  EXPECT_EQ(sink->status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(sink->tokens().size(), 1u);
  EXPECT_EQ(sink->completion().timings.time_to_first_token, 10);
}

TEST(StepEngine, DrainFinishesWhatIsHereAndRefusesMore) {
  Gate gate;
  EngineOptions options;
  options.max_running = 1;
  const auto engine = MakeGatedEngine(options, &gate);
  const auto running = MustSubmit(*engine, GreedyRequest(PromptOf(4), 20));
  const auto queued = MustSubmit(*engine, GreedyRequest(PromptOf(4), 20));
  gate.WaitForArrivals(1);
  engine->Drain();
  auto refused = std::make_shared<RecordingSink>();
  const auto result = engine->Submit(GreedyRequest(PromptOf(4), 1), refused);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kUnavailable);
  gate.SetOpen(true);
  running->Wait();
  queued->Wait();
  EXPECT_TRUE(running->status().ok());
  EXPECT_TRUE(queued->status().ok());
  EXPECT_EQ(running->tokens().size(), 20u);
  EXPECT_EQ(refused->ends(), 0);
}

TEST(StepEngine, DestructionEndsEverythingWithUnavailable) {
  Gate gate;
  EngineOptions options;
  options.max_running = 1;
  auto engine = MakeGatedEngine(options, &gate);
  const auto running = MustSubmit(*engine, GreedyRequest(PromptOf(4), 400));
  const auto queued = MustSubmit(*engine, GreedyRequest(PromptOf(4), 400));
  gate.WaitForArrivals(1);
  std::thread destroyer([&] { engine.reset(); });
  gate.SetOpen(true);
  destroyer.join();
  for (const auto& sink : {running, queued}) {
    ASSERT_EQ(sink->ends(), 1);
    EXPECT_EQ(sink->chunks_after_end(), 0);
    // Either the destructor was quick, or the answers were.
    if (!sink->status().ok()) {
      EXPECT_EQ(sink->status().code(), absl::StatusCode::kUnavailable);
    }
  }
}

TEST(StepEngine, GoodEndsWaitForTheDigestBadOnesDoNot) {
  std::promise<std::string> digest;
  EngineParts parts = FakeParts({});
  parts.digest = [&digest] { return digest.get_future().get(); };
  const auto engine = MakeEngine({}, std::move(parts));
  const auto good = MustSubmit(*engine, GreedyRequest(PromptOf(4), 3));
  good->WaitForTokens(3);
  std::vector<TokenId> poison = PromptOf(4);
  poison.back() = kFakePoison;
  const auto bad = MustSubmit(*engine, GreedyRequest(poison, 3));
  bad->Wait();
  EXPECT_EQ(bad->status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(good->ends(), 0);
  digest.set_value("0123");
  good->Wait();
  EXPECT_EQ(good->completion().receipt.model_digest, "0123");
  EXPECT_EQ(engine->Model().digest, "0123");
  EXPECT_EQ(engine->Model().context_length, 512);
}

TEST(StepEngine, SinksAreCalledWithoutALock) {
  // A sink that asks the engine while it is called would wait for itself forever.
  class AskingSink : public RecordingSink {
   public:
    explicit AskingSink(Engine* engine) : engine_(engine) {}
    void OnChunk(Chunk chunk) override {
      running_ = engine_->Stats().running;
      engine_->Cancel(12345);
      RecordingSink::OnChunk(std::move(chunk));
    }
    void OnFinished(absl::Status status, Completion completion) override {
      next_ = std::make_shared<RecordingSink>();
      EXPECT_TRUE(engine_->Submit(GreedyRequest(PromptOf(3), 2), next_).ok());
      RecordingSink::OnFinished(std::move(status), std::move(completion));
    }
    int running_ = -1;
    std::shared_ptr<RecordingSink> next_;

   private:
    Engine* engine_;
  };
  const auto engine = MakeEngine();
  auto sink = std::make_shared<AskingSink>(engine.get());
  ASSERT_TRUE(engine->Submit(GreedyRequest(PromptOf(3), 5), sink).ok());
  sink->Wait();
  sink->next_->Wait();
  EXPECT_TRUE(sink->next_->status().ok());
}

TEST(StepEngine, RefusalsReachTheCaller) {
  EngineOptions options;
  options.max_running = 1;
  options.max_queued = 1;
  Gate gate;
  const auto engine = MakeGatedEngine(options, &gate);
  const auto code = [&](GenerationRequest request) {
    return engine->Submit(std::move(request), std::make_shared<RecordingSink>()).status().code();
  };
  EXPECT_EQ(code(GreedyRequest(PromptOf(500), 100)), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(code(GreedyRequest({}, 1)), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(GreedyRequest({-3}, 1)), absl::StatusCode::kInvalidArgument);
  const auto first = MustSubmit(*engine, GreedyRequest(PromptOf(3), 1));
  const auto second = MustSubmit(*engine, GreedyRequest(PromptOf(3), 1));
  EXPECT_EQ(code(GreedyRequest(PromptOf(3), 1)), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(engine->Stats().rejected, 1u);
  gate.SetOpen(true);
  first->Wait();
  second->Wait();
}

TEST(StepEngine, TokenizesTextTokensAndMessages) {
  const auto engine = MakeEngine();
  const FakeTokenizer tokenizer;
  const auto text = engine->Tokenize(TextPrompt{"bcd<end>\x01", false});
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(text->tokens.size(), 6u);  // "<" and ">" and the last byte are dropped
  EXPECT_EQ(text->dropped_bytes, 3);
  EXPECT_EQ(text->template_digest, "");
  EXPECT_EQ(engine->Tokenize(TextPrompt{"<end>", true})->tokens, (std::vector<TokenId>{kFakeEnd}));
  EXPECT_EQ(engine->Tokenize(std::vector<TokenId>{5, 96})->tokens, (std::vector<TokenId>{5, 96}));
  EXPECT_THAT(std::string(engine->Tokenize(std::vector<TokenId>{5, 97}).status().ToString()),
              HasSubstr("tokens[1]: 97 is outside [0, 96]"));
  const auto chat = engine->Tokenize(std::vector<Message>{{MessageRole::kUser, "b"}});
  EXPECT_EQ(chat->tokens, (std::vector<TokenId>{kFakeBos, tokenizer.FindToken("b")}));
  EXPECT_EQ(chat->template_digest, "template-digest");
  EXPECT_EQ(engine->Tokenize(std::vector<Message>{}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(StepEngine, TextGetsABeginningWhenTheModelWantsOneButNeverTwo) {
  const auto engine = MakeEngine({}, FakeParts({}, nullptr, /*add_bos=*/true));
  const FakeTokenizer tokenizer;
  const TokenId b = tokenizer.FindToken("b");
  EXPECT_EQ(engine->Tokenize(TextPrompt{"b", false})->tokens, (std::vector<TokenId>{kFakeBos, b}));
  EXPECT_EQ(engine->Tokenize(TextPrompt{"<bos>b", true})->tokens,
            (std::vector<TokenId>{kFakeBos, b}));
  EXPECT_EQ(engine->Tokenize(std::vector<TokenId>{b})->tokens, (std::vector<TokenId>{b}));
}

TEST(StepEngine, DetokenizesAndChecksIds) {
  const auto engine = MakeEngine();
  const FakeTokenizer tokenizer;
  const TokenId b = tokenizer.FindToken("b");
  EXPECT_EQ(*engine->Detokenize({b, kFakeEnd, b}, false), "bb");
  EXPECT_EQ(*engine->Detokenize({b, kFakeEnd, b}, true), "b<end>b");
  EXPECT_EQ(engine->Detokenize({b, -1}, true).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(StepEngine, ContextIsWhatOptionsModelAndCacheAllow) {
  const auto context = [](int32_t wanted, int64_t pages) {
    EngineOptions options;
    options.context_length = wanted;
    options.kv_bytes = static_cast<int64_t>(FakeModel().kv_shape().WideBytes()) * pages;
    return MakeEngine(options, FakeParts(options))->Model().context_length;
  };
  EXPECT_EQ(context(0, 100), 512);
  EXPECT_EQ(context(300, 100), 300);
  EXPECT_EQ(context(0, 3), 192);
  EXPECT_EQ(context(300, 3), 192);
}

TEST(StepEngine, TellsWhatItChoseOnceAnInterval) {
  SharedClock clock;  // stands still: only the first token and the end are due
  EngineOptions options;
  options.clock = &clock;
  options.stream_interval_seconds = 1;
  const auto engine = MakeEngine(options, FakeParts(options));
  const auto sink = MustSubmit(*engine, GreedyRequest(PromptOf(4), 8));
  sink->Wait();
  EXPECT_EQ(sink->tokens().size(), 8u);
  EXPECT_EQ(sink->texts().size(), 2u);
}

TEST(StepEngine, BadOptionsAreNamed) {
  const auto refusal = [](const std::function<void(EngineOptions&)>& change) {
    EngineOptions options;
    change(options);
    const auto engine = CreateEngineFromParts(options, FakeParts({}));
    EXPECT_FALSE(engine.ok());
    return std::string(engine.status().ToString());
  };
  EXPECT_THAT(refusal([](auto& o) { o.threads = -1; }), HasSubstr("threads: -1"));
  EXPECT_THAT(refusal([](auto& o) { o.context_length = -1; }), HasSubstr("context_length: -1"));
  EXPECT_THAT(refusal([](auto& o) { o.context_length = 513; }),
              HasSubstr("context_length: 513 is beyond the model's 512"));
  EXPECT_THAT(refusal([](auto& o) { o.kv_bytes = 0; }), HasSubstr("kv_bytes: 0"));
  EXPECT_THAT(refusal([](auto& o) { o.kv_bytes = 1; }), HasSubstr("kv_bytes: 1"));
  EXPECT_THAT(refusal([](auto& o) { o.max_running = 0; }), HasSubstr("max_running: 0"));
  EXPECT_THAT(refusal([](auto& o) { o.max_queued = -1; }), HasSubstr("max_queued: -1"));
  EXPECT_THAT(refusal([](auto& o) { o.prefill_chunk = 0; }), HasSubstr("prefill_chunk: 0"));
  EXPECT_THAT(refusal([](auto& o) { o.step_target_seconds = -1; }),
              HasSubstr("step_target_seconds: -1"));
  EXPECT_THAT(refusal([](auto& o) { o.stream_interval_seconds = std::nan(""); }),
              HasSubstr("stream_interval_seconds: nan"));
  EXPECT_THAT(refusal([](auto& o) { o.watchdog_seconds = 0; }), HasSubstr("watchdog_seconds: 0"));
  EXPECT_THAT(refusal([](auto& o) { o.watchdog_seconds = std::nan(""); }),
              HasSubstr("watchdog_seconds: nan"));
}

}  // namespace
}  // namespace cogumi
