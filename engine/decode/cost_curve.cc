#include "engine/decode/cost_curve.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace cogumi {
namespace {

// What a measurement says of the machine, and at least of its size; as powers, so that up and down
// weigh the same and noise has no direction. With 15 % of noise that gives lookup 2-3 % more speed
// than shapes of one measurement each, which are as wrong as that is.
constexpr double kOfLevel = 0.2;
constexpr double kOfRatio = 0.03;
// Of a size that was not believed any more.
constexpr double kOfOld = 0.5;
// Times what was expected: a step that was held up says little.
constexpr double kMostUp = 1.3;
constexpr double kMostDown = 0.5;
// A measurement is believed for this many steps after the first, twice as many each time.
constexpr int64_t kFirstBelief = 64;
constexpr int kMostDoublings = 4;
// Guess of what one more row costs, in steps of one row: low, so that it is tried.
constexpr double kGuess = 0.05;

double Guess(int32_t rows) { return 1 + kGuess * (rows - 1); }

}  // namespace

bool CostCurve::Fresh(const Size& size) const {
  return size.count > 0 && observed_ - size.at <= kFirstBelief
                                                      << std::min(size.count - 1, kMostDoublings);
}

void CostCurve::Observe(int32_t rows, double seconds) {
  if (rows < 1 || !(seconds > 0)) return;
  const size_t index = static_cast<size_t>(rows) - 1;
  if (index >= sizes_.size()) sizes_.resize(index + 1);
  if (level_ <= 0) level_ = seconds / Guess(rows);
  ++observed_;
  Size& size = sizes_[index];
  const double ratio = seconds / level_;
  if (size.count == 0) {
    size.ratio = ratio;
  } else if (!Fresh(size)) {
    size.ratio += kOfOld * (ratio - size.ratio);
  } else {
    const double error = std::clamp(ratio / size.ratio, kMostDown, kMostUp);
    const double own = size.count >= most_ ? 0 : std::max(1.0 / (size.count + 1), kOfRatio);
    size.ratio *= std::pow(error, own);
    level_ *= std::pow(error, kOfLevel * (1 - own));
  }
  size.at = observed_;
  most_ = std::max(most_, ++size.count);
}

double CostCurve::Estimate(int32_t rows) const {
  int32_t below = 0;
  int32_t above = 0;
  for (int32_t r = 1; r <= static_cast<int32_t>(sizes_.size()); ++r) {
    if (!Fresh(sizes_[static_cast<size_t>(r) - 1])) continue;
    if (r <= rows) below = r;
    if (r >= rows && above == 0) above = r;
  }
  const double level = level_ > 0 ? level_ : 1;
  const auto at = [this](int32_t r) { return sizes_[static_cast<size_t>(r) - 1].ratio; };
  if (below == 0 && above == 0) return level * Guess(rows);
  if (below == 0) return level * at(above) * Guess(rows) / Guess(above);
  if (above == 0 || above == below) return level * at(below) * Guess(rows) / Guess(below);
  const double share = static_cast<double>(rows - below) / (above - below);
  return level * (at(below) + share * (at(above) - at(below)));
}

int64_t CostCurve::Age(int32_t rows) const {
  const size_t index = static_cast<size_t>(rows) - 1;
  if (index >= sizes_.size() || sizes_[index].count == 0) {
    return std::numeric_limits<int64_t>::max();
  }
  return observed_ - sizes_[index].at;
}

}  // namespace cogumi
