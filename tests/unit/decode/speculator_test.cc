// The controller against simulated texts and costs: time is counted, never measured.
#include "engine/decode/speculator.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "engine/decode/ngram_drafter.h"
#include "gtest/gtest.h"

namespace cogumi {
namespace {

// What a sequence will say is known here; a draft says the same with a given chance a token.
class CoinDrafter : public Drafter {
 public:
  CoinDrafter(double chance, double pass_seconds, FakeClock* clock)
      : chance_(chance), pass_seconds_(pass_seconds), clock_(clock) {}

  int32_t Propose(std::span<DraftOrder> orders) override {
    int32_t passes = 0;
    int32_t behind = 0;
    for (DraftOrder& order : orders) {
      behind += Behind(order.context);
      read_[order.context.sequence] = static_cast<int32_t>(order.context.tokens.size());
      const int32_t at = static_cast<int32_t>(order.context.tokens.size());
      order.draft->tokens.clear();
      order.draft->evidence = pass_seconds_ > 0 ? 0 : kMinNgram;
      for (int32_t i = 0; i < order.length; ++i) {
        const bool right = static_cast<double>(random_() % 10000) < chance_ * 10000;
        order.draft->tokens.push_back(right ? Truth(at + i) : -1);
      }
      passes = std::max(passes, order.length);
      tokens_ += order.length;
    }
    clock_->Advance(passes * pass_seconds_ + behind * token_seconds_);
    ++calls_;
    return behind > 10 * static_cast<int32_t>(orders.size()) ? 0 : passes;
  }
  int32_t Behind(const DraftContext& context) const override {
    if (token_seconds_ == 0) return 0;
    const auto found = read_.find(context.sequence);
    return static_cast<int32_t>(context.tokens.size()) - (found == read_.end() ? 0 : found->second);
  }
  void Forget(uint64_t sequence) override {
    ++forgotten_;
    read_.erase(sequence);
  }
  // A token that it is behind costs so much; a call that reads more than a few says nothing of
  // passes.
  void SetReading(double token_seconds) { token_seconds_ = token_seconds; }

  static TokenId Truth(int32_t position) { return position % 97; }
  void SetChance(double chance) { chance_ = chance; }
  int64_t calls() const { return calls_; }
  int64_t tokens() const { return tokens_; }
  int64_t forgotten() const { return forgotten_; }

 private:
  double chance_;
  const double pass_seconds_;
  double token_seconds_ = 0;
  FakeClock* const clock_;
  std::map<uint64_t, int32_t> read_;
  std::mt19937_64 random_{5};
  int64_t calls_ = 0;
  int64_t tokens_ = 0;
  int64_t forgotten_ = 0;
};

struct Simulation {
  // `cost`: seconds of a step by its rows. A pass of the drafter costs `pass`, 0 for lookup.
  Simulation(Speculation drafter, double chance, double pass, std::function<double(int)> cost)
      : drafter_kind(drafter), step_cost(std::move(cost)) {
    auto coin = std::make_unique<CoinDrafter>(chance, pass, &clock);
    drafts = coin.get();
    std::unique_ptr<Drafter> lookup, model;
    (drafter == Speculation::kNgram ? lookup : model) = std::move(coin);
    speculator = std::make_unique<Speculator>(std::move(lookup), std::move(model), &clock);
  }

  // Tokens per second of `sequences` over `steps`.
  double Run(size_t sequences, int steps) {
    if (lengths.size() != sequences) lengths.assign(sequences, 10);
    const double start = clock.Now();
    int64_t tokens = 0;
    rows = 0;
    for (int step = 0; step < steps; ++step) tokens += OneStep(sequences);
    return static_cast<double>(tokens) / (clock.Now() - start);
  }

  // Answers the tokens that it yielded.
  int64_t OneStep(size_t sequences) {
    int64_t tokens = 0;
    std::vector<std::vector<TokenId>> texts(sequences), chosen_drafts(sequences);
    std::vector<DraftTarget> targets(sequences);
    for (size_t i = 0; i < sequences; ++i) {
      texts[i].assign(static_cast<size_t>(lengths[i]), 1);
      targets[i] = {{i + 1, texts[i], {}, nullptr}, drafter_kind, kAnswer, &chosen_drafts[i]};
    }
    speculator->Speculate(targets, most_rows);
    int32_t step_rows = static_cast<int32_t>(sequences);
    for (const auto& draft : chosen_drafts) step_rows += static_cast<int32_t>(draft.size());
    EXPECT_LE(step_rows, static_cast<int32_t>(sequences) + most_rows);
    rows += step_rows;
    clock.Advance(step_cost(step_rows));
    for (size_t i = 0; i < sequences; ++i) {
      std::vector<TokenId> chosen;
      for (size_t k = 0; k <= chosen_drafts[i].size(); ++k) {
        chosen.push_back(CoinDrafter::Truth(lengths[i] + static_cast<int32_t>(k)));
        if (k < chosen_drafts[i].size() && chosen_drafts[i][k] != chosen.back()) break;
      }
      speculator->Observe(i + 1, chosen);
      lengths[i] += static_cast<int32_t>(chosen.size());
      tokens += static_cast<int64_t>(chosen.size());
    }
    speculator->ObserveStep(step_rows, step_cost(step_rows));
    return tokens;
  }

  // Tokens per second of groups of answers to prompts of so many tokens.
  double RunAnswers(size_t sequences, int groups, int32_t prompt) {
    const double start = clock.Now();
    int64_t tokens = 0;
    for (int group = 0; group < groups; ++group) {
      lengths.assign(sequences, prompt);
      while (lengths[0] < prompt + kAnswer) tokens += OneStep(sequences);
      for (size_t i = 0; i < sequences; ++i) speculator->Forget(i + 1);
    }
    return static_cast<double>(tokens) / (clock.Now() - start);
  }

  static constexpr int32_t kAnswer = 128;  // tokens
  FakeClock clock;
  const Speculation drafter_kind;
  std::function<double(int)> step_cost;
  CoinDrafter* drafts = nullptr;
  std::unique_ptr<Speculator> speculator;
  std::vector<int32_t> lengths;
  int32_t most_rows = 32;
  int64_t rows = 0;  // of the last Run
};

// Bound by memory: rows are nearly free up to eight, then cost.
double Flat(int rows) { return 4e-3 * (1 + 0.02 * (rows - 1) + 0.12 * std::max(0, rows - 8)); }
// Bound by arithmetic from the first row on.
double Linear(int rows) { return 1e-3 * rows; }

// The best fixed length, by formula.
double BestFixed(double chance, double pass, const std::function<double(int)>& cost) {
  double best = 0;
  for (int k = 0; k <= kMaxDraft; ++k) {
    double tokens = 1;
    double all = 1;
    for (int i = 0; i < k; ++i) tokens += all *= chance;
    best = std::max(best, tokens / (cost(1 + k) + k * pass));
  }
  return best;
}

TEST(Speculator, ComesNearTheBestFixedLength) {
  for (const double chance : {0.05, 0.3, 0.6, 0.8, 0.95}) {
    for (const double pass : {0.0, 0.4e-3, 1.5e-3}) {
      const Speculation kind = pass == 0 ? Speculation::kNgram : Speculation::kDraftModel;
      Simulation simulation(kind, chance, pass, Flat);
      simulation.Run(1, 300);
      EXPECT_GT(simulation.Run(1, 3000), 0.93 * BestFixed(chance, pass, Flat))
          << "chance " << chance << ", pass " << pass;
    }
  }
}

TEST(Speculator, NeverLosesMuchFromTheFirstStepOn) {
  for (const auto& cost : {std::function<double(int)>(Flat), std::function<double(int)>(Linear)}) {
    for (const double chance : {0.0, 0.1, 0.5, 0.9}) {
      for (const size_t sequences : {size_t{1}, size_t{8}, size_t{32}}) {
        for (const double pass : {0.0, 2e-3}) {
          const Speculation kind = pass == 0 ? Speculation::kNgram : Speculation::kDraftModel;
          Simulation simulation(kind, chance, pass, cost);
          const double plain = static_cast<double>(sequences) / cost(static_cast<int>(sequences));
          EXPECT_GT(simulation.Run(sequences, 2000), 0.97 * plain)
              << "chance " << chance << ", sequences " << sequences << ", pass " << pass;
        }
      }
    }
  }
}

TEST(Speculator, LosesNothingWherePredictionsErr) {
  // Every size of a step has a cost of its own that is never what its neighbours suggest, and
  // measurements scatter: the best of many predictions is one that errs.
  std::mt19937_64 random(3);
  const auto cost = [&random](int rows) {
    const double own = 1 + 0.1 * std::sin(rows * 12.9898);
    const double scatter = 0.9 + 0.2 * static_cast<double>(random() % 1000) / 1000;
    return 1e-3 * rows * (rows == 32 ? 1 : 1.1 * own) * scatter;
  };
  for (const double chance : {0.5, 0.8}) {
    Simulation simulation(Speculation::kNgram, chance, 0, cost);
    EXPECT_GT(simulation.Run(32, 1000), 0.97 * 1000) << "chance " << chance;
  }
}

TEST(Speculator, DraftsLessInALargeBatch) {
  // In a batch of 32 a row costs as much as it may bring.
  const auto cost = [](int rows) { return 4e-3 * std::max(1.0, rows / 8.0); };
  Simulation one(Speculation::kNgram, 0.7, 0, cost);
  one.Run(1, 200);
  one.Run(1, 500);
  EXPECT_GT(one.rows, 500 * 4);
  Simulation many(Speculation::kNgram, 0.7, 0, cost);
  many.Run(32, 200);
  many.Run(32, 500);
  EXPECT_LT(many.rows, 500 * 33);
}

TEST(Speculator, SwitchesAUselessModelOffAndAsksItRarely) {
  Simulation simulation(Speculation::kDraftModel, 0, 1e-3, Flat);
  simulation.Run(1, 500);
  const int64_t before = simulation.drafts->calls();
  simulation.Run(1, 20000);
  const int64_t asked = simulation.drafts->calls() - before;
  EXPECT_GT(asked, 2);
  EXPECT_LT(asked, 60);
}

TEST(Speculator, ReadingPromptsCostsNoMoreThanItBrings) {
  // A draft model as large as the one that verifies reads a prompt in the time of many steps.
  const auto large = [](int rows) { return 3e-3 * std::max(1.0, rows / 3.0); };
  for (const size_t sequences : {size_t{1}, size_t{8}, size_t{32}}) {
    for (const double chance : {0.0, 0.9, 1.0}) {
      Simulation simulation(Speculation::kDraftModel, chance, 3e-3, large);
      simulation.drafts->SetReading(0.4e-3);
      const double plain = static_cast<double>(sequences) / large(static_cast<int>(sequences));
      EXPECT_GT(simulation.RunAnswers(sequences, 20, 250), 0.975 * plain)
          << "sequences " << sequences << ", chance " << chance;
    }
  }
  // A small one pays although it reads them too.
  Simulation simulation(Speculation::kDraftModel, 0.9, 0.2e-3, Flat);
  simulation.drafts->SetReading(0.03e-3);
  simulation.RunAnswers(1, 20, 250);
  EXPECT_GT(simulation.RunAnswers(1, 20, 250), 2 / Flat(1));
}

TEST(Speculator, ComesBackWhenDraftsGetBetter) {
  for (const Speculation kind : {Speculation::kNgram, Speculation::kDraftModel}) {
    Simulation simulation(kind, 0, kind == Speculation::kNgram ? 0 : 0.3e-3, Flat);
    simulation.Run(1, 1000);
    const double before = simulation.Run(1, 1000);
    simulation.drafts->SetChance(0.9);
    simulation.Run(1, 8000);
    EXPECT_GT(simulation.Run(1, 1000), 2 * before);
  }
}

TEST(Speculator, AsksOnlyForWhatIsWanted) {
  Simulation simulation(Speculation::kNgram, 1, 0, Flat);
  simulation.Run(1, 50);
  const std::vector<TokenId> text(10, 1);
  for (const int32_t limit : {0, 1, 3}) {
    std::vector<TokenId> draft, other;
    std::vector<DraftTarget> targets = {
        {{1, text, {}, nullptr}, Speculation::kNgram, limit, &draft},
        {{2, text, {}, nullptr}, Speculation::kOff, kMaxDraft, &other}};
    simulation.speculator->Speculate(targets, 32);
    EXPECT_LE(draft.size(), static_cast<size_t>(limit));
    EXPECT_TRUE(other.empty());
  }
  std::vector<TokenId> draft;
  std::vector<DraftTarget> targets = {
      {{1, text, {}, nullptr}, Speculation::kNgram, kMaxDraft, &draft}};
  simulation.speculator->Speculate(targets, 2);
  EXPECT_EQ(draft.size(), 2u);
  draft.clear();
  simulation.speculator->Speculate(targets, 0);
  EXPECT_TRUE(draft.empty());
}

TEST(Speculator, ForgetsWhatHasEnded) {
  Simulation simulation(Speculation::kNgram, 0.5, 0, Flat);
  simulation.Run(3, 5);
  simulation.speculator->Forget(2);
  simulation.speculator->Forget(2);
  simulation.speculator->Forget(99);
  EXPECT_EQ(simulation.drafts->forgotten(), 1);
  const TokenId token = 3;
  simulation.speculator->Observe(2, std::span(&token, 1));  // unknown: nothing happens
}

TEST(Speculator, KnowsWhatItHas) {
  FakeClock clock;
  const Speculator none(nullptr, nullptr, &clock);
  EXPECT_FALSE(none.Has(Speculation::kNgram));
  EXPECT_FALSE(none.Has(Speculation::kDraftModel));
  const Simulation model(Speculation::kDraftModel, 0, 0, Flat);
  EXPECT_TRUE(model.speculator->Has(Speculation::kDraftModel));
  EXPECT_FALSE(model.speculator->Has(Speculation::kNgram));
  EXPECT_FALSE(model.speculator->Has(Speculation::kOff));
}

}  // namespace
}  // namespace cogumi
