#include "router/feedback.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

namespace cogumi::router {
namespace {

FeedbackDecision Detect(std::string_view message,
                        std::string_view question = "What is the capital of Australia?",
                        std::string_view answer = "Sydney.") {
  static const FeedbackDetector detector;
  return detector.Detect({question, answer, message});
}

bool HasReason(const FeedbackDecision& decision, const std::string& reason) {
  return std::find(decision.reasons.begin(), decision.reasons.end(), reason) !=
         decision.reasons.end();
}

struct Example {
  const char* text;
  Feedback feedback;
};

class FeedbackExamples : public testing::TestWithParam<Example> {};

TEST_P(FeedbackExamples, AreNamed) {
  const FeedbackDecision decision = Detect(GetParam().text);
  EXPECT_FALSE(decision.abstained) << GetParam().text;
  EXPECT_EQ(decision.feedback, GetParam().feedback) << GetParam().text;
  EXPECT_EQ(decision.escalate, GetParam().feedback == Feedback::kFrustrated) << GetParam().text;
}

INSTANTIATE_TEST_SUITE_P(
    Classes, FeedbackExamples,
    testing::Values(Example{"That's wrong.", Feedback::kFrustrated},
                    Example{"no, that is not what I asked", Feedback::kFrustrated},
                    Example{"this still doesn't work!!", Feedback::kFrustrated},
                    Example{"You didn't answer my question", Feedback::kFrustrated},
                    Example{"wrong", Feedback::kFrustrated},
                    Example{"useless", Feedback::kFrustrated},
                    Example{"Thanks, but that\xE2\x80\x99s wrong", Feedback::kFrustrated},
                    Example{"I don't understand.", Feedback::kConfused},
                    Example{"what do you mean by that?", Feedback::kConfused},
                    Example{"Thanks, that works!", Feedback::kSatisfied},
                    Example{"Perfect", Feedback::kSatisfied},
                    Example{"Can you elaborate?", Feedback::kAsksForMore},
                    Example{"give me more examples", Feedback::kAsksForMore},
                    Example{"And what is its population?", Feedback::kNone},
                    Example{"What is wrong with my code?", Feedback::kNone},
                    Example{"Nothing wrong there, what is next?", Feedback::kNone},
                    Example{"Tell me about the Great Wall", Feedback::kNone},
                    Example{"", Feedback::kNone}));

TEST(FeedbackTest, NothingToBeUnhappyWith) {
  const FeedbackDecision decision = Detect("That's wrong!", "", "");
  EXPECT_EQ(decision.feedback, Feedback::kNone);
  EXPECT_FALSE(decision.escalate);
  EXPECT_TRUE(decision.reasons.empty());
}

TEST(FeedbackTest, AskingAgainEscalates) {
  const FeedbackDecision decision =
      Detect("what is the capital of australia??", "What is the capital of Australia?");
  EXPECT_EQ(decision.feedback, Feedback::kFrustrated);
  EXPECT_TRUE(decision.escalate);
  EXPECT_TRUE(HasReason(decision, "repeated_question"));
  // Control: another question of the same shape is no repetition.
  EXPECT_FALSE(Detect("how far is it from perth to the coast").escalate);
}

TEST(FeedbackTest, EmphasisRaisesTheScore) {
  const FeedbackDecision calm = Detect("that's wrong");
  const FeedbackDecision loud = Detect("THAT'S WRONG AGAIN!!");
  EXPECT_GT(loud.score, calm.score);
  EXPECT_TRUE(HasReason(loud, "emphasis"));
  EXPECT_FALSE(Detect("PLEASE TELL ME THE POPULATION OF PERTH!!").escalate);
}

TEST(FeedbackTest, CaseAndPunctuationDoNotMatter) {
  for (const char* text :
       {"that's wrong", "That's wrong.", "THAT'S, WRONG", "that\xE2\x80\x99s wrong"}) {
    EXPECT_EQ(Detect(text).feedback, Feedback::kFrustrated) << text;
  }
}

TEST(FeedbackTest, AbstainsOnAnUnknownScript) {
  const FeedbackDecision decision = Detect("これは違います");
  EXPECT_TRUE(decision.abstained);
  EXPECT_FALSE(decision.escalate);
}

TEST(FeedbackTest, AbstainsOnATie) {
  const FeedbackDecision decision = Detect("confusing, tell me more");
  EXPECT_TRUE(decision.abstained);
  EXPECT_EQ(decision.feedback, Feedback::kNone);
}

TEST(FeedbackTest, ReasonsNeverQuoteThePerson) {
  const FeedbackDecision decision = Detect("my secret is 12345 and that's wrong!!");
  for (const std::string& reason : decision.reasons) {
    EXPECT_EQ(reason.find("secret"), std::string::npos);
    EXPECT_EQ(reason.find("wrong"), std::string::npos);
  }
}

TEST(FeedbackTest, TakesAnyBytes) {
  std::mt19937 random(11);
  for (int round = 0; round < 2000; ++round) {
    std::string text(random() % 300, '\0');
    for (char& c : text) c = static_cast<char>(random());
    const FeedbackDecision decision = Detect(text, text, text);
    EXPECT_GE(decision.score, 0);
    EXPECT_LT(decision.score, 1);
  }
  Detect(std::string(8 << 20, '!'));
}

}  // namespace
}  // namespace cogumi::router
