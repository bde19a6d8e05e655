#include "router/domain.h"

#include <algorithm>

#include "router/text.h"

namespace cogumi::router {
namespace {

constexpr int kG = static_cast<int>(Domain::kGeneral);
constexpr int kC = static_cast<int>(Domain::kCode);
constexpr int kR = static_cast<int>(Domain::kReasoning);
constexpr int kA = static_cast<int>(Domain::kAutomation);

// Weights: 3 nearly decides alone, 2 is strong, 1 needs company.
constexpr Cue kCues[] = {
    // Code: languages and tools.
    {"python", kC, 3}, {"javascript", kC, 3}, {"typescript", kC, 3}, {"rust", kC, 2},
    {"java", kC, 2}, {"kotlin", kC, 3}, {"haskell", kC, 3}, {"golang", kC, 3}, {"sql", kC, 3},
    {"html", kC, 2}, {"css", kC, 2}, {"bash", kC, 2}, {"regex*", kC, 3}, {"numpy", kC, 3},
    {"pandas", kC, 2}, {"react", kC, 1}, {"django", kC, 3}, {"git", kC, 2}, {"github", kC, 2},
    {"docker*", kC, 2}, {"kubernetes", kC, 2}, {"gcc", kC, 3}, {"clang", kC, 3}, {"cmake", kC, 3},
    {"npm", kC, 3}, {"pip", kC, 2}, {"linux", kC, 1}, {"ruby", kC, 1}, {"php", kC, 3},
    {"swift", kC, 1}, {"cuda", kC, 3}, {"json", kC, 1}, {"yaml", kC, 1}, {"api", kC, 1},
    // Code: words of the trade.
    {"code", kC, 2}, {"coding", kC, 2}, {"debug*", kC, 3}, {"compil*", kC, 3},
    {"segfault*", kC, 3}, {"segmentation fault", kC, 3}, {"traceback", kC, 3},
    {"stack trace", kC, 3}, {"stacktrace", kC, 3}, {"exception*", kC, 2}, {"nullpointer*", kC, 3},
    {"syntax error", kC, 3}, {"syntax", kC, 1}, {"refactor*", kC, 3}, {"unit test", kC, 3},
    {"unit tests", kC, 3}, {"function", kC, 1}, {"functions", kC, 1}, {"method", kC, 1},
    {"class", kC, 1}, {"variable", kC, 1}, {"variables", kC, 1}, {"array", kC, 1},
    {"arrays", kC, 1}, {"string", kC, 1}, {"strings", kC, 1}, {"loop", kC, 1}, {"loops", kC, 1},
    {"for loop", kC, 2}, {"while loop", kC, 2}, {"infinite loop", kC, 3}, {"recursion", kC, 2},
    {"recursive", kC, 2}, {"pointer", kC, 2}, {"pointers", kC, 2}, {"binary tree", kC, 2},
    {"linked list", kC, 3}, {"hash map", kC, 3}, {"hashmap", kC, 3}, {"dictionary", kC, 1},
    {"algorithm", kC, 2}, {"algorithms", kC, 2}, {"script", kC, 2}, {"program", kC, 1},
    {"programming", kC, 2}, {"programmer", kC, 1}, {"software", kC, 1}, {"bug", kC, 1},
    {"bugs", kC, 1}, {"crashes", kC, 1}, {"library", kC, 1}, {"module", kC, 1}, {"import", kC, 1},
    {"database", kC, 1}, {"query", kC, 1}, {"frontend", kC, 2}, {"backend", kC, 2},
    {"implement", kC, 1}, {"implementation", kC, 1}, {"thread", kC, 1}, {"mutex", kC, 3},
    {"async", kC, 3}, {"asynchronous", kC, 2}, {"commit", kC, 1}, {"merge conflict", kC, 3},
    {"pull request", kC, 2}, {"terminal", kC, 1}, {"command line", kC, 1},
    {"data structure", kC, 2}, {"data structures", kC, 2}, {"big o", kC, 2},
    {"time complexity", kC, 3}, {"web page", kC, 1}, {"decorator", kC, 2}, {"lambda", kC, 2},
    {"sort a list", kC, 3}, {"return value", kC, 2},
    {"stops running", kC, 1}, {"never stops", kC, 1}, {"undefined", kC, 1}, {"null", kC, 1},
    // Reasoning and mathematics.
    {"how many", kR, 2}, {"how much", kR, 1}, {"prove", kR, 3}, {"proof", kR, 3},
    {"theorem", kR, 3}, {"lemma", kR, 3}, {"equation", kR, 3}, {"equations", kR, 3},
    {"solve", kR, 2}, {"solve for", kR, 3}, {"derivative", kR, 3}, {"integral", kR, 3},
    {"integrate", kR, 2}, {"differentiate", kR, 3}, {"calculus", kR, 3}, {"algebra", kR, 3},
    {"geometry", kR, 2}, {"triangle", kR, 2}, {"perimeter", kR, 3}, {"probability", kR, 3},
    {"probabilities", kR, 3}, {"dice", kR, 2}, {"coin flips", kR, 3}, {"percent", kR, 2},
    {"percentage", kR, 2}, {"fraction", kR, 2}, {"fractions", kR, 2}, {"average", kR, 1},
    {"median", kR, 2}, {"remainder", kR, 2}, {"divisible", kR, 3}, {"divided by", kR, 3},
    {"multiplied by", kR, 3}, {"multiply", kR, 2}, {"square root", kR, 3}, {"prime", kR, 1},
    {"prime number", kR, 3}, {"prime numbers", kR, 3}, {"calculate", kR, 2}, {"compute", kR, 1},
    {"sum of", kR, 2}, {"product of", kR, 1}, {"puzzle", kR, 2}, {"riddle", kR, 3},
    {"logic", kR, 2}, {"logical", kR, 1}, {"logically", kR, 2}, {"deduce", kR, 3}, {"infer", kR, 2},
    {"conclude", kR, 2}, {"premise", kR, 3}, {"premises", kR, 3}, {"contradiction", kR, 3},
    {"step by step", kR, 1}, {"per hour", kR, 1}, {"km h", kR, 1}, {"mph", kR, 1},
    {"how long does it take", kR, 2}, {"how old", kR, 1}, {"twice as", kR, 2},
    {"half as", kR, 2}, {"in total", kR, 2}, {"each", kR, 1}, {"left over", kR, 2},
    {"are left", kR, 2}, {"matrix", kR, 2}, {"vector", kR, 1}, {"polynomial", kR, 3},
    {"quadratic", kR, 3}, {"logarithm", kR, 3}, {"interest rate", kR, 1},
    {"compound interest", kR, 3}, {"truth teller", kR, 3}, {"liar", kR, 1}, {"add up", kR, 2},
    {"math", kR, 3}, {"maths", kR, 3}, {"mathematics", kR, 3}, {"arithmetic", kR, 3},
    {"if all", kR, 2}, {"does it follow", kR, 3}, {"plus", kR, 1}, {"minus", kR, 1},
    {"times", kR, 1},
    // Automation: something is to be done, not said.
    {"remind me", kA, 3}, {"reminder", kA, 2}, {"set a timer", kA, 3}, {"set an alarm", kA, 3},
    {"alarm", kA, 1}, {"timer", kA, 1}, {"schedule", kA, 2}, {"reschedule", kA, 3},
    {"calendar", kA, 2}, {"appointment", kA, 2}, {"meeting", kA, 1}, {"send an email", kA, 3},
    {"send a message", kA, 3}, {"send this", kA, 1}, {"email", kA, 1}, {"text my", kA, 2},
    {"turn on", kA, 2}, {"turn off", kA, 2}, {"switch on", kA, 2}, {"switch off", kA, 2},
    {"thermostat", kA, 3}, {"lights", kA, 1}, {"automate", kA, 3}, {"automation", kA, 3},
    {"automatically", kA, 2}, {"workflow", kA, 3}, {"webhook", kA, 3}, {"cron", kA, 3},
    {"every day at", kA, 3}, {"every morning", kA, 2}, {"every hour", kA, 2},
    {"every monday", kA, 2}, {"every week", kA, 1}, {"call the api", kA, 2},
    {"call the tool", kA, 3}, {"use the tool", kA, 3}, {"function call", kA, 2},
    {"book a", kA, 2}, {"book me", kA, 3}, {"order a", kA, 1}, {"download the", kA, 1},
    {"upload the", kA, 2}, {"rename all", kA, 3}, {"move all", kA, 2}, {"all files", kA, 2},
    {"fill in the form", kA, 3}, {"spreadsheet", kA, 2}, {"whenever", kA, 1},
    {"trigger", kA, 2}, {"notify me", kA, 3}, {"notification", kA, 1}, {"post to", kA, 2},
    {"slack", kA, 2}, {"home assistant", kA, 3}, {"zapier", kA, 3}, {"to do list", kA, 2},
    {"todo list", kA, 2}, {"add to my", kA, 3}, {"play some music", kA, 3},
    {"cancel my", kA, 2}, {"look up the weather", kA, 2}, {"check my", kA, 1},
    // General: knowledge, writing, everyday life.
    {"who", kG, 1}, {"capital of", kG, 3}, {"history", kG, 2}, {"country", kG, 1},
    {"city", kG, 1}, {"president", kG, 2}, {"king", kG, 1}, {"war", kG, 1}, {"century", kG, 1},
    {"recipe", kG, 3}, {"cook", kG, 2}, {"dinner", kG, 2}, {"poem", kG, 3}, {"story", kG, 2},
    {"essay", kG, 2}, {"song", kG, 2}, {"movie", kG, 2}, {"film", kG, 1}, {"book", kG, 1},
    {"novel", kG, 2}, {"travel", kG, 2}, {"holiday", kG, 2}, {"weather", kG, 1}, {"sky", kG, 2},
    {"ocean", kG, 2}, {"animal", kG, 2}, {"animals", kG, 2}, {"dog", kG, 1}, {"cat", kG, 1},
    {"translate", kG, 2}, {"summarize", kG, 2}, {"summarise", kG, 2}, {"tell me about", kG, 2},
    {"what is the meaning of", kG, 2}, {"health", kG, 2}, {"doctor", kG, 1}, {"friend", kG, 1},
    {"hello", kG, 2}, {"hi", kG, 1}, {"thank you", kG, 2}, {"joke", kG, 3}, {"why is", kG, 1},
    {"why do", kG, 1}, {"when was", kG, 2}, {"where is", kG, 2}, {"who was", kG, 2},
    {"who is", kG, 2}, {"famous", kG, 2}, {"invented", kG, 2}, {"philosophy", kG, 2},
    {"music", kG, 1}, {"letter", kG, 1}, {"birthday", kG, 2}, {"planet", kG, 2},
};

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != text.npos;
}

bool IsAlphanumeric(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

// Shapes of source code that no word list sees.
float CodeShape(std::string_view text) {
  static constexpr std::string_view kMarks[] = {"```",     "#include", "def ",    "();",  "){",
                                                ") {",     "=> ",      "std::",   "</",   "==",
                                                "import ", "print(",   "return ", "!= ",  "&&",
                                                "$ ",      "console.", "C++",     "c++",  "C#"};
  float weight = 0;
  for (const std::string_view mark : kMarks) {
    if (Contains(text, mark)) weight += mark == "```" || mark == "#include" ? 3.0f : 1.0f;
  }
  // C++ and C# lose their signs when words are split.
  if (Contains(text, "C++") || Contains(text, "c++") || Contains(text, "C#")) weight += 2.0f;
  // snake_case between letters, and file names with a source suffix.
  for (size_t i = 1; i + 1 < text.size(); ++i) {
    if (text[i] == '_' && IsAlphanumeric(text[i - 1]) && IsAlphanumeric(text[i + 1])) {
      weight += 1.0f;
      break;
    }
  }
  static constexpr std::string_view kSuffixes[] = {".py", ".cpp", ".cc", ".js", ".ts", ".rs",
                                                   ".go", ".java"};
  for (const std::string_view suffix : kSuffixes) {
    const size_t at = text.find(suffix);
    if (at == text.npos || at == 0 || !IsAlphanumeric(text[at - 1])) continue;
    const size_t end = at + suffix.size();
    if (end < text.size() && IsAlphanumeric(text[end])) continue;
    weight += 2.0f;
    break;
  }
  return std::min(weight, 6.0f);
}

// Numbers with operators between them ("12 * 7", "3x + 5 = 20"), and how many numbers there are.
float MathShape(std::string_view text) {
  int operators = 0;
  int numbers = 0;
  bool in_number = false;
  char before = 0;  // last character that is no space
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const bool digit = c >= '0' && c <= '9';
    if (digit && !in_number) {
      ++numbers;
      const bool is_operator =
          before == '+' || before == '*' || before == '/' || before == '=' || before == '^';
      if (is_operator) ++operators;
    }
    in_number = digit || (in_number && (c == '.' || c == ','));
    if (c != ' ') before = c;
  }
  return std::min(2.0f * static_cast<float>(operators) + (numbers >= 2 ? 1.0f : 0.0f), 4.0f);
}

}  // namespace

std::string_view DomainName(Domain domain) {
  switch (domain) {
    case Domain::kGeneral:
      return "general";
    case Domain::kCode:
      return "code";
    case Domain::kReasoning:
      return "reasoning";
    case Domain::kAutomation:
      return "automation";
  }
  return "general";
}

DomainClassifier::DomainClassifier() : lexicon_(kCues) {}

void DomainClassifier::AddEvidence(std::string_view text, float factor,
                                   std::array<float, kDomains>* weights) const {
  const Words words = SplitWords(text);
  for (const Match& match : lexicon_.Find(words.words)) {
    (*weights)[static_cast<size_t>(match.category)] += factor * match.weight;
  }
  const std::string excerpt = Excerpt(text);
  const float code = CodeShape(excerpt);
  (*weights)[kC] += factor * code;
  // Numbers inside source code are no arithmetic.
  if (code < 2) (*weights)[kR] += factor * MathShape(excerpt);
}

DomainDecision DomainClassifier::Classify(
    const std::vector<std::string_view>& user_messages) const {
  DomainDecision decision;
  if (user_messages.empty()) return decision;
  std::array<float, kDomains> weights = {};
  AddEvidence(user_messages.back(), 1.0f, &weights);
  if (user_messages.size() > 1) {
    AddEvidence(user_messages[user_messages.size() - 2], kHistoryWeight, &weights);
  }
  for (const float weight : weights) decision.evidence += weight;
  size_t best = 0;
  for (size_t d = 0; d < kDomains; ++d) {
    decision.scores[d] = weights[d] / (decision.evidence + 1);
    if (decision.scores[d] > decision.scores[best]) best = d;
  }
  float second = 0;
  for (size_t d = 0; d < kDomains; ++d) {
    if (d != best) second = std::max(second, decision.scores[d]);
  }
  decision.margin = decision.scores[best] - second;
  decision.abstained = decision.evidence < kMinEvidence || decision.margin < kMinMargin;
  decision.domain = decision.abstained ? Domain::kGeneral : static_cast<Domain>(best);
  return decision;
}

}  // namespace cogumi::router
