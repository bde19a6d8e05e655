// Verification of drafts in the scheduler: what is answered never changes, only the steps.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "engine/decode/ngram_drafter.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/oracle_drafter.h"
#include "tests/unit/runtime/scheduler_harness.h"

namespace cogumi {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

std::unique_ptr<Drafter> Oracle(double chance) {
  return std::make_unique<OracleDrafter>(chance, 1);
}

GenerationRequest SampledRequest(std::vector<TokenId> prompt, int32_t max_tokens, uint64_t seed) {
  GenerationRequest request = GreedyRequest(std::move(prompt), max_tokens);
  request.sampling.temperature = 1;
  request.sampling.seed = seed;
  return request;
}

void ExpectAnswer(const RecordingSink& sink, const GenerationRequest& request) {
  ASSERT_TRUE(sink.status().ok()) << sink.status();
  const FakeAnswer expected = AnswerOf(request.tokens, request.sampling, 512);
  EXPECT_EQ(sink.tokens(), expected.told);
  EXPECT_EQ(sink.completion().usage.completion_tokens,
            static_cast<int32_t>(expected.tokens.size()));
  EXPECT_EQ(sink.text(), expected.text);
  EXPECT_EQ(sink.completion().finish_reason, expected.finish_reason);
  EXPECT_EQ(sink.completion().matched_stop, expected.matched_stop);
}

TEST(Speculation, TakesSeveralTokensAStep) {
  SchedulerHarness h({}, 64, Oracle(1));
  const GenerationRequest request = GreedyRequest(PromptOf(5), 60);
  const auto sink = h.MustSubmit(request);
  int steps = 0;
  while (!h.scheduler.Idle() && steps < 100) steps += h.Step() > 0 ? 1 : 0;
  ExpectAnswer(*sink, request);
  // The prompt, a plain step, then five or six tokens a step on average.
  EXPECT_LE(steps, 20);
  const SpeculationStats& stats = sink->completion().speculation;
  EXPECT_EQ(stats.drafts, steps - 2);
  EXPECT_EQ(stats.accepted_tokens, stats.drafted_tokens);
  EXPECT_EQ(stats.accepted_tokens, 60 - steps);
  EXPECT_THAT(stats.accepted_per_position, SizeIs(8));
  EXPECT_EQ(std::accumulate(stats.accepted_per_position.begin(), stats.accepted_per_position.end(),
                            0),
            stats.accepted_tokens);
  const EngineStats all = h.scheduler.Stats();
  EXPECT_EQ(all.drafts, static_cast<uint64_t>(stats.drafts));
  EXPECT_EQ(all.drafted_tokens, static_cast<uint64_t>(stats.drafted_tokens));
  EXPECT_EQ(all.accepted_tokens, static_cast<uint64_t>(stats.accepted_tokens));
  EXPECT_THAT(all.accepted_per_position, SizeIs(8));
  EXPECT_EQ(all.generated_tokens, 60u);
  h.ExpectEmpty();
}

TEST(Speculation, KeepsOnlyWhatWasChosen) {
  for (const double chance : {0.0, 0.3, 0.8, 1.0}) {
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      SchedulerHarness h({}, 64, std::make_unique<OracleDrafter>(chance, seed));
      std::vector<GenerationRequest> requests;
      std::vector<std::shared_ptr<RecordingSink>> sinks;
      for (int i = 0; i < 5; ++i) {
        GenerationRequest request =
            SampledRequest(PromptOf(static_cast<size_t>(20 + 30 * i), i), 150, seed * 10 + 1);
        SamplingParams& sampling = request.sampling;
        if (i == 0) sampling.temperature = 0;
        if (i == 1) sampling.repetition_penalty = 1.3f;
        if (i == 2) sampling.frequency_penalty = 0.7f;
        if (i == 3) sampling.logit_bias = {{10, 3.0f}, {11, 3.0f}};
        if (i == 4) sampling.top_p = 0.8f;
        sampling.logprobs = true;
        sampling.top_logprobs = 2;
        requests.push_back(request);
        sinks.push_back(h.MustSubmit(request));
      }
      h.Finish();
      SchedulerHarness plain({}, 64);
      for (size_t i = 0; i < requests.size(); ++i) {
        ExpectAnswer(*sinks[i], requests[i]);
        const auto undrafted = plain.MustSubmit(requests[i]);
        plain.Finish();
        ASSERT_EQ(undrafted->infos().size(), sinks[i]->infos().size());
        for (size_t k = 0; k < undrafted->infos().size(); ++k) {
          EXPECT_EQ(undrafted->infos()[k].logprob, sinks[i]->infos()[k].logprob);
          EXPECT_EQ(undrafted->infos()[k].bytes, sinks[i]->infos()[k].bytes);
          EXPECT_THAT(sinks[i]->infos()[k].top, SizeIs(2));
        }
        EXPECT_EQ(undrafted->completion().speculation.drafts, 0);
      }
      h.ExpectEmpty();
      if (HasFailure()) return;
    }
  }
}

TEST(Speculation, EndsInsideADraft) {
  // The undisturbed answer says where; drafts reach beyond every end.
  const std::vector<TokenId> prompt = PromptOf(12);
  const GenerationRequest free = GreedyRequest(prompt, 40);
  const FakeAnswer whole = AnswerOf(prompt, free.sampling, 512);
  for (size_t at = 3; at < 30; ++at) {
    GenerationRequest by_token = free;
    by_token.sampling.stop_token_ids = {whole.tokens[at]};
    GenerationRequest by_text = free;
    const FakeTokenizer tokenizer;
    const std::string bytes(tokenizer.TokenBytes(whole.tokens[at], false));
    if (ReplaceInvalidUtf8(bytes) == bytes && !bytes.empty()) by_text.sampling.stop = {bytes};
    GenerationRequest by_length = free;
    by_length.sampling.max_tokens = static_cast<int32_t>(at);
    for (const GenerationRequest& request : {by_token, by_text, by_length}) {
      SchedulerHarness h({}, 64, Oracle(1));
      const auto sink = h.MustSubmit(request);
      h.Finish();
      ExpectAnswer(*sink, request);
      const SpeculationStats& stats = sink->completion().speculation;
      EXPECT_LE(stats.accepted_tokens, sink->completion().usage.completion_tokens);
      // What lies behind the end was not refused.
      EXPECT_EQ(stats.accepted_tokens, stats.drafted_tokens);
      h.ExpectEmpty();
    }
  }
}

TEST(Speculation, FillsTheContextToItsEnd) {
  SchedulerOptions options;
  options.context_length = 130;  // two pages and two tokens
  SchedulerHarness h(options, 3, Oracle(1));
  GenerationRequest request = GreedyRequest(PromptOf(7), 0);
  request.sampling.max_tokens.reset();
  const auto sink = h.MustSubmit(request);
  h.Finish();
  ASSERT_TRUE(sink->status().ok()) << sink->status();
  EXPECT_EQ(sink->tokens().size(), 123u);
  EXPECT_EQ(sink->tokens(), AnswerOf(request.tokens, request.sampling, 130).tokens);
  h.ExpectEmpty();
}

TEST(Speculation, TakesNoPagesFromOthers) {
  // Three pages for two sequences: drafts that would need a fourth are left out, and nobody is
  // preempted for one.
  SchedulerHarness h({}, 3, Oracle(0.7));
  const GenerationRequest first = GreedyRequest(PromptOf(30, 1), 64);
  const GenerationRequest second = GreedyRequest(PromptOf(30, 2), 34);
  const auto a = h.MustSubmit(first);
  const auto b = h.MustSubmit(second);
  h.Finish();
  ExpectAnswer(*a, first);
  ExpectAnswer(*b, second);
  EXPECT_EQ(h.scheduler.Stats().preemptions, 0u);
  h.ExpectEmpty();
}

TEST(Speculation, BoundsTheRowsOfLogits) {
  SchedulerOptions options;
  options.max_running = 16;
  options.extra_logit_rows = 5;
  SchedulerHarness h(options, 64, Oracle(1));
  size_t most = 0;
  h.model.on_forward = [&](const StepPlan& plan) {
    most = std::max(most, plan.logit_rows.size());
    return absl::OkStatus();
  };
  std::vector<GenerationRequest> requests;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 16; ++i) {
    requests.push_back(GreedyRequest(PromptOf(6, i), 40));
    sinks.push_back(h.MustSubmit(requests.back()));
  }
  GenerationRequest score;
  score.tokens = PromptOf(50);
  score.score = true;
  const auto scored = h.MustSubmit(score);
  h.Finish();
  EXPECT_GT(most, 16u);
  EXPECT_LE(most, 21u);
  for (size_t i = 0; i < sinks.size(); ++i) ExpectAnswer(*sinks[i], requests[i]);
  ASSERT_TRUE(scored->status().ok()) << scored->status();
  EXPECT_EQ(scored->completion().prompt_logprobs.size(), 49u);
}

TEST(Speculation, OffIsOff) {
  SchedulerHarness h({}, 64, Oracle(1));
  GenerationRequest request = GreedyRequest(PromptOf(5), 30);
  request.speculation = Speculation::kOff;
  const auto sink = h.MustSubmit(request);
  h.Finish();
  ExpectAnswer(*sink, request);
  EXPECT_EQ(sink->completion().speculation.drafts, 0);
  EXPECT_EQ(h.scheduler.Stats().drafts, 0u);
}

TEST(Speculation, ADrafterThatIsNotThereIsRefused) {
  SchedulerHarness h({}, 64, Oracle(1));
  GenerationRequest request = GreedyRequest(PromptOf(5), 3);
  request.speculation = Speculation::kDraftModel;
  const absl::Status status = h.Submit(request, std::make_shared<RecordingSink>()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message().data(), status.message().size()),
              HasSubstr("speculation: this engine has no draft model"));
  SchedulerHarness without({}, 64);
  request.speculation = Speculation::kNgram;
  EXPECT_EQ(without.Submit(request, std::make_shared<RecordingSink>()).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(Speculation, CancelMeetsADraft) {
  SchedulerHarness h({}, 64, Oracle(1));
  RequestHandle handle = 0;
  const auto sink = h.MustSubmit(GreedyRequest(PromptOf(5), 200), &handle);
  for (int i = 0; i < 4; ++i) h.Step();
  const size_t before = sink->tokens().size();
  EXPECT_GT(before, 9u);
  h.scheduler.Cancel(handle);  // its next draft is made already
  h.Step();
  EXPECT_EQ(sink->status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(sink->tokens().size(), before);
  h.ExpectEmpty();
}

TEST(Speculation, ErrorsComeAfterWhatIsGood) {
  // The model breaks down after a token that it chooses itself: all before it is told.
  SchedulerHarness h({}, 64, Oracle(1));
  GenerationRequest request = GreedyRequest(PromptOf(5), 60);
  request.sampling.logit_bias = {};
  const FakeAnswer whole = AnswerOf(request.tokens, request.sampling, 512);
  const TokenId bad = whole.tokens[20];
  h.model.logits_of = [bad](uint64_t state, TokenId token) {
    return FakeLogits(state, token == bad ? kFakePoison : token);
  };
  const size_t first = static_cast<size_t>(
      std::find(whole.tokens.begin(), whole.tokens.end(), bad) - whole.tokens.begin());
  const auto sink = h.MustSubmit(request);
  h.Finish();
  EXPECT_EQ(sink->status().code(), absl::StatusCode::kInternal);
  const std::vector<TokenId> told = sink->tokens();
  EXPECT_EQ(told.size(), first + 1);
  EXPECT_TRUE(std::equal(told.begin(), told.end(), whole.tokens.begin()));
  h.ExpectEmpty();
}

// Accepted drafts must not bend the distribution: tokens with lookup drafts, out of one and the
// same row of logits, against the probabilities.
TEST(Speculation, ChosenTokensFollowTheDistribution) {
  std::vector<float> logits(kFakeVocabulary, -30.0f);
  for (size_t i = 0; i < 12; ++i) logits[20 + i] = -0.35f * static_cast<float>(i);
  double total = 0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit));
  SchedulerOptions options;
  options.max_running = 1;  // few rows: drafts pay even when most of them are wrong
  SchedulerHarness h(options, 64, std::make_unique<NgramDrafter>());
  h.model.logits_of = [&](uint64_t, TokenId) { return logits; };
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    sinks.push_back(h.MustSubmit(SampledRequest(PromptOf(3, static_cast<int>(seed)), 500, seed)));
  }
  h.Finish();
  std::map<TokenId, double> counts;
  double all = 0;
  int64_t accepted = 0;
  for (const auto& sink : sinks) {
    accepted += sink->completion().speculation.accepted_tokens;
    for (const TokenId id : sink->tokens()) ++counts[id];
    all += static_cast<double>(sink->tokens().size());
  }
  EXPECT_GT(accepted, 2000) << "too few drafts to say anything";
  double chi = 0;
  for (size_t i = 0; i < 12; ++i) {
    const double mean = all * std::exp(static_cast<double>(logits[20 + i])) / total;
    const double difference = counts[static_cast<TokenId>(20 + i)] - mean;
    chi += difference * difference / mean;
  }
  EXPECT_LT(chi, 31.3);  // 99.9 % of chi-square with 11 degrees of freedom
}

}  // namespace
}  // namespace cogumi
