// A scheduler with a fake model under it, driven step by step.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "engine/core/clock.h"
#include "engine/decode/speculator.h"
#include "engine/runtime/scheduler.h"
#include "gtest/gtest.h"
#include "tests/unit/runtime/fake_parts.h"

namespace cogumi {

struct SchedulerHarness {
  // `drafter`: asked for every request that does not choose; null: no speculation.
  explicit SchedulerHarness(SchedulerOptions from, int pages = 64,
                            std::unique_ptr<Drafter> drafter = nullptr)
      : options(Completed(std::move(from), pages, drafter != nullptr)),
        model(options.context_length, Limits(options)),
        cache(*KvCache::Create(model.kv_shape(),
                               static_cast<int64_t>(model.kv_shape().WideBytes()) * pages)),
        speculator(drafter == nullptr ? nullptr
                                      : std::make_unique<Speculator>(std::move(drafter), nullptr,
                                                                     &clock)),
        scheduler(options, cache.get(), &tokenizer, speculator.get()) {}

  static SchedulerOptions Completed(SchedulerOptions options, int pages, bool drafts) {
    options.speculation = drafts ? Speculation::kNgram : Speculation::kOff;
    options.vocabulary = kFakeVocabulary;
    if (options.context_length == 0) options.context_length = std::min(512, pages * kKvPageTokens);
    if (options.seed == nullptr) options.seed = [] { return uint64_t{12345}; };
    return options;
  }
  static ModelOptions Limits(const SchedulerOptions& options) {
    ModelOptions limits;
    limits.max_rows = options.max_running + options.prefill_chunk + options.extra_logit_rows;
    limits.max_logit_rows = options.max_running + options.extra_logit_rows;
    return limits;
  }

  absl::StatusOr<RequestHandle> Submit(GenerationRequest request,
                                       std::shared_ptr<RecordingSink> sink) {
    auto sequence = scheduler.Prepare(std::move(request), std::move(sink));
    if (!sequence.ok()) return sequence.status();
    return scheduler.Submit(*std::move(sequence), now);
  }
  std::shared_ptr<RecordingSink> MustSubmit(GenerationRequest request,
                                            RequestHandle* handle = nullptr) {
    auto sink = std::make_shared<RecordingSink>();
    const auto result = Submit(std::move(request), sink);
    EXPECT_TRUE(result.ok()) << result.status();
    if (handle != nullptr && result.ok()) *handle = *result;
    return sink;
  }

  // The rows of the step; 0 when there was nothing to compute. The time that `seconds` says passes.
  int32_t Step() {
    const StepPlan* plan = scheduler.Plan(now);
    Deliver();
    now += plan == nullptr ? 1 : seconds(*plan);
    if (plan == nullptr) return 0;
    const int32_t rows = plan->Rows();
    const absl::Status status = model.Forward(*plan, *cache);
    if (status.ok()) scheduler.Sample(model);
    scheduler.Commit(status, now);
    last_forward = status;
    Deliver();
    scheduler.Draft();
    return rows;
  }
  // Until nothing is left; a step without progress is a failure.
  void Finish() {
    while (!scheduler.Idle()) {
      if (Step() == 0 && !scheduler.Idle()) {
        ADD_FAILURE() << "no progress";
        return;
      }
    }
  }
  void Deliver() {
    std::vector<Delivery> deliveries;
    scheduler.TakeDeliveries(deliveries);
    for (Delivery& delivery : deliveries) {
      if (delivery.chunk.has_value()) {
        delivery.sink->OnChunk(*std::move(delivery.chunk));
      } else {
        delivery.sink->OnFinished(*std::move(delivery.end), std::move(delivery.completion));
      }
    }
  }
  void ExpectEmpty() const {
    const EngineStats stats = scheduler.Stats();
    EXPECT_EQ(stats.running, 0);
    EXPECT_EQ(stats.queued, 0);
    EXPECT_EQ(stats.kv_pages_used, 0);
    EXPECT_EQ(stats.kv_bytes_used, 0);
    EXPECT_EQ(cache->used_bytes(), stats.kv_bytes_cached);  // what is only remembered
    EXPECT_TRUE(scheduler.Idle());
  }

  const SchedulerOptions options;
  FakeModel model;
  FakeTokenizer tokenizer;
  std::unique_ptr<KvCache> cache;
  FakeClock clock;
  std::unique_ptr<Speculator> speculator;
  Scheduler scheduler;
  std::function<double(const StepPlan&)> seconds = [](const StepPlan&) { return 1.0; };
  double now = 0;
  absl::Status last_forward;
};

inline GenerationRequest GreedyRequest(std::vector<TokenId> prompt, int32_t max_tokens) {
  GenerationRequest request;
  request.tokens = std::move(prompt);
  request.sampling.temperature = 0;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  return request;
}

// `count` tokens that say which prompt they belong to.
inline std::vector<TokenId> PromptOf(size_t count, int which = 0) {
  std::vector<TokenId> prompt(count);
  for (size_t i = 0; i < count; ++i) {
    prompt[i] = static_cast<TokenId>(2 + (i * 7 + static_cast<size_t>(which) * 31) % 90);
  }
  return prompt;
}

}  // namespace cogumi
