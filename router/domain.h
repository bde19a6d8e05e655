// Names the domain of a question by a lexicon: the baseline "lexicon-1", with abstention.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "router/lexicon.h"

namespace cogumi::router {

inline constexpr std::string_view kModelName = "lexicon-1";

enum class Domain { kGeneral = 0, kCode = 1, kReasoning = 2, kAutomation = 3 };
inline constexpr int kDomains = 4;
std::string_view DomainName(Domain domain);

struct DomainDecision {
  Domain domain = Domain::kGeneral;  // kGeneral when abstained
  bool abstained = true;
  float margin = 0;                          // best minus second best score
  std::array<float, kDomains> scores = {};  // shares of the evidence; their sum is below 1
  float evidence = 0;                        // sum of the weights found
};

// score[d] = weight[d] / (sum of weights + 1). Abstains when the evidence is below kMinEvidence or
// the margin below kMinMargin.
class DomainClassifier {
 public:
  static constexpr float kMinEvidence = 1.5f;
  static constexpr float kMinMargin = 0.15f;
  // What the user's message before the question adds, for short follow-ups.
  static constexpr float kHistoryWeight = 0.25f;

  DomainClassifier();

  // The user's messages, oldest first; the last one is the question. Total on any bytes.
  DomainDecision Classify(const std::vector<std::string_view>& user_messages) const;

 private:
  void AddEvidence(std::string_view text, float factor,
                   std::array<float, kDomains>* weights) const;

  Lexicon lexicon_;
};

}  // namespace cogumi::router
