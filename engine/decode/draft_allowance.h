// What a draft model may lose: a hundredth of the time that was computed without it, and what it
// has saved.
//
// Reading a prompt costs a draft model at once what its drafts save later, if ever, and whether a
// draft pays shows only when it is tried. So both are paid from here, and all requests together
// take about a hundredth longer than without drafts at most, whatever was predicted, as far as what
// drafts are said to have saved is true: that is measured against few steps without. Not
// thread-safe.
#pragma once

#include <algorithm>

namespace cogumi {

class DraftAllowance {
 public:
  bool Covers(double seconds) const { return seconds <= seconds_; }
  // A step that could have asked the draft model and did not.
  void Grow(double step_seconds) { Add(kShare * step_seconds); }
  // What drafts saved, or, negative, what making and verifying them cost.
  void Add(double saved_seconds) { seconds_ = std::clamp(seconds_ + saved_seconds, -kMost, kMost); }

 private:
  static constexpr double kShare = 0.01;
  // Enough to read a prompt of thousands of tokens; no more, so that a draft model that was good
  // for hours is not believed for minutes. As a debt it bounds what one step that was held up
  // costs.
  static constexpr double kMost = 4;

  double seconds_ = 0;
};

}  // namespace cogumi
