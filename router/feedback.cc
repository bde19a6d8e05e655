#include "router/feedback.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "router/text.h"

namespace cogumi::router {
namespace {

constexpr int kS = static_cast<int>(Feedback::kSatisfied);
constexpr int kC = static_cast<int>(Feedback::kConfused);
constexpr int kF = static_cast<int>(Feedback::kFrustrated);
constexpr int kM = static_cast<int>(Feedback::kAsksForMore);
// Phrases that contain a cue's words and mean nothing of it.
constexpr int kIgnore = static_cast<int>(Feedback::kNone);
constexpr size_t kClasses = 5;

constexpr Cue kCues[] = {
    // Frustrated: the answer is wrong, useless, or not an answer.
    {"that's wrong", kF, 3}, {"thats wrong", kF, 3}, {"that is wrong", kF, 3},
    {"this is wrong", kF, 3}, {"it's wrong", kF, 2}, {"is still wrong", kF, 3},
    {"still wrong", kF, 3}, {"you're wrong", kF, 3}, {"you are wrong", kF, 3},
    {"wrong answer", kF, 3}, {"wrong again", kF, 3}, {"completely wrong", kF, 3},
    {"totally wrong", kF, 3}, {"incorrect", kF, 2}, {"not correct", kF, 3},
    {"isn't correct", kF, 3},
    {"not right", kF, 2}, {"isn't right", kF, 2}, {"isnt right", kF, 2}, {"not true", kF, 2},
    {"isn't true", kF, 2}, {"you made a mistake", kF, 3}, {"you got it wrong", kF, 3},
    {"doesn't work", kF, 2}, {"doesnt work", kF, 2}, {"does not work", kF, 2},
    {"didn't work", kF, 2}, {"did not work", kF, 2}, {"still doesn't work", kF, 3},
    {"still not working", kF, 3}, {"not working", kF, 2}, {"still broken", kF, 3},
    {"still fails", kF, 2}, {"same error", kF, 2}, {"not what i asked", kF, 3},
    {"isn't what i asked", kF, 3}, {"didn't ask for that", kF, 3}, {"not what i wanted", kF, 3},
    {"not what i meant", kF, 2}, {"didn't answer my question", kF, 3},
    {"did not answer my", kF, 3}, {"answer my question", kF, 2}, {"you didn't answer", kF, 3},
    {"you're not listening", kF, 3}, {"you are not listening", kF, 3},
    {"read my question", kF, 3}, {"read it again", kF, 2}, {"i already told you", kF, 3},
    {"i told you", kF, 2}, {"already said", kF, 2}, {"as i said", kF, 1}, {"useless", kF, 3},
    {"not helpful", kF, 3}, {"unhelpful", kF, 3}, {"isn't helpful", kF, 3},
    {"not helping", kF, 3}, {"makes no sense", kF, 2}, {"doesn't make sense", kF, 2},
    {"nonsense", kF, 3}, {"garbage", kF, 2}, {"rubbish", kF, 3}, {"ridiculous", kF, 3},
    {"terrible", kF, 2}, {"awful", kF, 2}, {"stupid", kF, 2}, {"waste of time", kF, 3},
    {"give up", kF, 2}, {"come on", kF, 1}, {"seriously", kF, 1}, {"ugh", kF, 2},
    {"wtf", kF, 3}, {"try again", kF, 2}, {"do it again", kF, 1}, {"you keep", kF, 2},
    {"stop making things up", kF, 3}, {"made that up", kF, 3}, {"making things up", kF, 3},
    {"hallucinat*", kF, 3}, {"no that's not", kF, 3}, {"no it's not", kF, 2},
    {"no it isn't", kF, 3}, {"that's not it", kF, 3}, {"nope", kF, 1}, {"can't be right", kF, 3},
    {"cannot be right", kF, 3},
    // Confused: the answer was not understood.
    {"i don't understand", kC, 3}, {"i dont understand", kC, 3}, {"i do not understand", kC, 3},
    {"don't get it", kC, 3}, {"dont get it", kC, 3}, {"do not get it", kC, 3}, {"confused", kC, 3},
    {"confusing", kC, 3}, {"unclear", kC, 3}, {"what do you mean", kC, 3},
    {"what does that mean", kC, 3}, {"what does this mean", kC, 2}, {"i'm lost", kC, 3},
    {"im lost", kC, 3}, {"you lost me", kC, 3}, {"not sure i follow", kC, 3},
    {"don't follow", kC, 3}, {"huh", kC, 2}, {"simpler words", kC, 3}, {"in simple terms", kC, 2},
    {"explain it simpler", kC, 3}, {"explain that again", kC, 3}, {"explain again", kC, 2},
    {"too complicated", kC, 3}, {"eli5", kC, 2}, {"makes me wonder what", kC, 1},
    // Satisfied.
    {"thanks", kS, 2}, {"thank you", kS, 2}, {"thx", kS, 2}, {"perfect", kS, 3},
    {"great", kS, 1}, {"excellent", kS, 3}, {"awesome", kS, 3}, {"that works", kS, 3},
    {"it works", kS, 2}, {"works now", kS, 3}, {"works great", kS, 3}, {"that helps", kS, 3},
    {"that helped", kS, 3}, {"very helpful", kS, 3}, {"so helpful", kS, 3}, {"brilliant", kS, 3},
    {"exactly what i", kS, 3}, {"well done", kS, 3}, {"good job", kS, 3}, {"nice", kS, 1},
    {"you're right", kS, 2}, {"you are right", kS, 2}, {"makes sense", kS, 2}, {"got it", kS, 2},
    {"i see", kS, 1}, {"cheers", kS, 1}, {"love it", kS, 3},
    // Asks for more.
    {"tell me more", kM, 3}, {"more detail", kM, 3}, {"more details", kM, 3},
    {"in more detail", kM, 3}, {"more examples", kM, 3}, {"another example", kM, 3},
    {"another one", kM, 2}, {"one more", kM, 2}, {"elaborate", kM, 3}, {"expand on", kM, 3},
    {"go on", kM, 2}, {"continue", kM, 2}, {"keep going", kM, 3}, {"what else", kM, 3},
    {"anything else", kM, 2}, {"go deeper", kM, 3}, {"give me more", kM, 3},
    {"can you also", kM, 2}, {"and what about", kM, 2}, {"what about", kM, 1},
    {"longer version", kM, 2},
    // Hide cues inside phrases of another meaning.
    {"no thanks", kIgnore, 0}, {"nothing wrong", kIgnore, 0}, {"not wrong", kIgnore, 0},
    {"isn't wrong", kIgnore, 0}, {"what is wrong with", kIgnore, 0},
    {"what's wrong with", kIgnore, 0}, {"is not incorrect", kIgnore, 0},
    {"why doesn't", kIgnore, 0}, {"if it doesn't work", kIgnore, 0}, {"not confusing", kIgnore, 0},
    {"not useless", kIgnore, 0}, {"not stupid", kIgnore, 0}, {"great britain", kIgnore, 0},
    {"the great", kIgnore, 0}, {"perfect number", kIgnore, 0}, {"perfect numbers", kIgnore, 0},
};

// One word alone says it all ("wrong", "no", "again").
constexpr std::string_view kShortComplaints[] = {"wrong", "incorrect", "false", "bad", "no",
                                                 "fail"};

float WordOverlap(const Words& a, const Words& b) {
  const std::set<std::string> left(a.words.begin(), a.words.end());
  const std::set<std::string> right(b.words.begin(), b.words.end());
  size_t common = 0;
  for (const std::string& word : left) common += right.count(word);
  const size_t all = left.size() + right.size() - common;
  return all == 0 ? 0 : static_cast<float>(common) / static_cast<float>(all);
}

}  // namespace

std::string_view FeedbackName(Feedback feedback) {
  switch (feedback) {
    case Feedback::kNone:
      return "none";
    case Feedback::kSatisfied:
      return "satisfied";
    case Feedback::kConfused:
      return "confused";
    case Feedback::kFrustrated:
      return "frustrated";
    case Feedback::kAsksForMore:
      return "asks_for_more";
  }
  return "none";
}

FeedbackDetector::FeedbackDetector() : lexicon_(kCues) {}

FeedbackDecision FeedbackDetector::Detect(const FeedbackInput& input) const {
  FeedbackDecision decision;
  if (input.answer.empty()) return decision;
  const Words message = SplitWords(input.message);
  if (message.ascii_letters == 0 && message.other_bytes > 0) {
    decision.abstained = true;
    return decision;
  }
  const auto add_reason = [&decision](std::string_view reason) {
    if (std::find(decision.reasons.begin(), decision.reasons.end(), reason) ==
        decision.reasons.end()) {
      decision.reasons.emplace_back(reason);
    }
  };

  std::array<float, kClasses> weights = {};
  for (const Match& match : lexicon_.Find(message.words)) {
    if (match.category == kIgnore) continue;
    weights[static_cast<size_t>(match.category)] += match.weight;
    add_reason(FeedbackName(static_cast<Feedback>(match.category)));
  }
  if (!message.words.empty() && message.words.size() <= 2 &&
      std::find(std::begin(kShortComplaints), std::end(kShortComplaints), message.words[0]) !=
          std::end(kShortComplaints)) {
    weights[kF] += 2;
    add_reason("short_complaint");
  }
  const Words previous = SplitWords(input.previous_question);
  const bool repeated = message.words.size() >= 3 && previous.words.size() >= 3 &&
                        WordOverlap(message, previous) >= kRepetition;
  if (repeated) {
    weights[kF] += 2;
    add_reason("repeated_question");
  }
  // Shouting adds to a complaint; alone it is a habit.
  const bool shouting = message.words.size() >= 3 && message.ascii_letters >= 10 &&
                        message.upper_letters * 10 >= message.ascii_letters * 8;
  if (weights[kF] > 0 && (shouting || message.exclamations >= 2)) {
    weights[kF] += 1;
    add_reason("emphasis");
  }
  // "Thanks, but that's wrong" is a complaint.
  if (weights[kF] >= kMinWeight) weights[kS] = 0;

  size_t best = 0;
  for (size_t c = 1; c < kClasses; ++c) {
    if (weights[c] > weights[best]) best = c;
  }
  if (weights[best] < kMinWeight) return decision;
  for (size_t c = 1; c < kClasses; ++c) {
    if (c != best && weights[c] == weights[best]) decision.abstained = true;
  }
  if (decision.abstained) return decision;
  decision.feedback = static_cast<Feedback>(best);
  decision.score = 1.0f - std::exp(-weights[best] / 2.0f);
  decision.escalate = decision.feedback == Feedback::kFrustrated ||
                      (decision.feedback == Feedback::kConfused && repeated);
  return decision;
}

}  // namespace cogumi::router
