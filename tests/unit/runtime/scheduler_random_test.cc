// Random requests, cancels, deadlines and steps against a simple model of what must come out.
#include <algorithm>
#include <map>
#include <optional>
#include <random>

#include "gtest/gtest.h"
#include "tests/support/long_tests.h"
#include "tests/unit/runtime/oracle_drafter.h"
#include "tests/unit/runtime/scheduler_harness.h"

namespace cogumi {
namespace {

struct Tracked {
  GenerationRequest request;
  std::shared_ptr<RecordingSink> sink;
  FakeAnswer answer;
  bool cancelled = false;
  size_t tokens_at_cancel = 0;
};

class RandomRun {
 public:
  explicit RandomRun(uint64_t seed)
      : random_(seed), harness_(Options(), Pages(), RandomDrafter(seed)) {}

  void Run() {
    const int operations = 20 + Below(60);
    for (int i = 0; i < operations && !testing::Test::HasFailure(); ++i) {
      const int choice = Below(10);
      if (choice < 4) {
        Submit();
      } else if (choice < 5) {
        Cancel();
      } else {
        Step();
      }
    }
    while (!harness_.scheduler.Idle() && !testing::Test::HasFailure()) Step();
    Step();  // tells what the last step ended
    for (const auto& [handle, tracked] : requests_) CheckEnd(tracked);
    harness_.ExpectEmpty();
    const EngineStats stats = harness_.scheduler.Stats();
    EXPECT_EQ(stats.finished_stop + stats.finished_length + stats.cancelled +
                  stats.deadline_exceeded + stats.failed,
              requests_.size());
    EXPECT_EQ(stats.rejected, rejected_);
  }

  EngineStats Stats() const { return harness_.scheduler.Stats(); }

 private:
  int Below(int bound) { return static_cast<int>(random_() % static_cast<uint64_t>(bound)); }

  SchedulerOptions Options() {
    SchedulerOptions options;
    options.context_length = 192;  // three pages
    options.max_running = 1 + Below(6);
    options.max_queued = Below(8);
    options.prefill_chunk = 1 + Below(80);
    options.extra_logit_rows = 1 + Below(12);
    options.prefix_cache = Below(5) != 0;
    return options;
  }
  int Pages() { return 3 + Below(7); }
  // One run of four speculates, well or badly.
  static std::unique_ptr<Drafter> RandomDrafter(uint64_t seed) {
    if (seed % 4 != 0) return nullptr;
    return std::make_unique<OracleDrafter>(seed % 8 == 0 ? 0.9 : 0.4, seed);
  }

  void Submit() {
    GenerationRequest request;
    const int length = 1 + Below(Below(3) == 0 ? 150 : 30);
    // Few texts, so that beginnings are shared.
    request.tokens = PromptOf(static_cast<size_t>(length), Below(3));
    if (Below(40) == 0) request.tokens.back() = kFakePoison;
    request.tenant = Below(3) == 0 ? "a" : "b";
    if (Below(6) == 0) {
      request.roles.assign(request.tokens.size(), TokenRole::kPrompt);
      for (int i = Below(3) * 20; i < std::min(length, 90); ++i) {
        request.roles[static_cast<size_t>(i)] = TokenRole::kGenerated;
      }
    }
    request.priority = Below(3) == 0 ? Below(5) - 2 : 0;
    if (Below(6) == 0) request.deadline = harness_.now + Below(30);
    request.score = Below(8) == 0;
    if (Below(5) == 0) request.speculation = Speculation::kOff;
    SamplingParams& sampling = request.sampling;
    sampling.seed = random_();
    if (Below(2) == 0) sampling.temperature = 0;
    if (Below(3) == 0) sampling.top_k = 5;
    if (Below(4) == 0) sampling.repetition_penalty = 1.5f;
    if (Below(4) == 0) sampling.frequency_penalty = 0.5f;
    const int left = 192 - static_cast<int>(request.tokens.size());
    if (Below(4) != 0) sampling.max_tokens = 1 + Below(left);
    sampling.ignore_eos = Below(2) == 0;
    if (Below(3) == 0) sampling.stop = {"ab", "c\xC3\xA9", "\xEF\xBF\xBD\n"};
    if (Below(5) == 0) sampling.stop_token_ids = {7, 5};

    Tracked tracked;
    tracked.request = request;
    tracked.sink = std::make_shared<RecordingSink>();
    const bool full =
        live_ >= static_cast<size_t>(harness_.options.max_running + harness_.options.max_queued);
    const auto handle = harness_.Submit(request, tracked.sink);
    if (full) {
      EXPECT_EQ(handle.status().code(), absl::StatusCode::kResourceExhausted);
      ++rejected_;
      return;
    }
    ASSERT_TRUE(handle.ok()) << handle.status();
    ++live_;
    if (request.tokens.back() != kFakePoison && !request.score) {
      tracked.answer = AnswerOf(request.tokens, sampling, 192, request.roles);
    }
    requests_.emplace(*handle, std::move(tracked));
  }

  void Cancel() {
    if (requests_.empty()) return;
    auto it = requests_.begin();
    std::advance(it, Below(static_cast<int>(requests_.size())));
    harness_.scheduler.Cancel(it->first);
    if (it->second.cancelled || it->second.sink->ends() > 0) return;
    it->second.cancelled = true;
    it->second.tokens_at_cancel = it->second.sink->tokens().size();
  }

  void Step() {
    const bool any = live_ > 0;
    const uint64_t ended = Ended();
    const int32_t rows = harness_.Step();
    ASSERT_TRUE(harness_.last_forward.ok()) << harness_.last_forward;
    if (any) {
      ASSERT_TRUE(rows > 0 || Ended() > ended) << "a step without progress";
    }
    live_ = 0;
    for (auto& [handle, tracked] : requests_) {
      if (tracked.sink->ends() == 0) ++live_;
      if (tracked.cancelled) {
        // The cancel came between steps: not one more token.
        ASSERT_EQ(tracked.sink->ends(), 1);
        ASSERT_EQ(tracked.sink->tokens().size(), tracked.tokens_at_cancel);
      }
      if (tracked.request.deadline > 0 && tracked.sink->ends() == 0) {
        // A step plans before its second passes.
        ASSERT_LT(harness_.now - 1, tracked.request.deadline);
      }
    }
    const EngineStats stats = harness_.scheduler.Stats();
    ASSERT_LE(stats.running, harness_.options.max_running);
    ASSERT_EQ(stats.kv_bytes_used + stats.kv_bytes_cached, harness_.cache->used_bytes());
    ASSERT_GE(stats.kv_bytes_used, 0);
    ASSERT_GE(stats.prompt_tokens, prompt_tokens_) << "a counter went back";
    prompt_tokens_ = stats.prompt_tokens;
    ASSERT_EQ(static_cast<size_t>(stats.running + stats.queued), live_);
  }

  uint64_t Ended() const {
    uint64_t ended = 0;
    for (const auto& [handle, tracked] : requests_) {
      ended += static_cast<uint64_t>(tracked.sink->ends());
    }
    return ended;
  }

  void CheckEnd(const Tracked& tracked) const {
    const RecordingSink& sink = *tracked.sink;
    ASSERT_EQ(sink.ends(), 1);
    ASSERT_EQ(sink.chunks_after_end(), 0);
    const std::vector<TokenId> tokens = sink.tokens();
    // Tokens that may belong to a stop string are counted, but not told.
    if (tracked.request.sampling.stop.empty()) {
      ASSERT_EQ(sink.completion().usage.completion_tokens, static_cast<int32_t>(tokens.size()));
    } else {
      ASSERT_GE(sink.completion().usage.completion_tokens, static_cast<int32_t>(tokens.size()));
    }
    ASSERT_EQ(sink.completion().prompt_tokens, tracked.request.tokens);
    if (tracked.request.score) {
      if (sink.status().ok()) {
        ASSERT_EQ(sink.completion().prompt_logprobs.size() + 1, tracked.request.tokens.size());
      }
      return;
    }
    if (tracked.request.tokens.back() == kFakePoison) {
      ASSERT_FALSE(sink.status().ok());
      ASSERT_TRUE(tokens.empty());
      return;
    }
    const FakeAnswer& answer = tracked.answer;
    if (sink.status().ok()) {
      ASSERT_EQ(tokens, answer.told);
      ASSERT_EQ(sink.completion().usage.completion_tokens,
                static_cast<int32_t>(answer.tokens.size()));
      ASSERT_EQ(sink.text(), answer.text);
      ASSERT_EQ(sink.completion().finish_reason, answer.finish_reason);
      ASSERT_EQ(sink.completion().matched_stop, answer.matched_stop);
      return;
    }
    // What was told is a beginning of the undisturbed answer.
    ASSERT_TRUE(tracked.cancelled ||
                sink.status().code() == absl::StatusCode::kDeadlineExceeded)
        << sink.status();
    ASSERT_LE(tokens.size(), answer.told.size());
    ASSERT_TRUE(std::equal(tokens.begin(), tokens.end(), answer.told.begin()));
    ASSERT_EQ(answer.text.compare(0, sink.text().size(), sink.text()), 0);
  }

  std::mt19937_64 random_;
  SchedulerHarness harness_;
  std::map<RequestHandle, Tracked> requests_;
  size_t live_ = 0;
  uint64_t rejected_ = 0;
  uint64_t prompt_tokens_ = 0;
};

TEST(SchedulerRandom, EveryRequestEndsOnceWithTheUndisturbedAnswer) {
  EngineStats sum;
  const auto seeds = static_cast<uint64_t>(Trials(2500));
  for (uint64_t seed = 1; seed <= seeds && !HasFailure(); ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    RandomRun run(seed);
    run.Run();
    const EngineStats stats = run.Stats();
    sum.preemptions += stats.preemptions;
    sum.prefix_hits += stats.prefix_hits;
    sum.prefix_evictions += stats.prefix_evictions;
    sum.rejected += stats.rejected;
    sum.cancelled += stats.cancelled;
    sum.deadline_exceeded += stats.deadline_exceeded;
    sum.failed += stats.failed;
    sum.finished_stop += stats.finished_stop;
    sum.finished_length += stats.finished_length;
    sum.drafted_tokens += stats.drafted_tokens;
    sum.accepted_tokens += stats.accepted_tokens;
  }
  // Every kind of event was there, often.
  EXPECT_GT(sum.preemptions, 500u);
  EXPECT_GT(sum.prefix_hits, 10000u);
  EXPECT_GT(sum.prefix_evictions, 2000u);
  EXPECT_GT(sum.rejected, 500u);
  EXPECT_GT(sum.cancelled, 500u);
  EXPECT_GT(sum.deadline_exceeded, 500u);
  EXPECT_GT(sum.failed, 200u);
  EXPECT_GT(sum.finished_stop, 2000u);
  EXPECT_GT(sum.finished_length, 2000u);
  EXPECT_GT(sum.drafted_tokens, 5000u);
  EXPECT_GT(sum.accepted_tokens, 2000u);
  EXPECT_GT(sum.drafted_tokens - sum.accepted_tokens, 1000u);
}

}  // namespace
}  // namespace cogumi
