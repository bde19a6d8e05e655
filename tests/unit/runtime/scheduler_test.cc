#include "engine/runtime/scheduler.h"

#include <cmath>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/scheduler_harness.h"

namespace cogumi {
namespace {

using testing::HasSubstr;

void ExpectAnswer(const RecordingSink& sink, const FakeAnswer& expected) {
  EXPECT_EQ(sink.ends(), 1);
  EXPECT_TRUE(sink.status().ok()) << sink.status();
  EXPECT_EQ(sink.tokens(), expected.told);
  EXPECT_EQ(sink.text(), expected.text);
  EXPECT_EQ(sink.completion().finish_reason, expected.finish_reason);
  EXPECT_EQ(sink.completion().matched_stop, expected.matched_stop);
  EXPECT_EQ(sink.completion().usage.completion_tokens,
            static_cast<int32_t>(expected.tokens.size()));
}

TEST(Scheduler, OneRequestFromPromptToLastToken) {
  SchedulerHarness h({});
  GenerationRequest request = GreedyRequest(PromptOf(5), 7);
  request.template_digest = "t";
  const FakeAnswer expected = AnswerOf(request.tokens, request.sampling, 512);
  const auto sink = h.MustSubmit(request);
  EXPECT_EQ(h.Step(), 5);  // the prompt, and the first token
  EXPECT_EQ(sink->tokens().size(), 1u);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(h.Step(), 1);
  ExpectAnswer(*sink, expected);
  EXPECT_EQ(h.Step(), 0);
  h.ExpectEmpty();
  const Completion& completion = sink->completion();
  EXPECT_EQ(completion.usage.prompt_tokens, 5);
  EXPECT_EQ(completion.prompt_tokens, PromptOf(5));
  EXPECT_EQ(completion.receipt.seed, 12345u);
  EXPECT_EQ(completion.receipt.template_digest, "t");
  EXPECT_EQ(completion.timings.queue, 0);
  EXPECT_EQ(completion.timings.prefill, 1);
  EXPECT_EQ(completion.timings.decode, 6);
  EXPECT_EQ(completion.timings.time_to_first_token, 1);
  const EngineStats stats = h.scheduler.Stats();
  EXPECT_EQ(stats.steps, 7u);
  EXPECT_EQ(stats.step_rows, 11u);
  EXPECT_EQ(stats.step_seconds, 7);
  EXPECT_EQ(stats.prompt_tokens, 5u);
  EXPECT_EQ(stats.generated_tokens, 7u);
  EXPECT_EQ(stats.finished_length, 1u);
}

TEST(Scheduler, PromptsAreComputedInChunksBesideDecoding) {
  SchedulerOptions options;
  options.prefill_chunk = 10;
  SchedulerHarness h(options);
  const auto first = h.MustSubmit(GreedyRequest(PromptOf(4), 50));
  EXPECT_EQ(h.Step(), 4);
  const auto second = h.MustSubmit(GreedyRequest(PromptOf(23, 1), 2));
  const auto third = h.MustSubmit(GreedyRequest(PromptOf(6, 2), 2));
  EXPECT_EQ(h.Step(), 11);  // a decoding row, then 5 of each prompt
  EXPECT_EQ(h.Step(), 12);  // the last row of a prompt is like one of decoding; 10 of the second
  EXPECT_EQ(third->tokens().size(), 1u);
  EXPECT_EQ(second->tokens().size(), 0u);
  EXPECT_EQ(h.Step(), 10);  // two decoding rows, and the second's last 8
  EXPECT_EQ(second->tokens().size(), 1u);
  EXPECT_EQ(first->tokens().size(), 4u);  // never held up
}

TEST(Scheduler, ShortPromptsPassBesideALongOne) {
  SchedulerOptions options;
  options.prefill_chunk = 40;
  SchedulerHarness h(options);
  const auto document = h.MustSubmit(GreedyRequest(PromptOf(400), 2));
  h.Step();
  EXPECT_EQ(h.scheduler.Stats().prompt_tokens, 40u);
  const auto middle = h.MustSubmit(GreedyRequest(PromptOf(60, 1), 2));
  const auto question = h.MustSubmit(GreedyRequest(PromptOf(12, 2), 2));
  EXPECT_EQ(h.Step(), 40);  // 20 of the document, 12 of the question, 8 of the middle one
  EXPECT_EQ(question->tokens().size(), 1u);
  EXPECT_EQ(h.Step(), 41);
  EXPECT_EQ(question->ends(), 1);
  EXPECT_EQ(h.Step(), 40);
  EXPECT_EQ(middle->tokens().size(), 0u);  // 8 + 20 + 20 of 60
  EXPECT_EQ(h.Step(), 40);
  EXPECT_EQ(middle->tokens().size(), 1u);
  // Lower priorities get only what is left; another long one of the same gets its half.
  GenerationRequest low = GreedyRequest(PromptOf(12, 3), 2);
  low.priority = -1;
  const auto waits = h.MustSubmit(low);
  EXPECT_EQ(h.Step(), 41);
  EXPECT_EQ(waits->tokens().size(), 0u);
  h.Finish();
  EXPECT_TRUE(document->status().ok());
}

TEST(Scheduler, GivenRolesAreKept) {
  SchedulerHarness h({});
  GenerationRequest request = GreedyRequest(PromptOf(9), 5);
  request.roles.assign(9, TokenRole::kPrompt);
  request.roles[3] = request.roles[4] = TokenRole::kGenerated;
  const FakeAnswer expected = AnswerOf(request.tokens, request.sampling, 512, request.roles);
  EXPECT_NE(expected.tokens, AnswerOf(request.tokens, request.sampling, 512).tokens);
  const auto sink = h.MustSubmit(request);
  h.Finish();
  ExpectAnswer(*sink, expected);
}

TEST(Scheduler, ARequestJoinsBetweenSteps) {
  SchedulerHarness h({});
  const auto first = h.MustSubmit(GreedyRequest(PromptOf(3), 20));
  h.Step();
  h.Step();
  const auto second = h.MustSubmit(GreedyRequest(PromptOf(4, 1), 20));
  EXPECT_EQ(h.Step(), 5);
  EXPECT_EQ(h.Step(), 2);
  EXPECT_EQ(second->tokens().size(), 2u);
}

TEST(Scheduler, EndTokensEndWithoutText) {
  SchedulerHarness h({});
  // A prompt whose answer ends by itself.
  for (int which = 0;; ++which) {
    ASSERT_LT(which, 1000);
    GenerationRequest request = GreedyRequest(PromptOf(3, which), 60);
    request.sampling.ignore_eos = false;
    const FakeAnswer expected = AnswerOf(request.tokens, request.sampling, 512);
    if (expected.finish_reason != FinishReason::kStop) continue;
    const auto sink = h.MustSubmit(request);
    h.Finish();
    ExpectAnswer(*sink, expected);
    EXPECT_EQ(sink->tokens().back(), kFakeEnd);
    EXPECT_EQ(sink->infos().back().bytes, "<end>");
    EXPECT_EQ(sink->text().find("<end>"), std::string::npos);
    EXPECT_EQ(h.scheduler.Stats().finished_stop, 1u);
    break;
  }
}

TEST(Scheduler, FurtherEndTokensAndStopStrings) {
  SchedulerHarness h({});
  const GenerationRequest plain = GreedyRequest(PromptOf(9), 30);
  const FakeAnswer whole = AnswerOf(plain.tokens, plain.sampling, 512);

  GenerationRequest request = plain;
  request.sampling.stop_token_ids = {whole.tokens[8], 2};
  const auto by_token = h.MustSubmit(request);
  const FakeAnswer expected_by_token = AnswerOf(request.tokens, request.sampling, 512);

  request = plain;
  // Across tokens: the last letters of one piece and the first of the next.
  const std::string stop = whole.text.substr(whole.text.size() / 2, 3);
  ASSERT_EQ(NaiveUtf8(stop), stop);
  request.sampling.stop = {"never comes", stop};
  const auto by_string = h.MustSubmit(request);
  const FakeAnswer expected_by_string = AnswerOf(request.tokens, request.sampling, 512);

  h.Finish();
  ExpectAnswer(*by_token, expected_by_token);
  ExpectAnswer(*by_string, expected_by_string);
  EXPECT_EQ(by_string->completion().matched_stop, stop);
  EXPECT_EQ(by_string->text().find(stop), std::string::npos);
  // Nor do its tokens spell it: they are the text, or a beginning of it.
  std::string spelled;
  for (const TokenInfo& info : by_string->infos()) spelled += info.bytes;
  EXPECT_EQ(by_string->text().compare(0, spelled.size(), spelled), 0) << spelled;
  EXPECT_LT(by_string->tokens().size(), expected_by_string.tokens.size());
}

TEST(Scheduler, SamplesWithTheModelsKernels) {
  static int passes;
  passes = 0;
  SchedulerHarness h({});
  h.model.table.vocabulary.block_maxima = [](const float* values, size_t count, float* maxima) {
    ++passes;
    ReferenceKernels().vocabulary.block_maxima(values, count, maxima);
  };
  GenerationRequest request = GreedyRequest(PromptOf(3), 4);
  request.sampling.temperature = 1;
  request.sampling.top_k = 5;
  h.MustSubmit(request);
  h.Finish();
  EXPECT_EQ(passes, 4);
}

TEST(Scheduler, ReportsAlternativesWithBytes) {
  SchedulerHarness h({});
  GenerationRequest request = GreedyRequest(PromptOf(3), 4);
  request.sampling.logprobs = true;
  request.sampling.top_logprobs = 2;
  const auto sink = h.MustSubmit(request);
  h.Finish();
  for (const TokenInfo& info : sink->infos()) {
    ASSERT_EQ(info.top.size(), 2u);
    EXPECT_EQ(info.top[0].id, info.id);  // greedy
    EXPECT_EQ(info.top[0].bytes, info.bytes);
    EXPECT_EQ(info.top[0].logprob, info.logprob);
    EXPECT_NEAR(info.margin, info.top[0].logprob - info.top[1].logprob, 1e-4);
    EXPECT_LT(info.logprob, 0);
    EXPECT_GT(info.entropy, 0);
  }
}

TEST(Scheduler, HigherPriorityFirstThenArrival) {
  SchedulerOptions options;
  options.max_running = 1;
  SchedulerHarness h(options);
  const auto submit = [&](int32_t priority, int which) {
    GenerationRequest request = GreedyRequest(PromptOf(3, which), 2);
    request.priority = priority;
    return h.MustSubmit(request);
  };
  const auto low = submit(-5, 0);
  const auto first = submit(0, 1);
  const auto second = submit(0, 2);
  const auto high = submit(100, 3);
  std::vector<int> order;
  const std::vector<RecordingSink*> sinks = {low.get(), first.get(), second.get(), high.get()};
  while (!h.scheduler.Idle()) {
    ASSERT_GT(h.Step(), 0);
    for (int i = 0; i < 4; ++i) {
      if (sinks[static_cast<size_t>(i)]->ends() == 1 &&
          std::find(order.begin(), order.end(), i) == order.end()) {
        order.push_back(i);
      }
    }
  }
  EXPECT_EQ(order, (std::vector<int>{3, 1, 2, 0}));
}

TEST(Scheduler, TheQueueIsBounded) {
  SchedulerOptions options;
  options.max_running = 2;
  options.max_queued = 3;
  SchedulerHarness h(options);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 5; ++i) sinks.push_back(h.MustSubmit(GreedyRequest(PromptOf(3, i), 3)));
  auto refused = std::make_shared<RecordingSink>();
  const auto result = h.Submit(GreedyRequest(PromptOf(3), 3), refused);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(result.status().ToString()), HasSubstr("2 requests may run and 3 wait"));
  EXPECT_EQ(h.scheduler.Stats().rejected, 1u);
  EXPECT_EQ(h.scheduler.Stats().queued, 5);
  h.Step();
  EXPECT_EQ(h.scheduler.Stats().running, 2);
  EXPECT_EQ(h.scheduler.Stats().queued, 3);
  EXPECT_FALSE(h.Submit(GreedyRequest(PromptOf(3), 3), refused).ok());
  h.Finish();
  for (const auto& sink : sinks) EXPECT_TRUE(sink->status().ok());
  EXPECT_EQ(refused->ends(), 0);
  EXPECT_TRUE(h.Submit(GreedyRequest(PromptOf(3), 3), refused).ok());
  h.Finish();
}

TEST(Scheduler, CancelInQueuePrefillAndDecode) {
  SchedulerOptions options;
  options.max_running = 2;
  options.prefill_chunk = 16;
  SchedulerHarness h(options);
  RequestHandle decoding = 0;
  RequestHandle prefilling = 0;
  RequestHandle queued = 0;
  const auto a = h.MustSubmit(GreedyRequest(PromptOf(3), 100), &decoding);
  h.Step();
  const auto b = h.MustSubmit(GreedyRequest(PromptOf(300), 100), &prefilling);
  const auto c = h.MustSubmit(GreedyRequest(PromptOf(3), 100), &queued);
  h.Step();
  EXPECT_EQ(h.scheduler.Stats().running, 2);
  EXPECT_EQ(h.scheduler.Stats().queued, 1);
  for (const RequestHandle handle : {decoding, prefilling, queued, RequestHandle{999}}) {
    h.scheduler.Cancel(handle);
  }
  EXPECT_EQ(h.Step(), 0);  // no work is done for them any more
  for (const auto& sink : {a, b, c}) {
    EXPECT_EQ(sink->ends(), 1);
    EXPECT_EQ(sink->status().code(), absl::StatusCode::kCancelled);
  }
  EXPECT_EQ(a->completion().usage.completion_tokens, 2);
  EXPECT_EQ(c->completion().timings.queue, 1);
  EXPECT_EQ(h.scheduler.Stats().cancelled, 3u);
  h.scheduler.Cancel(decoding);  // known no longer
  h.ExpectEmpty();
}

TEST(Scheduler, DeadlinesInQueuePrefillAndDecode) {
  SchedulerOptions options;
  options.max_running = 2;
  options.prefill_chunk = 16;
  SchedulerHarness h(options);
  GenerationRequest request = GreedyRequest(PromptOf(3), 100);
  request.deadline = 3;
  const auto a = h.MustSubmit(request);
  request.tokens = PromptOf(300);
  const auto b = h.MustSubmit(request);
  const auto c = h.MustSubmit(request);
  for (int i = 0; i < 3; ++i) EXPECT_GT(h.Step(), 0);
  EXPECT_EQ(a->ends() + b->ends() + c->ends(), 0);
  EXPECT_EQ(h.Step(), 0);
  for (const auto& sink : {a, b, c}) {
    EXPECT_EQ(sink->ends(), 1);
    EXPECT_EQ(sink->status().code(), absl::StatusCode::kDeadlineExceeded);
  }
  EXPECT_EQ(h.scheduler.Stats().deadline_exceeded, 3u);
  h.ExpectEmpty();
}

TEST(Scheduler, PreemptionDoesNotChangeAnswers) {
  SchedulerOptions options;
  options.context_length = 256;
  SchedulerHarness h(options, 5);  // three sequences of up to four pages
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  std::vector<FakeAnswer> answers;
  for (int i = 0; i < 3; ++i) {
    GenerationRequest request = GreedyRequest(PromptOf(60, i), 190);
    request.priority = i == 1 ? 1 : 0;
    answers.push_back(AnswerOf(request.tokens, request.sampling, 256));
    sinks.push_back(h.MustSubmit(request));
  }
  while (h.scheduler.Stats().preemptions == 0) ASSERT_GT(h.Step(), 0);
  // The youngest of the lowest priority gives way.
  EXPECT_GT(sinks[1]->tokens().size(), sinks[2]->tokens().size());
  h.Finish();
  for (size_t i = 0; i < 3; ++i) {
    ExpectAnswer(*sinks[i], answers[i]);
    EXPECT_EQ(sinks[i]->completion().timings.queue, 0);  // waiting again is no queueing
  }
  EXPECT_EQ(h.scheduler.Stats().prompt_tokens, 180u);  // recomputed ones count once
  EXPECT_EQ(h.scheduler.Stats().generated_tokens, 570u);
  h.ExpectEmpty();
}

TEST(Scheduler, AdmissionLeavesAPageForTheFirstTokens) {
  SchedulerHarness h({}, 6);
  h.MustSubmit(GreedyRequest(PromptOf(100), 50));
  h.Step();  // 2 pages
  const auto second = h.MustSubmit(GreedyRequest(PromptOf(250, 1), 20));
  h.Step();  // 4 pages are free; 4 + 1 are wanted
  EXPECT_EQ(h.scheduler.Stats().running, 1);
  const auto behind = h.MustSubmit(GreedyRequest(PromptOf(3, 2), 2));
  h.Step();  // would fit, but nobody overtakes
  EXPECT_EQ(behind->tokens().size(), 0u);
  h.Finish();
  EXPECT_TRUE(second->status().ok());
}

TEST(Scheduler, AdmissionCountsPagesThatPromptsWillStillTake) {
  SchedulerOptions options;
  options.prefill_chunk = 16;
  for (const bool together : {true, false}) {
    SchedulerHarness h(options, 6);
    h.MustSubmit(GreedyRequest(PromptOf(250), 2));  // 4 pages, one of them taken by a first step
    if (!together) h.Step();
    h.MustSubmit(GreedyRequest(PromptOf(100, 1), 2));  // 2 + 1 pages
    h.Step();
    EXPECT_EQ(h.scheduler.Stats().running, 1);
    EXPECT_EQ(h.scheduler.Stats().kv_pages_used, 1);
    h.Finish();
    EXPECT_EQ(h.scheduler.Stats().preemptions, 0u);
  }
}

TEST(Scheduler, ContextOverflowNamesBothNumbers) {
  SchedulerHarness h({});
  const auto refusal = [&](size_t prompt, std::optional<int32_t> max_tokens) {
    GenerationRequest request = GreedyRequest(PromptOf(prompt), 1);
    request.sampling.max_tokens = max_tokens;
    return h.Submit(request, std::make_shared<RecordingSink>()).status();
  };
  EXPECT_EQ(refusal(500, 13),
            absl::OutOfRangeError(
                "prompt of 500 tokens and max_tokens 13 exceed the context of 512"));
  EXPECT_EQ(refusal(9000, 100),
            absl::OutOfRangeError(
                "prompt of 9000 tokens and max_tokens 100 exceed the context of 512"));
  EXPECT_EQ(refusal(512, std::nullopt).code(), absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(refusal(500, 12).ok());
  EXPECT_TRUE(refusal(511, std::nullopt).ok());
  EXPECT_EQ(refusal(0, 5).code(), absl::StatusCode::kInvalidArgument);
  h.Finish();
  h.ExpectEmpty();
}

TEST(Scheduler, WithoutMaxTokensTheContextIsFilled) {
  SchedulerHarness h({});
  GenerationRequest request = GreedyRequest(PromptOf(500), 1);
  request.sampling.max_tokens.reset();
  const auto sink = h.MustSubmit(request);
  h.Finish();
  EXPECT_EQ(sink->completion().usage.completion_tokens, 12);
  EXPECT_EQ(sink->completion().finish_reason, FinishReason::kLength);
}

TEST(Scheduler, BadRequestsNameTheField) {
  SchedulerHarness h({});
  const auto refusal = [&](const std::function<void(GenerationRequest&)>& change) {
    GenerationRequest request = GreedyRequest(PromptOf(4), 3);
    change(request);
    const auto result = h.Submit(request, std::make_shared<RecordingSink>());
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(result.status().message().data(), result.status().message().size());
  };
  EXPECT_THAT(refusal([](auto& r) { r.priority = -101; }), HasSubstr("priority: -101"));
  EXPECT_THAT(refusal([](auto& r) { r.priority = 101; }), HasSubstr("priority: 101"));
  EXPECT_THAT(refusal([](auto& r) { r.deadline = std::nan(""); }), HasSubstr("deadline: "));
  EXPECT_THAT(refusal([](auto& r) { r.deadline = -1; }), HasSubstr("deadline: -1"));
  EXPECT_THAT(refusal([](auto& r) { r.tokens[2] = kFakeVocabulary; }), HasSubstr("tokens[2]: 97"));
  EXPECT_THAT(refusal([](auto& r) { r.tokens[0] = -1; }), HasSubstr("tokens[0]: -1"));
  EXPECT_THAT(refusal([](auto& r) { r.roles.resize(3); }), HasSubstr("roles: 3 roles of 4"));
  EXPECT_THAT(refusal([](auto& r) { r.sampling.top_k = 98; }), HasSubstr("top_k: 98"));
  EXPECT_THAT(refusal([](auto& r) { r.sampling.max_tokens = 513; }), HasSubstr("max_tokens: 513"));
  h.ExpectEmpty();
}

TEST(Scheduler, LogitsThatAreNotFiniteEndThatRequestOnly) {
  SchedulerHarness h({});
  std::vector<TokenId> prompt = PromptOf(4);
  prompt.back() = kFakePoison;
  const auto poisoned = h.MustSubmit(GreedyRequest(prompt, 5));
  const auto healthy = h.MustSubmit(GreedyRequest(PromptOf(4), 5));
  h.Finish();
  EXPECT_EQ(poisoned->status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(poisoned->text(), "");
  EXPECT_EQ(poisoned->tokens().size(), 0u);
  EXPECT_TRUE(healthy->status().ok());
  EXPECT_EQ(h.scheduler.Stats().failed, 1u);
  h.ExpectEmpty();
}

TEST(Scheduler, AFailedForwardEndsItsSequences) {
  SchedulerOptions options;
  options.max_running = 1;
  SchedulerHarness h(options);
  const auto first = h.MustSubmit(GreedyRequest(PromptOf(4), 5));
  const auto second = h.MustSubmit(GreedyRequest(PromptOf(4), 5));
  h.Step();
  h.model.on_forward = [](const StepPlan&) { return absl::InternalError("broken"); };
  h.Step();
  EXPECT_EQ(first->status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(first->status().ToString()), HasSubstr("broken"));
  EXPECT_EQ(second->ends(), 0);
  h.model.on_forward = nullptr;
  h.Finish();
  EXPECT_TRUE(second->status().ok());
  h.ExpectEmpty();
}

TEST(Scheduler, ScoresEveryTokenAfterTheFirst) {
  SchedulerOptions options;
  options.extra_logit_rows = 7;
  SchedulerHarness h(options);
  GenerationRequest request;
  request.tokens = PromptOf(30);
  request.score = true;
  request.sampling.top_logprobs = 3;
  const auto sink = h.MustSubmit(request);
  const auto other = h.MustSubmit(GreedyRequest(PromptOf(4), 9));
  h.Finish();
  EXPECT_TRUE(other->status().ok());
  ASSERT_TRUE(sink->status().ok()) << sink->status();
  EXPECT_EQ(sink->tokens().size(), 0u);
  const std::vector<TokenInfo>& scores = sink->completion().prompt_logprobs;
  ASSERT_EQ(scores.size(), 29u);
  uint64_t state = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    state = FakeState(state, request.tokens[i], TokenRole::kPrompt);
    const std::vector<float> logits = FakeLogits(state, request.tokens[i]);
    const TokenId next = request.tokens[i + 1];
    EXPECT_EQ(scores[i].id, next);
    EXPECT_NEAR(static_cast<double>(scores[i].logprob),
                static_cast<double>(logits[static_cast<size_t>(next)]) -
                    Summarise(logits).log_sum_exp,
                1e-5);
    EXPECT_EQ(scores[i].top.size(), 3u);
    EXPECT_EQ(scores[i].bytes, h.tokenizer.TokenBytes(next, true));
  }
  h.ExpectEmpty();
}

TEST(Scheduler, ScoringATextOfOneTokenOrOfTheWholeContext) {
  SchedulerHarness h({});
  GenerationRequest request;
  request.score = true;
  request.tokens = PromptOf(1);
  const auto one = h.MustSubmit(request);
  request.tokens = PromptOf(512);
  const auto whole = h.MustSubmit(request);
  request.tokens = PromptOf(513);
  EXPECT_EQ(h.Submit(request, std::make_shared<RecordingSink>()).status().code(),
            absl::StatusCode::kOutOfRange);
  h.Finish();
  EXPECT_TRUE(one->status().ok());
  EXPECT_EQ(one->completion().prompt_logprobs.size(), 0u);
  EXPECT_EQ(whole->completion().prompt_logprobs.size(), 511u);
  h.ExpectEmpty();
}

TEST(Scheduler, EndAllTellsEverybodyOnce) {
  SchedulerOptions options;
  options.max_running = 1;
  SchedulerHarness h(options);
  const auto running = h.MustSubmit(GreedyRequest(PromptOf(4), 50));
  const auto waiting = h.MustSubmit(GreedyRequest(PromptOf(4), 50));
  h.Step();
  h.scheduler.EndAll(absl::UnavailableError("over"), h.now);
  h.Deliver();
  for (const auto& sink : {running, waiting}) {
    EXPECT_EQ(sink->ends(), 1);
    EXPECT_EQ(sink->status().code(), absl::StatusCode::kUnavailable);
  }
  h.ExpectEmpty();
}

}  // namespace
}  // namespace cogumi
