#include "engine/decode/draft_ledger.h"

#include <gtest/gtest.h>

namespace cogumi {
namespace {

constexpr int32_t kSequences = 4;
constexpr int kWindow = 16;  // steps with drafts of four sequences

void Plain(DraftLedger& ledger, int steps) {
  for (int i = 0; i < steps; ++i) ledger.Observe(kSequences, false, kSequences, 1e-3);
}
// A window of drafts that yield `gain` times the tokens a second of steps without.
void Drafted(DraftLedger& ledger, double gain) {
  for (int i = 0; i < kWindow; ++i) ledger.Observe(kSequences, true, 2 * kSequences, 2e-3 / gain);
}
// Steps without drafts until they are allowed again.
int Rest(DraftLedger& ledger) {
  int steps = 0;
  for (; !ledger.Allows(kSequences) && steps < 100000; ++steps) Plain(ledger, 1);
  return steps;
}

TEST(DraftLedger, AStepWithoutDraftsComesFirst) {
  DraftLedger ledger;
  EXPECT_FALSE(ledger.Allows(kSequences));
  Plain(ledger, 1);
  EXPECT_TRUE(ledger.Allows(kSequences));
  EXPECT_FALSE(ledger.Allows(2 * kSequences)) << "another size of batch is another question";
}

TEST(DraftLedger, ABatchThatShrinksKeepsItsRest) {
  DraftLedger ledger;
  for (int i = 0; i < 4; ++i) ledger.Observe(32, false, 32, 32e-3);
  for (int i = 0; i < 6; ++i) ledger.Observe(32, true, 40, 50e-3);
  ASSERT_FALSE(ledger.Allows(32));
  EXPECT_FALSE(ledger.Allows(30)) << "about the same size";
  ledger.Observe(27, false, 27, 27e-3);
  EXPECT_FALSE(ledger.Allows(27));
  for (int i = 0; i < 100; ++i) ledger.Observe(27, false, 27, 27e-3);
  EXPECT_TRUE(ledger.Allows(27)) << "not for ever";
}

TEST(DraftLedger, RestsLongerEachTimeThatDraftsLose) {
  DraftLedger ledger;
  Plain(ledger, 10);
  int before = 0;
  for (int i = 0; i < 4; ++i) {
    Drafted(ledger, 0.95);
    const int steps = Rest(ledger);
    EXPECT_GE(steps, before == 0 ? 64 : 2 * before);
    before = steps;
  }
}

TEST(DraftLedger, ForgivesDraftsThatWin) {
  DraftLedger ledger;
  Plain(ledger, 10);
  Drafted(ledger, 0.9);
  const int first = Rest(ledger);
  Drafted(ledger, 0.9);
  Rest(ledger);
  Drafted(ledger, 1.5);
  EXPECT_TRUE(ledger.Allows(kSequences));
  Drafted(ledger, 0.9);
  EXPECT_EQ(Rest(ledger), first);
}

TEST(DraftLedger, ComparesMoreOftenWhereLittleIsWon) {
  DraftLedger ledger;
  Plain(ledger, 10);
  Drafted(ledger, 1.05);
  const int64_t narrow = ledger.PlainEvery(kSequences);
  Drafted(ledger, 2);
  EXPECT_GT(ledger.PlainEvery(kSequences), narrow);
}

TEST(DraftLedger, AStepThatWasHeldUpDoesNotFlatterDrafts) {
  DraftLedger ledger;
  Plain(ledger, 4);
  ledger.Observe(kSequences, false, kSequences, 50e-3);
  EXPECT_DOUBLE_EQ(ledger.PlainRate(kSequences), kSequences / 1e-3);
  Drafted(ledger, 0.9);
  EXPECT_FALSE(ledger.Allows(kSequences));
}

TEST(DraftLedger, BelievesRecentStepsMore) {
  DraftLedger ledger;
  for (int i = 0; i < 100; ++i) ledger.Observe(kSequences, false, kSequences, 1e-3);
  // Everything became three times slower: drafts at half the old rate win now.
  for (int i = 0; i < 20; ++i) ledger.Observe(kSequences, false, kSequences, 3e-3);
  Drafted(ledger, 0.5);
  EXPECT_TRUE(ledger.Allows(kSequences));
}

}  // namespace
}  // namespace cogumi
