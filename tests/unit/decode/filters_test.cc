#include "engine/decode/filters.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "gtest/gtest.h"
#include "tests/support/long_tests.h"
#include "tests/unit/decode/logits_for_tests.h"

namespace cogumi {
namespace {

std::set<TokenId> Kept(const std::vector<float>& logits, const Filters& filters) {
  SamplerScratch scratch;
  FilterCandidates(logits.data(), logits.size(), *std::max_element(logits.begin(), logits.end()),
                   filters, scratch);
  std::set<TokenId> kept;
  for (const Candidate& c : scratch.candidates) {
    EXPECT_TRUE(kept.insert(c.id).second) << "twice: " << c.id;
    EXPECT_EQ(c.logit, logits[static_cast<size_t>(c.id)]);
  }
  return kept;
}

// Sorts everything. `slack`: leaves a verdict open when top-p's sum comes closer than this to it.
struct Naive {
  std::set<TokenId> kept;
  bool close = false;
};
Naive KeptNaively(const std::vector<float>& logits, const Filters& filters) {
  std::vector<TokenId> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto logit = [&](TokenId id) { return logits[static_cast<size_t>(id)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](TokenId a, TokenId b) { return logit(a) > logit(b); });
  order.resize(std::min(order.size(), filters.top_k));
  std::vector<double> p;
  double sum = 0;
  for (const TokenId id : order) {
    p.push_back(std::exp(static_cast<double>(filters.scale) *
                         (static_cast<double>(logit(id)) - static_cast<double>(logit(order[0])))));
    sum += p.back();
  }
  Naive result;
  double reached = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    if (filters.top_p < 1 && i > 0 && reached / sum >= filters.top_p) break;
    reached += p[i];
    if (filters.top_p < 1 && std::abs(reached / sum - filters.top_p) < 1e-6) result.close = true;
    const double ratio = p[i] / p[0];
    if (std::abs(ratio / static_cast<double>(filters.min_p) - 1) < 1e-5) result.close = true;
    if (ratio >= static_cast<double>(filters.min_p)) result.kept.insert(order[i]);
  }
  return result;
}

TEST(Filters, KeepWhatTheNaiveOnesKeep) {
  std::mt19937_64 random(1);
  int compared = 0;
  for (int trial = 0; trial < Trials(3000, 20); ++trial) {
    const size_t count = 1 + random() % (trial % 10 == 0 ? 3000 : 300);
    std::vector<float> logits = RandomLogits(count, trial % 3 == 0 ? 0.5f : 4.0f, random());
    if (trial % 4 == 0) {  // many equal logits
      for (float& logit : logits) logit = std::round(logit);
    }
    const auto chance = [&](int in) { return static_cast<int>(random() % 100) < in; };
    const auto unit = [&] { return static_cast<double>(random() % 100000 + 1) / 100001; };
    Filters filters;
    filters.scale = static_cast<float>(0.2 + 3 * unit());
    filters.top_k = chance(50) ? 1 + random() % count : count;
    filters.top_p = chance(60) ? unit() : 1;
    filters.min_p = chance(40) ? static_cast<float>(unit()) : 0;
    const Naive naive = KeptNaively(logits, filters);
    if (naive.close) continue;
    ++compared;
    ASSERT_EQ(Kept(logits, filters), naive.kept)
        << "trial " << trial << " count " << count << " k " << filters.top_k << " p "
        << filters.top_p << " min " << filters.min_p;
  }
  EXPECT_GT(compared, 2500);
}

TEST(Filters, TopPKeepsTheTokenThatReachesItAndAlwaysOne) {
  const std::vector<float> logits = {0, 0, 0, 0};  // a quarter each
  const auto top_p = [&](double p) { return Kept(logits, {1, 4, p, 0}); };
  EXPECT_EQ(top_p(1e-9), (std::set<TokenId>{0}));
  EXPECT_EQ(top_p(0.25), (std::set<TokenId>{0}));
  EXPECT_EQ(top_p(0.2500001), (std::set<TokenId>{0, 1}));
  EXPECT_EQ(top_p(0.75), (std::set<TokenId>{0, 1, 2}));
  EXPECT_EQ(top_p(0.9999999), (std::set<TokenId>{0, 1, 2, 3}));
}

TEST(Filters, TopPRefersToWhatTopKLeft) {
  const std::vector<float> logits = {3, 3, 3, 3, 3, 3, 3, 3};
  EXPECT_EQ(Kept(logits, {1, 4, 0.5, 0}), (std::set<TokenId>{0, 1}));
  EXPECT_EQ(Kept(logits, {1, 8, 0.5, 0}), (std::set<TokenId>{0, 1, 2, 3}));
}

TEST(Filters, EqualLogitsRankByLowestId) {
  std::vector<float> logits(1000, 1.0f);
  logits[700] = 2;
  EXPECT_EQ(Kept(logits, {1, 3, 1, 0}), (std::set<TokenId>{0, 1, 700}));
  SamplerScratch scratch;
  GatherTop(logits.data(), logits.size(), 1, scratch);
  ASSERT_EQ(scratch.candidates.size(), 1u);
  EXPECT_EQ(scratch.candidates[0].id, 700);
}

TEST(Filters, MinPIsRelativeToTheMostLikely) {
  const std::vector<float> logits = {0, std::log(0.5f), std::log(0.1f), -50};
  EXPECT_EQ(Kept(logits, {1, 4, 1, 0.49f}), (std::set<TokenId>{0, 1}));
  EXPECT_EQ(Kept(logits, {1, 4, 1, 0.51f}), (std::set<TokenId>{0}));
  EXPECT_EQ(Kept(logits, {1, 4, 1, 0.09f}), (std::set<TokenId>{0, 1, 2}));
  EXPECT_EQ(Kept(logits, {2, 4, 1, 0.24f}), (std::set<TokenId>{0, 1}));  // after temperature
}

TEST(Filters, ExtremeScaleLeavesTheLargest) {
  const std::vector<float> logits = {1, 5, 4.999f, 5};
  EXPECT_EQ(Kept(logits, {1e30f, 4, 0.4, 0}), (std::set<TokenId>{1}));
  EXPECT_EQ(Kept(logits, {1e30f, 4, 1, 0.5f}), (std::set<TokenId>{1, 3}));
}

}  // namespace
}  // namespace cogumi
