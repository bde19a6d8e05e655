// Detects from the conversation that the person is unhappy with the last answer: the baseline
// "lexicon-1".
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "router/lexicon.h"

namespace cogumi::router {

enum class Feedback { kNone, kSatisfied, kConfused, kFrustrated, kAsksForMore };
std::string_view FeedbackName(Feedback feedback);

struct FeedbackInput {
  std::string_view previous_question;  // the user's message before the answer; may be empty
  std::string_view answer;             // the last answer; empty: there is none
  std::string_view message;            // the user's new message
};

struct FeedbackDecision {
  Feedback feedback = Feedback::kNone;
  bool escalate = false;  // the answer should come from a more capable tier
  float score = 0;        // [0, 1), of the class that was chosen
  bool abstained = false;
  // Classes of the cues that were found, never the person's words; no duplicates.
  std::vector<std::string> reasons;
};

// weight[c] sums the cues of a class (each once); score = 1 - exp(-weight / 2). The heaviest class
// wins; complaint beats politeness in the same message. Escalates when the person is frustrated,
// or confused by an answer that they had asked for before. Without an earlier answer there is
// nothing to be unhappy with: kNone. Abstains when the text is in a script that the lexicon does
// not know, and when two classes are equally heavy.
class FeedbackDetector {
 public:
  static constexpr float kMinWeight = 1.5f;
  // Share of common words from which a message counts as the question asked again.
  static constexpr float kRepetition = 0.7f;

  FeedbackDetector();
  FeedbackDecision Detect(const FeedbackInput& input) const;

 private:
  Lexicon lexicon_;
};

}  // namespace cogumi::router
