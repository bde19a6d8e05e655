// What requests share: the prefix cache, prompts under way, and what is evicted when.
#include <algorithm>
#include <string>

#include "gtest/gtest.h"
#include "tests/unit/runtime/scheduler_harness.h"

namespace cogumi {
namespace {

void ExpectAnswer(const RecordingSink& sink, const GenerationRequest& request,
                  int32_t context = 512) {
  const FakeAnswer expected =
      AnswerOf(request.tokens, request.sampling, context, request.roles);
  ASSERT_EQ(sink.ends(), 1);
  EXPECT_TRUE(sink.status().ok()) << sink.status();
  EXPECT_EQ(sink.tokens(), expected.tokens);
}

uint64_t Rows(const SchedulerHarness& h) { return h.scheduler.Stats().step_rows; }

TEST(SchedulerPrefix, TheSamePromptAgainComputesItsLastPage) {
  SchedulerHarness h({});
  const GenerationRequest request = GreedyRequest(PromptOf(200), 3);
  const auto first = h.MustSubmit(request);
  h.Finish();
  EXPECT_EQ(Rows(h), 202u);
  const auto second = h.MustSubmit(request);
  EXPECT_EQ(h.Step(), 200 - 192);
  h.Finish();
  ExpectAnswer(*first, request);
  ExpectAnswer(*second, request);
  EXPECT_EQ(first->completion().usage.cached_tokens, 0);
  EXPECT_EQ(second->completion().usage.cached_tokens, 192);
  EXPECT_EQ(second->completion().usage.prompt_tokens, 200);
  const EngineStats stats = h.scheduler.Stats();
  EXPECT_EQ(stats.prefix_queries, 400u);
  EXPECT_EQ(stats.prefix_hits, 192u);
  EXPECT_EQ(stats.prompt_tokens, 400u);
  EXPECT_EQ(stats.kv_pages_cached, 3);
  h.ExpectEmpty();
}

TEST(SchedulerPrefix, OneTokenAtLeastIsComputed) {
  SchedulerHarness h({});
  const GenerationRequest request = GreedyRequest(PromptOf(128), 3);
  h.MustSubmit(request);
  h.Finish();
  const auto second = h.MustSubmit(request);
  h.Finish();
  ExpectAnswer(*second, request);
  EXPECT_EQ(second->completion().usage.cached_tokens, 64);
}

TEST(SchedulerPrefix, TheFifthTurnComputesOnlyWhatIsNew) {
  SchedulerHarness h({});
  GenerationRequest request = GreedyRequest({}, 40);
  int32_t known = 0;  // tokens that were computed for the turn before
  for (int turn = 0; turn < 5; ++turn) {
    const std::vector<TokenId> question = PromptOf(30, turn);
    request.tokens.insert(request.tokens.end(), question.begin(), question.end());
    request.roles.resize(request.tokens.size(), TokenRole::kPrompt);
    const auto sink = h.MustSubmit(request);
    const int32_t length = static_cast<int32_t>(request.tokens.size());
    const int32_t computed = h.Step();
    h.Finish();
    ExpectAnswer(*sink, request);
    EXPECT_EQ(computed, length - sink->completion().usage.cached_tokens);
    EXPECT_LT(computed, length - known + kKvPageTokens) << "turn " << turn;
    const std::vector<TokenId> answer = sink->tokens();
    request.tokens.insert(request.tokens.end(), answer.begin(), answer.end());
    request.roles.resize(request.tokens.size(), TokenRole::kGenerated);
    known = static_cast<int32_t>(request.tokens.size()) - 1;
  }
  EXPECT_EQ(known, 349);
}

TEST(SchedulerPrefix, NothingIsSharedAcrossTenantsAdaptersAndRoles) {
  SchedulerHarness h({});
  GenerationRequest request = GreedyRequest(PromptOf(100), 2);
  const auto cached = [&] {
    const auto sink = h.MustSubmit(request);
    h.Finish();
    ExpectAnswer(*sink, request);
    return sink->completion().usage.cached_tokens;
  };
  EXPECT_EQ(cached(), 0);
  request.tenant = "other";
  EXPECT_EQ(cached(), 0);
  request.adapter = "digest";
  EXPECT_EQ(cached(), 0);
  request.roles.assign(100, TokenRole::kPrompt);
  EXPECT_EQ(cached(), 64);
  request.roles[7] = TokenRole::kGenerated;
  EXPECT_EQ(cached(), 0);
  EXPECT_EQ(cached(), 64);
}

TEST(SchedulerPrefix, OffMeansNothingIsKept) {
  SchedulerOptions options;
  options.prefix_cache = false;
  SchedulerHarness h(options);
  for (int i = 0; i < 2; ++i) {
    h.MustSubmit(GreedyRequest(PromptOf(200), 1));
    h.Finish();
  }
  EXPECT_EQ(Rows(h), 400u);
  EXPECT_EQ(h.scheduler.Stats().prefix_queries, 0u);
  EXPECT_EQ(h.cache->used_bytes(), 0);
}

TEST(SchedulerPrefix, ScoredTextsAreComputedWhole) {
  SchedulerHarness h({});
  h.MustSubmit(GreedyRequest(PromptOf(200), 1));
  h.Finish();
  GenerationRequest score;
  score.tokens = PromptOf(200);
  score.score = true;
  const auto sink = h.MustSubmit(score);
  h.Finish();
  EXPECT_EQ(sink->completion().prompt_logprobs.size(), 199u);
  EXPECT_EQ(Rows(h), 200u + 199u);
}

// n > 1: one prompt, several answers.
TEST(SchedulerPrefix, OnePromptSubmittedTogetherIsComputedOnce) {
  for (const int32_t chunk : {17, 64, 100, 256}) {
    for (const int32_t length : {10, 64, 65, 100, 128, 129, 300}) {
      SCOPED_TRACE(testing::Message() << "chunk " << chunk << ", prompt " << length);
      SchedulerOptions options;
      options.prefill_chunk = chunk;
      SchedulerHarness h(options);
      std::vector<GenerationRequest> requests;
      std::vector<std::shared_ptr<RecordingSink>> sinks;
      for (uint64_t i = 0; i < 4; ++i) {
        GenerationRequest request = GreedyRequest(PromptOf(static_cast<size_t>(length)), 30);
        request.sampling.temperature = 1;
        request.sampling.seed = i;
        requests.push_back(request);
        sinks.push_back(h.MustSubmit(request));
      }
      h.Finish();
      int32_t cached = 0;
      for (size_t i = 0; i < 4; ++i) {
        ExpectAnswer(*sinks[i], requests[i]);
        cached += sinks[i]->completion().usage.cached_tokens;
      }
      EXPECT_NE(sinks[0]->tokens(), sinks[1]->tokens());
      // The prompt once; of the others its last token, which their answers begin with.
      EXPECT_EQ(Rows(h), static_cast<uint64_t>(length + 3 + 4 * 29));
      EXPECT_EQ(cached, 3 * (length - 1));
      h.ExpectEmpty();
    }
  }
}

TEST(SchedulerPrefix, ALaterTwinOfARunningPromptSharesItsLastPageToo) {
  SchedulerHarness h({});
  const GenerationRequest request = GreedyRequest(PromptOf(100), 60);
  h.MustSubmit(request);
  for (int i = 0; i < 40; ++i) h.Step();  // the first page of the answer is full
  const auto second = h.MustSubmit(request);
  EXPECT_EQ(h.Step(), 2);
  h.Finish();
  ExpectAnswer(*second, request);
  EXPECT_EQ(second->completion().usage.cached_tokens, 99);
  h.ExpectEmpty();
}

TEST(SchedulerPrefix, ACommonBeginningUnderWayIsComputedOnce) {
  SchedulerOptions options;
  options.prefill_chunk = 64;
  SchedulerHarness h(options);
  std::vector<GenerationRequest> requests;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 3; ++i) {
    std::vector<TokenId> prompt = PromptOf(192);
    const std::vector<TokenId> own = PromptOf(50, 10 + i);
    prompt.insert(prompt.end(), own.begin(), own.end());
    requests.push_back(GreedyRequest(prompt, 1));
    sinks.push_back(h.MustSubmit(requests.back()));
  }
  h.Finish();
  for (size_t i = 0; i < 3; ++i) ExpectAnswer(*sinks[i], requests[i]);
  EXPECT_EQ(Rows(h), 192u + 3 * 50u);
}

TEST(SchedulerPrefix, WhoWaitedComputesWhenTheLeaderIsGone) {
  SchedulerOptions options;
  options.prefill_chunk = 30;
  SchedulerHarness h(options);
  const GenerationRequest request = GreedyRequest(PromptOf(200), 3);
  RequestHandle leader = 0;
  h.MustSubmit(request, &leader);
  const auto follower = h.MustSubmit(request);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(h.Step(), 30);
  h.scheduler.Cancel(leader);
  h.Finish();
  ExpectAnswer(*follower, request);
  EXPECT_EQ(follower->completion().usage.cached_tokens, 64);
  EXPECT_EQ(Rows(h), 90u + 200u - 64u + 2u);
}

TEST(SchedulerPrefix, NobodyWaitsForALeaderThatStandsStill) {
  SchedulerOptions options;
  options.prefill_chunk = 64;
  options.context_length = 256;
  // The leader's next page is wanted by a decoding sequence of higher priority again and again.
  SchedulerHarness h(options, 6);
  GenerationRequest important = GreedyRequest(PromptOf(10, 9), 240);
  important.priority = 5;
  h.MustSubmit(important);
  h.Step();
  const GenerationRequest request = GreedyRequest(PromptOf(200), 3);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 3; ++i) sinks.push_back(h.MustSubmit(request));
  h.Finish();
  for (const auto& sink : sinks) ExpectAnswer(*sink, request, 256);
  h.ExpectEmpty();
}

TEST(SchedulerPrefix, WhatIsRememberedGivesWayBeforeAnybodyIsPreempted) {
  SchedulerOptions options;
  options.context_length = 256;
  SchedulerHarness h(options, 8);
  for (int i = 0; i < 4; ++i) {
    h.MustSubmit(GreedyRequest(PromptOf(130, i), 1));
    h.Finish();
  }
  EXPECT_GE(h.scheduler.Stats().kv_pages_cached, 7);
  std::vector<GenerationRequest> requests;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 2; ++i) {
    requests.push_back(GreedyRequest(PromptOf(100, 10 + i), 150));  // four pages
    sinks.push_back(h.MustSubmit(requests.back()));
  }
  h.Step();
  EXPECT_EQ(h.scheduler.Stats().running, 2);  // what is remembered counts as free
  h.Finish();
  for (size_t i = 0; i < 2; ++i) ExpectAnswer(*sinks[i], requests[i], 256);
  EXPECT_EQ(h.scheduler.Stats().preemptions, 0u);
  EXPECT_GE(h.scheduler.Stats().prefix_evictions, 8u);
}

TEST(SchedulerPrefix, WhoWasPreemptedFindsItsPagesIfTheyAreStillThere) {
  SchedulerOptions options;
  options.max_running = 2;
  SchedulerHarness h(options);
  GenerationRequest a = GreedyRequest(PromptOf(150), 30);
  a.tenant = "a";
  const auto one = h.MustSubmit(a);
  const auto same = h.MustSubmit(a);
  h.Step();
  h.Step();
  GenerationRequest b = GreedyRequest(PromptOf(20, 3), 2);
  b.tenant = "b";
  const auto other = h.MustSubmit(b);  // takes a place from the tenant that has two
  h.Step();
  h.Step();
  EXPECT_EQ(h.scheduler.Stats().preemptions, 1u);
  EXPECT_GE(other->tokens().size(), 1u);
  h.Finish();
  ExpectAnswer(*one, a);
  ExpectAnswer(*same, a);
  ExpectAnswer(*other, b);
  // 150 + 1 rows of the prompts, 29 + 29 + 20 + 1 others, and what was lost of a page.
  EXPECT_LT(Rows(h), 151u + 58u + 21u + kKvPageTokens);
  EXPECT_EQ(one->completion().usage.cached_tokens + same->completion().usage.cached_tokens, 149);
}

TEST(SchedulerPrefix, ASequenceThatNeedsTheWholeCacheGetsIt) {
  SchedulerOptions options;
  options.context_length = 320;
  options.prefill_chunk = 50;
  SchedulerHarness h(options, 5);
  for (int i = 0; i < 3; ++i) {
    const GenerationRequest request = GreedyRequest(PromptOf(200, i), 120);
    const auto sink = h.MustSubmit(request);
    h.Finish();
    ExpectAnswer(*sink, request, 320);
    EXPECT_LE(h.cache->used_bytes(), h.cache->budget_bytes());
  }
  // And with its own beginning remembered.
  const GenerationRequest again = GreedyRequest(PromptOf(200, 2), 120);
  const auto sink = h.MustSubmit(again);
  h.Finish();
  ExpectAnswer(*sink, again, 320);
  EXPECT_EQ(h.scheduler.Stats().preemptions, 0u);
  h.ExpectEmpty();
}

TEST(SchedulerPrefix, AFaultLeavesNothingToBeFound) {
  SchedulerHarness h({});
  h.model.on_forward = [](const StepPlan&) { return absl::InternalError("broken"); };
  h.MustSubmit(GreedyRequest(PromptOf(200), 3));
  h.Step();
  EXPECT_EQ(h.scheduler.Stats().kv_pages_cached, 0);
  h.ExpectEmpty();
}

}  // namespace
}  // namespace cogumi
