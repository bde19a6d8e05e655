// A table of cues (words, stems, phrases) with classes and weights, and the counting of it.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace cogumi::router {

// "prove" is a word, "debug*" every word that begins so, "how many" words in a row (at most
// four; no stems in phrases).
struct Cue {
  std::string_view text;
  int category;
  float weight;
};

struct Match {
  std::string_view cue;
  int category;
  float weight;
};

class Lexicon {
 public:
  explicit Lexicon(std::span<const Cue> cues);

  // Every cue at most once, in order of appearance. The longest phrase at a place hides the
  // shorter ones that begin inside it, so that "not wrong" is not also "wrong".
  std::vector<Match> Find(const std::vector<std::string>& words) const;

 private:
  static constexpr size_t kMaxPhrase = 4;
  static constexpr size_t kMinStem = 3;

  const Cue* Lookup(const std::vector<std::string>& words, size_t at, size_t length) const;
  const Cue* LookupStem(std::string_view word) const;

  std::unordered_map<std::string, const Cue*> phrases_;
  std::unordered_map<std::string, const Cue*> stems_;
  size_t longest_stem_ = 0;
};

}  // namespace cogumi::router
