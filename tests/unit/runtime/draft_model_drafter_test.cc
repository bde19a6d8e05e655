#include "engine/decode/draft_model_drafter.h"

#include <memory>
#include <span>
#include <vector>

#include "gtest/gtest.h"
#include "tests/unit/runtime/fake_parts.h"

namespace cogumi {
namespace {

constexpr int32_t kChunk = 16;

struct Fixture {
  explicit Fixture(int pages = 64, int32_t context = 512) {
    ModelOptions limits;
    limits.max_rows = kChunk;
    limits.max_logit_rows = 4;
    auto fake = std::make_unique<FakeModel>(context, limits);
    model = fake.get();
    model->on_forward = [this](const StepPlan& plan) {
      ++passes;
      rows += plan.Rows();
      return fail ? absl::InternalError("broken") : absl::OkStatus();
    };
    const int64_t bytes = static_cast<int64_t>(fake->kv_shape().WideBytes()) * pages;
    drafter = *DraftModelDrafter::Create(std::move(fake), bytes, kChunk);
  }

  std::vector<std::vector<TokenId>> Propose(const std::vector<std::vector<TokenId>>& texts,
                                            int32_t length, uint64_t first_name = 1) {
    std::vector<Draft> drafts(texts.size());
    std::vector<DraftOrder> orders;
    for (size_t i = 0; i < texts.size(); ++i) {
      orders.push_back({{first_name + i, texts[i], Roles(texts[i]), &sampler}, length, &drafts[i]});
    }
    said = drafter->Propose(orders);
    std::vector<std::vector<TokenId>> tokens;
    for (const Draft& draft : drafts) tokens.push_back(draft.tokens);
    return tokens;
  }
  std::vector<TokenId> One(const std::vector<TokenId>& text, int32_t length) {
    return Propose({text}, length)[0];
  }

  // The first two tokens are the prompt.
  static std::span<const TokenRole> Roles(const std::vector<TokenId>& text) {
    static const std::vector<TokenRole> roles = [] {
      std::vector<TokenRole> all(100, TokenRole::kGenerated);
      all[0] = all[1] = TokenRole::kPrompt;
      return all;
    }();
    return std::span(roles).first(text.size());
  }

  // What the model says after `text`, greedily.
  static std::vector<TokenId> Truth(std::vector<TokenId> text, int32_t length) {
    std::vector<TokenId> answer;
    for (int32_t i = 0; i < length; ++i) {
      uint64_t state = 0;
      for (size_t k = 0; k < text.size(); ++k) {
        state = FakeState(state, text[k], k < 2 ? TokenRole::kPrompt : TokenRole::kGenerated);
      }
      answer.push_back(Summarise(FakeLogits(state, text.back())).argmax);
      text.push_back(answer.back());
    }
    return answer;
  }

  const std::vector<TokenId> no_prompt;
  SamplingParams greedy = [] {
    SamplingParams params;
    params.temperature = 0;
    return params;
  }();
  Sampler sampler{greedy, 0, no_prompt, kFakeVocabulary};
  FakeModel* model = nullptr;
  std::unique_ptr<DraftModelDrafter> drafter;
  int passes = 0;
  int rows = 0;
  int32_t said = 0;
  bool fail = false;
};

std::vector<TokenId> Text(int length, int which = 0) {
  std::vector<TokenId> text;
  for (int i = 0; i < length; ++i) text.push_back(2 + (i * 7 + which * 13) % 90);
  return text;
}

TEST(DraftModelDrafter, SaysWhatItsModelSays) {
  Fixture f;
  EXPECT_EQ(f.Propose({Text(5), Text(3, 1), Text(2, 2)}, 4),
            (std::vector<std::vector<TokenId>>{Fixture::Truth(Text(5), 4),
                                               Fixture::Truth(Text(3, 1), 4),
                                               Fixture::Truth(Text(2, 2), 4)}));
  EXPECT_EQ(f.passes, 4) << "a pass a token for all together";
  EXPECT_EQ(f.said, 4);
}

TEST(DraftModelDrafter, GoesOnFromWhatWasAccepted) {
  Fixture f;
  std::vector<TokenId> text = Text(6);
  for (const size_t accepted : {4u, 0u, 2u, 3u, 4u, 1u}) {
    const std::vector<TokenId> truth = Fixture::Truth(text, 4);
    f.rows = 0;
    EXPECT_EQ(f.One(text, 4), truth);
    // What is new since the last call, and three more passes.
    EXPECT_LE(f.rows, 6 + 3);
    text.insert(text.end(), truth.begin(), truth.begin() + static_cast<std::ptrdiff_t>(accepted));
    text.push_back(accepted == 4 ? 50 : (truth[accepted] + 1) % 90);
    EXPECT_EQ(f.drafter->Behind({1, text, {}, &f.sampler}), accepted == 4 ? 1 : 0);
  }
}

TEST(DraftModelDrafter, CatchesUpAChunkAStep) {
  Fixture f;
  const std::vector<TokenId> text = Text(40);
  EXPECT_EQ(f.drafter->Behind({1, text, {}, &f.sampler}), 39);
  EXPECT_TRUE(f.One(text, 3).empty());
  EXPECT_EQ(f.said, 0) << "no ordinary time";
  EXPECT_EQ(f.drafter->Behind({1, text, {}, &f.sampler}), 39 - kChunk);
  EXPECT_TRUE(f.One(text, 3).empty());
  EXPECT_EQ(f.One(text, 3), Fixture::Truth(text, 3));
}

TEST(DraftModelDrafter, TheOldestGivesWayWhenTheBudgetIsUsedUp) {
  Fixture f(2);
  EXPECT_FALSE(f.Propose({Text(5)}, 2, 1)[0].empty());
  EXPECT_FALSE(f.Propose({Text(5, 1)}, 2, 2)[0].empty());
  EXPECT_FALSE(f.Propose({Text(5, 2)}, 2, 3)[0].empty());
  EXPECT_EQ(f.drafter->cache().free_bytes(), 0);
  EXPECT_EQ(f.drafter->Behind({1, Text(5), {}, &f.sampler}), 4) << "gone";
  EXPECT_EQ(f.drafter->Behind({2, Text(5, 1), {}, &f.sampler}), 0);
  // Three at once do not fit: one of them goes without.
  const auto drafts = f.Propose({Text(5), Text(5, 1), Text(5, 2)}, 2);
  EXPECT_EQ(drafts[0], Fixture::Truth(Text(5), 2));
  EXPECT_EQ(drafts[1], Fixture::Truth(Text(5, 1), 2));
  EXPECT_TRUE(drafts[2].empty());
  for (const uint64_t name : {1, 2, 3, 4}) f.drafter->Forget(name);
  EXPECT_EQ(f.drafter->cache().used_bytes(), 0);
}

TEST(DraftModelDrafter, StopsAtItsOwnContext) {
  Fixture f(64, 12);
  EXPECT_EQ(f.One(Text(10), 8), Fixture::Truth(Text(10), 3));
  EXPECT_TRUE(f.One(Text(13), 8).empty());
}

TEST(DraftModelDrafter, SurvivesAModelThatFails) {
  Fixture f;
  EXPECT_FALSE(f.One(Text(6), 2).empty());
  f.fail = true;
  EXPECT_TRUE(f.One(Text(8), 2).empty());
  f.fail = false;
  EXPECT_EQ(f.One(Text(8), 2), Fixture::Truth(Text(8), 2));
  // Logits that are not finite end a draft.
  std::vector<TokenId> poisoned = Text(8);
  poisoned.push_back(kFakePoison);
  EXPECT_TRUE(f.One(poisoned, 4).empty());
}

TEST(DraftModelDrafter, BudgetWithoutAPageIsRefused) {
  const auto made = DraftModelDrafter::Create(std::make_unique<FakeModel>(), 5, kChunk);
  EXPECT_EQ(made.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(made.status().message().find("draft_kv_bytes: 5"), absl::string_view::npos)
      << made.status();
}

}  // namespace
}  // namespace cogumi
