#include "router/domain.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace cogumi::router {
namespace {

DomainDecision Classify(std::string_view question) {
  static const DomainClassifier classifier;
  return classifier.Classify({question});
}

struct Example {
  const char* text;
  Domain domain;
};

class DomainExamples : public testing::TestWithParam<Example> {};

TEST_P(DomainExamples, AreNamed) {
  const DomainDecision decision = Classify(GetParam().text);
  EXPECT_FALSE(decision.abstained) << GetParam().text;
  EXPECT_EQ(decision.domain, GetParam().domain) << GetParam().text;
  EXPECT_GE(decision.margin, DomainClassifier::kMinMargin);
}

INSTANTIATE_TEST_SUITE_P(
    Domains, DomainExamples,
    testing::Values(
        Example{"Write a Python function that reverses a linked list.", Domain::kCode},
        Example{"Why does my C++ program segfault when I delete the pointer twice?",
                Domain::kCode},
        Example{"fix this\n```\nfor i in range(3) print(i)\n```", Domain::kCode},
        Example{"What does `git rebase` do compared to a merge? I have a merge conflict.",
                Domain::kCode},
        Example{"What is 12 * 7 + 5?", Domain::kReasoning},
        Example{"A train goes 60 km per hour. How long does it take for 150 km?",
                Domain::kReasoning},
        Example{"Prove that the square root of 2 is irrational.", Domain::kReasoning},
        Example{"If all bloops are razzies and all razzies are lazzies, does it follow that all "
                "bloops are lazzies?",
                Domain::kReasoning},
        Example{"Remind me to call the dentist tomorrow at nine.", Domain::kAutomation},
        Example{"Turn off the lights in the kitchen and set a timer for ten minutes.",
                Domain::kAutomation},
        Example{"Every day at 8 send an email with the sales spreadsheet.", Domain::kAutomation},
        Example{"What is the capital of France?", Domain::kGeneral},
        Example{"Tell me about the history of Rome.", Domain::kGeneral},
        Example{"Write a poem for my grandmother's birthday", Domain::kGeneral}));

// Other people's phrasing: no keyword of the trade in the first place.
TEST(DomainTest, ForeignPhrasingIsNamedOrAbstained) {
  const Example examples[] = {
      {"my loop never stops, what am i doing wrong", Domain::kCode},
      {"it says undefined is not a function on line 3 of app.js", Domain::kCode},
      {"if i have 3 apples and eat 2 how many are left", Domain::kReasoning},
      {"could you ping me whenever the build is done, notify me please", Domain::kAutomation},
  };
  for (const Example& example : examples) {
    const DomainDecision decision = Classify(example.text);
    EXPECT_TRUE(decision.abstained || decision.domain == example.domain) << example.text;
  }
}

TEST(DomainTest, AbstainsWithoutEvidence) {
  for (const char* text :
       {"", "   ", "ok", "What do you think?", "asdf qwer", "Was ist das?", "これは何ですか",
        "\xF0\x9F\x98\x80\xF0\x9F\x98\x80"}) {
    const DomainDecision decision = Classify(text);
    EXPECT_TRUE(decision.abstained) << text;
    EXPECT_EQ(decision.domain, Domain::kGeneral) << text;
  }
}

TEST(DomainTest, AbstainsBetweenTwoDomains) {
  // One strong cue each.
  const DomainDecision decision = Classify("python theorem");
  EXPECT_TRUE(decision.abstained);
  EXPECT_LT(decision.margin, DomainClassifier::kMinMargin);
}

TEST(DomainTest, CaseAndPunctuationDoNotMatter) {
  const DomainDecision plain = Classify("debug my python script");
  for (const char* text : {"DEBUG MY PYTHON SCRIPT", "debug, my... python!! script??",
                           "Debug\tmy\nPython\r\nscript"}) {
    const DomainDecision other = Classify(text);
    EXPECT_EQ(other.domain, plain.domain) << text;
    EXPECT_EQ(other.scores, plain.scores) << text;
  }
}

TEST(DomainTest, TypographicApostropheIsAnApostrophe) {
  EXPECT_EQ(Classify("what\xE2\x80\x99s wrong with my python code").scores,
            Classify("what's wrong with my python code").scores);
}

TEST(DomainTest, HistoryCountsLess) {
  const DomainClassifier classifier;
  const DomainDecision follow_up =
      classifier.Classify({"Write a python function that sorts a list.", "and in java?"});
  EXPECT_EQ(follow_up.domain, Domain::kCode);
  EXPECT_FALSE(follow_up.abstained);
  const DomainDecision changed = classifier.Classify(
      {"Write a python script.", "Tell me about the history of Rome and its famous king."});
  EXPECT_EQ(changed.domain, Domain::kGeneral);
  EXPECT_FALSE(changed.abstained);
}

TEST(DomainTest, ScoresAreShares) {
  const DomainDecision decision = Classify("prove this python algorithm sends an email");
  float sum = 0;
  for (const float score : decision.scores) {
    EXPECT_GE(score, 0);
    sum += score;
  }
  EXPECT_LT(sum, 1);
}

TEST(DomainTest, NoMessagesAbstain) {
  EXPECT_TRUE(DomainClassifier().Classify({}).abstained);
}

TEST(DomainTest, TakesAnyBytes) {
  const DomainClassifier classifier;
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::string text(random() % 300, '\0');
    for (char& c : text) c = static_cast<char>(random());
    const DomainDecision decision = classifier.Classify({text});
    EXPECT_GE(decision.margin, 0);
    EXPECT_LE(decision.margin, 1);
  }
}

TEST(DomainTest, LooksAtABoundedPartOfAHugeText) {
  std::string text = "python debug ";
  text.append(8 << 20, 'x');
  text += " compile ";
  const DomainDecision decision = Classify(text);
  EXPECT_EQ(decision.domain, Domain::kCode);
  // Both ends are read, the middle is not.
  std::string middle(4 << 20, ' ');
  middle.replace(2 << 20, 14, "python debug  ");
  EXPECT_TRUE(Classify(middle).abstained);
}

}  // namespace
}  // namespace cogumi::router
