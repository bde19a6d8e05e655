// What drafts were worth, by measured tokens a second of steps with and without them: the last word
// over what chances and costs predict.
//
// Where one row more costs about as much as it may yield, as in a large batch, predictions err by
// more than there is to win. So steps with drafts are judged a window at a time against steps
// without, apart for each number of sequences (or about the same one); drafts that lost rest, twice
// as long each time.
// Deterministic given what is observed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace cogumi {

class DraftLedger {
 public:
  // Whether a step of so many sequences may have drafts; the first one may not.
  bool Allows(int32_t sequences) const;
  // After so many steps with drafts in a row one without is due: seldom where they win clearly.
  int64_t PlainEvery(int32_t sequences) const;
  // Tokens a second without drafts, the median of the last steps: one that was held up must not
  // make drafts look good. 0 before any was seen.
  double PlainRate(int32_t sequences) const;
  // A step of so many sequences yielded `tokens` and took `seconds`, drafting included.
  void Observe(int32_t sequences, bool drafted, int32_t tokens, double seconds);

 private:
  static constexpr int32_t kPlainSteps = 5;

  struct Sum {
    double tokens = 0;
    double seconds = 0;
    double Rate() const { return seconds > 0 ? tokens / seconds : 0; }
  };
  struct Size {
    bool seen = false;
    double PlainRate() const;
    std::array<double, kPlainSteps> plain_rates{};  // a ring
    int32_t plain_steps = 0;                        // seen; the next one's place, modulo its length
    Sum drafted;                                    // of the window
    int32_t window = 0;
    int64_t rest = 0;  // steps, of the last one
    int64_t left = 0;  // of the rest
    bool narrow = true;
  };
  // Numbers of sequences that differ by less than a fifth share one.
  static size_t IndexOf(int32_t sequences);
  const Size* Find(int32_t sequences) const;

  std::vector<Size> sizes_;
};

}  // namespace cogumi
