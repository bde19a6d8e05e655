// When what was chosen is told: chunks of a stream interval.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

#include "tests/unit/runtime/scheduler_harness.h"

namespace cogumi {
namespace {

using ::testing::ElementsAre;

SchedulerOptions Every(double seconds) {
  SchedulerOptions options;
  options.stream_interval_seconds = seconds;
  return options;
}

// Tokens of each chunk.
class CountingSink : public RecordingSink {
 public:
  void OnChunk(Chunk chunk) override {
    counts.push_back(chunk.tokens.size());
    RecordingSink::OnChunk(std::move(chunk));
  }
  std::vector<size_t> counts;
};

// A step of the harness takes a second.
TEST(SchedulerStream, TokensOfAnIntervalComeTogether) {
  SchedulerHarness h(Every(4));
  const GenerationRequest request = GreedyRequest(PromptOf(5), 11);
  const auto sink = std::make_shared<CountingSink>();
  ASSERT_TRUE(h.Submit(request, sink).ok());
  h.Step();
  EXPECT_EQ(sink->tokens().size(), 1u);  // the first waits for nothing
  // One later would come more than four seconds after the last chunk.
  for (int i = 0; i < 3; ++i) h.Step();
  EXPECT_EQ(sink->tokens().size(), 1u);
  h.Step();
  EXPECT_EQ(sink->tokens().size(), 5u);
  h.Finish();
  EXPECT_THAT(sink->counts, ElementsAre(1, 4, 4, 2));
  const FakeAnswer expected = AnswerOf(request.tokens, request.sampling, h.options.context_length);
  EXPECT_EQ(sink->tokens(), expected.told);
  EXPECT_EQ(sink->text(), expected.text);
  h.ExpectEmpty();
}

TEST(SchedulerStream, StepsAsLongAsTheIntervalTellEveryToken) {
  for (const double interval : {0.0, 1.0, 1.9}) {
    SchedulerHarness h(Every(interval));
    const auto sink = std::make_shared<CountingSink>();
    ASSERT_TRUE(h.Submit(GreedyRequest(PromptOf(5), 6), sink).ok());
    h.Finish();
    EXPECT_THAT(sink->counts, ElementsAre(1, 1, 1, 1, 1, 1)) << interval;
  }
}

TEST(SchedulerStream, NothingWaitsForAPrompt) {
  SchedulerHarness h(Every(100));
  const auto first = h.MustSubmit(GreedyRequest(PromptOf(5), 20));
  for (int i = 0; i < 4; ++i) h.Step();
  EXPECT_EQ(first->tokens().size(), 1u);
  h.MustSubmit(GreedyRequest(PromptOf(5, 1), 2));
  // Before its step.
  ASSERT_NE(h.scheduler.Plan(h.now), nullptr);
  h.Deliver();
  EXPECT_EQ(first->tokens().size(), 4u);
}

TEST(SchedulerStream, WhoGivesWayIsToldBefore) {
  SchedulerOptions options = Every(1000);
  options.context_length = 256;
  SchedulerHarness h(options, 5);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 3; ++i) sinks.push_back(h.MustSubmit(GreedyRequest(PromptOf(60, i), 190)));
  while (h.scheduler.Stats().preemptions == 0) {
    EXPECT_LE(sinks[2]->tokens().size(), 1u);
    ASSERT_GT(h.Step(), 0);
  }
  EXPECT_EQ(sinks[2]->tokens().size(), 5u);
  h.Finish();
  h.ExpectEmpty();
}

TEST(SchedulerStream, WhatWaitsComesBeforeACancelledEnd) {
  SchedulerHarness h(Every(100));
  RequestHandle handle = 0;
  const auto sink = h.MustSubmit(GreedyRequest(PromptOf(5), 20), &handle);
  for (int i = 0; i < 4; ++i) h.Step();
  h.scheduler.Cancel(handle);
  h.Step();
  EXPECT_TRUE(absl::IsCancelled(sink->status()));
  EXPECT_EQ(sink->tokens().size(), 4u);
  EXPECT_EQ(sink->chunks_after_end(), 0);
  h.ExpectEmpty();
}

}  // namespace
}  // namespace cogumi
