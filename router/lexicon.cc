#include "router/lexicon.h"

#include <algorithm>

namespace cogumi::router {

Lexicon::Lexicon(std::span<const Cue> cues) {
  for (const Cue& cue : cues) {
    if (cue.text.ends_with('*')) {
      const std::string stem(cue.text.substr(0, cue.text.size() - 1));
      longest_stem_ = std::max(longest_stem_, stem.size());
      stems_[stem] = &cue;
    } else {
      phrases_[std::string(cue.text)] = &cue;
    }
  }
}

const Cue* Lexicon::Lookup(const std::vector<std::string>& words, size_t at,
                           size_t length) const {
  std::string phrase = words[at];
  for (size_t i = 1; i < length; ++i) phrase += " " + words[at + i];
  const auto it = phrases_.find(phrase);
  return it != phrases_.end() ? it->second : nullptr;
}

const Cue* Lexicon::LookupStem(std::string_view word) const {
  for (size_t length = std::min(word.size(), longest_stem_); length >= kMinStem; --length) {
    const auto it = stems_.find(std::string(word.substr(0, length)));
    if (it != stems_.end()) return it->second;
  }
  return nullptr;
}

std::vector<Match> Lexicon::Find(const std::vector<std::string>& words) const {
  std::vector<Match> matches;
  std::unordered_set<const Cue*> seen;
  for (size_t at = 0; at < words.size();) {
    const Cue* found = nullptr;
    size_t used = 1;
    for (size_t length = std::min(kMaxPhrase, words.size() - at); length >= 1; --length) {
      found = Lookup(words, at, length);
      if (found != nullptr) {
        used = length;
        break;
      }
    }
    if (found == nullptr) found = LookupStem(words[at]);
    if (found != nullptr && seen.insert(found).second) {
      matches.push_back({found->text, found->category, found->weight});
    }
    at += used;
  }
  return matches;
}

}  // namespace cogumi::router
