#include "engine/decode/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "gtest/gtest.h"
#include "tests/support/long_tests.h"
#include "tests/unit/decode/logits_for_tests.h"

namespace cogumi {
namespace {

SamplingParams Greedy() {
  SamplingParams params;
  params.temperature = 0;
  return params;
}

TokenId SampleId(const Sampler& sampler, const std::vector<float>& logits, int64_t position) {
  SamplerScratch scratch;
  const auto info = sampler.Sample(logits.data(), Summarise(logits), position, scratch);
  EXPECT_TRUE(info.ok()) << info.status();
  return info.ok() ? info->id : -1;
}

Sampler Make(const SamplingParams& params, size_t vocabulary, uint64_t seed = 1,
             const std::vector<TokenId>& prompt = {}) {
  return Sampler(params, seed, prompt, static_cast<int32_t>(vocabulary));
}

// Chi-square of many draws against probabilities; cells expected below 8 are pooled. The draws
// are fixed by the seed, so the bound (6 standard deviations) is no chance of a flaky test.
void ExpectDistribution(const SamplingParams& params, const std::vector<float>& logits,
                        const std::vector<double>& expected, uint64_t seed) {
  const int draws = Trials(40000);
  const Sampler sampler = Make(params, logits.size(), seed);
  std::vector<int> counts(logits.size(), 0);
  SamplerScratch scratch;
  const LogitSummary summary = Summarise(logits);
  for (int64_t position = 0; position < draws; ++position) {
    ++counts[static_cast<size_t>(sampler.Sample(logits.data(), summary, position, scratch)->id)];
  }
  double chi = 0;
  int cells = 0;
  double pooled_expected = 0;
  double pooled_count = 0;
  const auto add = [&](double count, double mean) {
    chi += (count - mean) * (count - mean) / mean;
    ++cells;
  };
  for (size_t i = 0; i < logits.size(); ++i) {
    const double mean = expected[i] * draws;
    if (mean == 0) {
      ASSERT_EQ(counts[i], 0) << "token " << i << " is filtered out";
    } else if (mean < 8) {
      pooled_expected += mean;
      pooled_count += counts[i];
    } else {
      add(counts[i], mean);
    }
  }
  if (pooled_expected > 1) add(pooled_count, pooled_expected);
  const double freedom = std::max(1, cells - 1);
  EXPECT_LT(chi, freedom + 6 * std::sqrt(2 * freedom) + 6) << cells << " cells";
}

std::vector<double> Softmax(const std::vector<float>& logits, double temperature) {
  std::vector<double> p;
  double sum = 0;
  const double max = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  for (const float logit : logits) {
    p.push_back(std::exp((static_cast<double>(logit) - max) / temperature));
    sum += p.back();
  }
  for (double& value : p) value /= sum;
  return p;
}

std::vector<double> Renormalised(std::vector<double> p, double least) {
  double sum = 0;
  for (double& value : p) {
    if (value < least) value = 0;
    sum += value;
  }
  for (double& value : p) value /= sum;
  return p;
}

TEST(Sampler, DrawsFollowTheTemperature) {
  for (const float temperature : {0.3f, 1.0f, 2.0f}) {
    SamplingParams params;
    params.temperature = temperature;
    const std::vector<float> logits = RandomLogits(400, 2, 11);
    ExpectDistribution(params, logits, Softmax(logits, static_cast<double>(temperature)), 5);
  }
}

TEST(Sampler, DrawsFollowEachFilter) {
  const std::vector<float> logits = RandomLogits(300, 2, 12);
  std::vector<double> p = Softmax(logits, 0.9);
  std::vector<double> sorted = p;
  std::sort(sorted.rbegin(), sorted.rend());

  SamplingParams params;
  params.temperature = 0.9f;
  params.top_k = 20;
  ExpectDistribution(params, logits, Renormalised(p, sorted[19]), 6);

  params.top_k = 0;
  params.top_p = 0.8f;
  double reached = 0;
  size_t last = 0;
  while (reached + sorted[last] < 0.8) reached += sorted[last++];
  ExpectDistribution(params, logits, Renormalised(p, sorted[last]), 7);

  params.top_p = 1;
  params.min_p = 0.2f;
  ExpectDistribution(params, logits, Renormalised(p, 0.2 * sorted[0]), 8);
}

TEST(Sampler, DrawsOverAWholeVocabularyReachEveryBlock) {
  const std::vector<float> logits(49152, 1.5f);
  SamplingParams params;
  const Sampler sampler = Make(params, logits.size());
  const LogitSummary summary = Summarise(logits);
  SamplerScratch scratch;
  std::vector<int> counts(48, 0);
  for (int64_t position = 0; position < 4800; ++position) {
    ++counts[static_cast<size_t>(sampler.Sample(logits.data(), summary, position, scratch)->id /
                                 1024)];
  }
  for (const int count : counts) EXPECT_NEAR(count, 100, 60);
}

TEST(Sampler, DrawDependsOnSeedAndPositionOnly) {
  const std::vector<float> logits = RandomLogits(500, 1, 3);
  const std::vector<float> other = RandomLogits(500, 1, 4);
  SamplingParams params;
  std::vector<TokenId> first;
  const Sampler sampler = Make(params, 500, 9);
  for (int64_t position = 0; position < 50; ++position) {
    first.push_back(SampleId(sampler, logits, position));
  }
  const Sampler again = Make(params, 500, 9);
  for (int64_t position = 49; position >= 0; --position) {  // another order, other rows between
    SampleId(again, other, position + 7);
    EXPECT_EQ(SampleId(again, logits, position), first[static_cast<size_t>(position)]);
  }
  const Sampler reseeded = Make(params, 500, 10);
  int equal = 0;
  for (int64_t position = 0; position < 50; ++position) {
    equal += SampleId(reseeded, logits, position) == first[static_cast<size_t>(position)];
  }
  EXPECT_LT(equal, 10);
}

TEST(Sampler, GreedyTakesTheSummarysArgmax) {
  std::vector<float> logits(300, 0);
  logits[70] = logits[200] = 3;
  EXPECT_EQ(SampleId(Make(Greedy(), 300), logits, 0), 70);
  LogitSummary summary = Summarise(logits);
  summary.argmax = 200;  // shows that the row itself is not searched again
  SamplerScratch scratch;
  EXPECT_EQ(Make(Greedy(), 300).Sample(logits.data(), summary, 0, scratch)->id, 200);
}

TEST(Sampler, NeedsTheWholeRowUnlessTheLargestLogitDecides) {
  const auto need = [](const auto& change) {
    SamplingParams params = Greedy();
    change(params);
    return Make(params, 300).need();
  };
  EXPECT_EQ(need([](SamplingParams&) {}), LogitNeed::kTop);
  EXPECT_EQ(need([](SamplingParams& p) { p.temperature = 1, p.top_k = 1; }), LogitNeed::kTop);
  EXPECT_EQ(need([](SamplingParams& p) { p.temperature = 0.1f; }), LogitNeed::kAll);
  EXPECT_EQ(need([](SamplingParams& p) { p.temperature = 1, p.top_k = 2; }), LogitNeed::kAll);
  EXPECT_EQ(need([](SamplingParams& p) { p.logprobs = true; }), LogitNeed::kAll);
  EXPECT_EQ(need([](SamplingParams& p) { p.logit_bias = {{3, 1.0f}}; }), LogitNeed::kAll);
  EXPECT_EQ(need([](SamplingParams& p) { p.presence_penalty = 1; }), LogitNeed::kAll);
  EXPECT_EQ(need([](SamplingParams& p) { p.frequency_penalty = 1; }), LogitNeed::kAll);
  EXPECT_EQ(need([](SamplingParams& p) { p.repetition_penalty = 1.1f; }), LogitNeed::kAll);
  // Who only chooses, as drafters do, tells no log-probabilities.
  SamplingParams told = Greedy();
  told.logprobs = true;
  EXPECT_EQ(Make(told, 300).choice_need(), LogitNeed::kTop);
  told.temperature = 1;
  EXPECT_EQ(Make(told, 300).choice_need(), LogitNeed::kAll);
}

TEST(Sampler, TinyTemperatureIsGreedy) {
  const std::vector<float> logits = RandomLogits(2000, 2, 5);
  SamplingParams params;
  for (const float temperature : {1e-6f, 1e-30f, 1e-38f, 1e-45f}) {
    params.temperature = temperature;
    for (int64_t position = 0; position < 20; ++position) {
      ASSERT_EQ(SampleId(Make(params, 2000), logits, position), Summarise(logits).argmax);
    }
  }
  // Equal ones stay equally likely, even where 1 / temperature is no number.
  std::map<TokenId, int> counts;
  for (int64_t position = 0; position < 100; ++position) {
    ++counts[SampleId(Make(params, 4), {1.0f, 7.0f, 7.0f, 6.9999f}, position)];
  }
  EXPECT_GT(counts[1], 20);
  EXPECT_GT(counts[2], 20);
  EXPECT_EQ(counts[1] + counts[2], 100);
}

TEST(Sampler, LogitBiasForcesAndForbids) {
  const std::vector<float> logits = RandomLogits(300, 2, 6);
  const TokenId top = Summarise(logits).argmax;
  SamplingParams params = Greedy();
  params.logit_bias = {{17, 100.0f}};
  EXPECT_EQ(SampleId(Make(params, 300), logits, 0), 17);
  params.logit_bias = {{top, -100.0f}};
  EXPECT_NE(SampleId(Make(params, 300), logits, 0), top);
  params.temperature = 1;
  for (int64_t position = 0; position < 500; ++position) {
    ASSERT_NE(SampleId(Make(params, 300), logits, position), top);
  }
}

TEST(Sampler, AdjustedTiesGoToTheLowestId) {
  std::vector<float> logits(300, 0);
  SamplingParams params = Greedy();
  params.logit_bias = {{250, 2.0f}, {140, 2.0f}};
  EXPECT_EQ(SampleId(Make(params, 300), logits, 0), 140);
}

TEST(Sampler, PresenceAndFrequencyCountTheAnswerOnly) {
  const std::vector<float> logits = {5.0f, 4.5f, 3.0f};
  SamplingParams params = Greedy();
  params.presence_penalty = 1;
  Sampler presence = Make(params, 3, 1, {0, 0, 0});
  EXPECT_EQ(SampleId(presence, logits, 0), 0);  // the prompt does not count
  presence.Accept(0);
  EXPECT_EQ(SampleId(presence, logits, 1), 1);
  presence.Accept(0);
  presence.Accept(0);
  presence.Accept(1);
  EXPECT_EQ(SampleId(presence, logits, 4), 0);  // once, however often

  params.presence_penalty = 0;
  params.frequency_penalty = 0.4f;
  Sampler frequency = Make(params, 3);
  frequency.Accept(0);
  EXPECT_EQ(SampleId(frequency, logits, 1), 0);
  frequency.Accept(0);
  EXPECT_EQ(SampleId(frequency, logits, 2), 1);
}

TEST(Sampler, RepetitionPenaltyCountsPromptAndAnswerOnce) {
  SamplingParams params = Greedy();
  params.repetition_penalty = 2;
  const std::vector<float> positive = {5.0f, 3.0f, 2.0f};
  Sampler sampler = Make(params, 3, 1, {0, 0});
  EXPECT_EQ(SampleId(sampler, positive, 2), 1);  // 5 / 2 < 3
  sampler.Accept(1);
  EXPECT_EQ(SampleId(sampler, positive, 3), 0);  // 2.5, 1.5, 2
  const std::vector<float> negative = {-1.0f, -1.5f, -9.0f};
  EXPECT_EQ(SampleId(Make(params, 3, 1, {0}), negative, 1), 1);  // -2 < -1.5
}

TEST(Sampler, BiasComesBeforeRepetitionPenalty) {
  SamplingParams params = Greedy();
  params.repetition_penalty = 2;
  params.logit_bias = {{0, 4.0f}};
  // (1 + 4) / 2 = 2.5 < 3; the other order would give 4.5.
  EXPECT_EQ(SampleId(Make(params, 2, 1, {0}), {1.0f, 3.0f}, 1), 1);
}

TEST(Sampler, ExtremePenaltiesStayFinite) {
  SamplingParams params;
  params.repetition_penalty = std::numeric_limits<float>::denorm_min();
  const std::vector<float> logits = {3.0f, 2.0f, -1.0f};
  Sampler sampler = Make(params, 3, 1, {0, 1, 2});
  std::map<TokenId, int> counts;  // both positive logits are at the bound: equally likely
  for (int64_t position = 3; position < 103; ++position) {
    const TokenId id = SampleId(sampler, logits, position);
    ++counts[id];
    sampler.Accept(id);
  }
  EXPECT_GT(counts[0], 20);
  EXPECT_GT(counts[1], 20);
  EXPECT_EQ(counts[2], 0);
}

TEST(Sampler, PresenceSparesPromptTokensThatTheRepetitionPenaltyCounts) {
  SamplingParams params = Greedy();
  params.repetition_penalty = 1.001f;
  params.presence_penalty = 2;
  Sampler sampler = Make(params, 2, 1, {0});
  EXPECT_EQ(SampleId(sampler, {3.0f, 2.0f}, 1), 0);
  sampler.Accept(0);
  EXPECT_EQ(SampleId(sampler, {3.0f, 2.0f}, 2), 1);
}

TEST(Sampler, NotFiniteLogitsAreAnError) {
  SamplerScratch scratch;
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    std::vector<float> logits = {1.0f, bad, 0.0f};
    const LogitSummary summary = Summarise(logits);
    for (const SamplingParams& params : {Greedy(), SamplingParams()}) {
      const auto info = Make(params, 3).Sample(logits.data(), summary, 41, scratch);
      EXPECT_EQ(info.status().code(), absl::StatusCode::kInternal);
      EXPECT_NE(std::string(info.status().ToString()).find("41"), std::string::npos);
    }
    EXPECT_EQ(Sampler::Describe(0, logits.data(), summary, 3, 0, scratch).status().code(),
              absl::StatusCode::kInternal);
  }
}

TEST(Sampler, ReportsRawLogprobsMarginEntropyAndAlternatives) {
  const std::vector<float> logits = RandomLogits(1000, 3, 8);
  const LogitSummary summary = Summarise(logits);
  SamplingParams params;
  params.temperature = 0.1f;
  params.logprobs = true;
  params.top_logprobs = 20;
  params.logit_bias = {{5, 50.0f}};
  SamplerScratch scratch;
  const auto info = Make(params, 1000).Sample(logits.data(), summary, 0, scratch);
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->id, 5);
  const std::vector<double> p = Softmax(logits, 1);
  EXPECT_NEAR(static_cast<double>(info->logprob), std::log(p[5]), 1e-5);
  EXPECT_EQ(info->margin, summary.max - summary.second);
  EXPECT_NEAR(static_cast<double>(info->entropy), summary.entropy, 1e-5);
  std::vector<TokenId> order(1000);
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<TokenId>(i);
  std::sort(order.begin(), order.end(), [&](TokenId a, TokenId b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  ASSERT_EQ(info->top.size(), 20u);
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(info->top[i].id, order[i]);
    EXPECT_NEAR(static_cast<double>(info->top[i].logprob),
                std::log(p[static_cast<size_t>(order[i])]), 1e-5);
  }
}

TEST(Sampler, AlternativesOfASmallVocabulary) {
  const std::vector<float> logits = {1, 3, 3};
  SamplerScratch scratch;
  const auto info = Sampler::Describe(0, logits.data(), Summarise(logits), 3, 20, scratch);
  ASSERT_EQ(info->top.size(), 3u);
  EXPECT_EQ(info->top[0].id, 1);
  EXPECT_EQ(info->top[1].id, 2);
  EXPECT_EQ(info->top[2].id, 0);
}

}  // namespace
}  // namespace cogumi
