#include "engine/decode/ngram_drafter.h"

#include <algorithm>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace cogumi {
namespace {

std::vector<TokenId> Propose(NgramDrafter& drafter, const std::vector<TokenId>& tokens,
                             int32_t length, int32_t* evidence = nullptr, uint64_t sequence = 1) {
  Draft draft;
  std::vector<DraftOrder> orders = {{{sequence, tokens, {}, nullptr}, length, &draft}};
  EXPECT_EQ(drafter.Propose(orders), 0);
  if (evidence != nullptr) *evidence = draft.evidence;
  return draft.tokens;
}

using Tokens = std::vector<TokenId>;

TEST(NgramDrafter, TakesWhatFollowedTheLongestMatch) {
  NgramDrafter drafter;
  int32_t evidence = 0;
  // "2 3" came twice; "1 2 3" once, and is longer.
  EXPECT_EQ(Propose(drafter, {1, 2, 3, 40, 41, 9, 2, 3, 50, 8, 1, 2, 3}, 2, &evidence),
            (Tokens{40, 41}));
  EXPECT_EQ(evidence, 3);
}

TEST(NgramDrafter, TakesTheMostRecentOfEqualMatches) {
  NgramDrafter drafter;
  EXPECT_EQ(Propose(drafter, {7, 2, 3, 40, 8, 2, 3, 50, 9, 2, 3}, 1), (Tokens{50}));
}

TEST(NgramDrafter, HasNothingToSayWithoutAMatchOfTwo) {
  NgramDrafter drafter;
  EXPECT_EQ(Propose(drafter, {1}, 4, nullptr, 1), Tokens{});
  EXPECT_EQ(Propose(drafter, {1, 1}, 4, nullptr, 2), Tokens{});
  EXPECT_EQ(Propose(drafter, {5, 3, 6, 3}, 4, nullptr, 3), Tokens{});
}

TEST(NgramDrafter, GoesOnInThePeriodOfARepetition) {
  NgramDrafter drafter;
  EXPECT_EQ(Propose(drafter, {9, 1, 2, 3, 1, 2, 3, 1, 2}, 8), (Tokens{3, 1, 2, 3, 1, 2, 3, 1}));
  EXPECT_EQ(Propose(drafter, {4, 4, 4}, 3, nullptr, 2), (Tokens{4, 4, 4}));
}

TEST(NgramDrafter, ForgetsAndKeepsSequencesApart) {
  NgramDrafter drafter;
  EXPECT_EQ(Propose(drafter, {1, 2, 3, 1, 2}, 1, nullptr, 1), (Tokens{3}));
  EXPECT_EQ(Propose(drafter, {6, 1, 2}, 1, nullptr, 2), Tokens{});
  drafter.Forget(1);
  drafter.Forget(77);
  // The name is free again for another text.
  EXPECT_EQ(Propose(drafter, {8, 8, 5, 1, 2}, 1, nullptr, 1), Tokens{});
}

TEST(NgramDrafter, GoesOnBehindAPlaceThatWasChanged) {
  NgramDrafter drafter;
  // "10 11 12 | 13 14 | 15 16 17 18", copied with something else in place of "13 14".
  Tokens tokens = {10, 11, 12, 13, 14, 15, 16, 17, 18, 99, 10, 11};
  EXPECT_EQ(Propose(drafter, tokens, 2), (Tokens{12, 13}));
  tokens.push_back(12);
  EXPECT_EQ(Propose(drafter, tokens, 2), (Tokens{13, 14}));
  tokens.push_back(50);
  EXPECT_EQ(Propose(drafter, tokens, 2), Tokens{});
  tokens.push_back(15);
  int32_t evidence = 0;
  EXPECT_EQ(Propose(drafter, tokens, 3, &evidence), (Tokens{16, 17, 18}));
  EXPECT_EQ(evidence, 1);
}

TEST(NgramDrafter, OneTokenCountsOnlyNearAPlaceThatWasCopied) {
  NgramDrafter drafter;
  Tokens far = {10, 11, 12};
  for (TokenId token = 20; token < 32; ++token) far.push_back(token);
  for (const TokenId token : {15, 16, 99, 10, 11}) far.push_back(token);
  EXPECT_EQ(Propose(drafter, far, 1), (Tokens{12}));
  for (const TokenId token : {12, 50, 15}) far.push_back(token);
  EXPECT_EQ(Propose(drafter, far, 1), Tokens{}) << "15 stands 13 tokens behind the place";
  // Nothing was copied here, what was to come did not.
  Tokens other = {10, 11, 12, 15, 16, 99, 10, 11};
  EXPECT_EQ(Propose(drafter, other, 1, nullptr, 2), (Tokens{12}));
  for (const TokenId token : {50, 15}) other.push_back(token);
  EXPECT_EQ(Propose(drafter, other, 1, nullptr, 2), Tokens{});
}

// The same by looking at every place.
NgramIndex::Match Naive(const std::vector<TokenId>& tokens) {
  NgramIndex::Match best;
  const int32_t last = static_cast<int32_t>(tokens.size()) - 1;
  int32_t by_table = 0;
  for (int32_t end = 0; end < last; ++end) {
    int32_t length = 0;
    const auto at = [&](int32_t position) { return tokens[static_cast<size_t>(position)]; };
    const int32_t most = std::min(end + 1, NgramIndex::kLongest);
    while (length < most && at(end - length) == at(last - length)) {
      ++length;
    }
    if (length >= kMinNgram && std::min(length, kMaxNgram) >= by_table) {
      by_table = std::min(length, kMaxNgram);
      best = {end, length};
    }
  }
  return best;
}

TEST(NgramIndex, FindsWhatASearchOfTheWholeTextFinds) {
  std::mt19937_64 random(3);
  for (int run = 0; run < 60; ++run) {
    NgramIndex index;
    std::vector<TokenId> tokens;
    const uint64_t alphabet = 2 + random() % 12;
    for (int i = 0; i < 400; ++i) {
      // A copy of an earlier part now and then; several tokens between two questions.
      if (i > 20 && random() % 20 == 0) {
        const size_t from = random() % (tokens.size() - 10);
        for (size_t k = 0; k < 10; ++k) tokens.push_back(tokens[from + k]);
      }
      tokens.push_back(static_cast<TokenId>(random() % alphabet));
      if (random() % 3 == 0) continue;
      const NgramIndex::Match expected = Naive(tokens);
      const NgramIndex::Match match = index.Find(tokens);
      ASSERT_EQ(match.end, expected.end) << "run " << run << ", " << tokens.size() << " tokens";
      ASSERT_EQ(match.length, expected.length);
    }
  }
}

}  // namespace
}  // namespace cogumi
