#include "engine/decode/cost_curve.h"

#include <algorithm>
#include <limits>

namespace cogumi {
namespace {

// Downwards fast, upwards slowly: a step that was held up says little.
constexpr double kDown = 0.4;
constexpr double kUp = 0.1;
constexpr double kMostUp = 2;  // times what was known
// A measurement is believed for this many steps after the first, twice as many each time.
constexpr int64_t kFirstBelief = 64;
constexpr int kMostDoublings = 4;
// Guess of what one more row costs, in steps of one row: low, so that it is tried.
constexpr double kGuess = 0.05;

double Guess(int32_t rows) { return 1 + kGuess * (rows - 1); }

}  // namespace

bool CostCurve::Fresh(const Size& size) const {
  return size.count > 0 &&
         observed_ - size.at <= kFirstBelief << std::min(size.count - 1, kMostDoublings);
}

void CostCurve::Observe(int32_t rows, double seconds) {
  if (rows < 1 || !(seconds > 0)) return;
  const size_t index = static_cast<size_t>(rows) - 1;
  if (index >= sizes_.size()) sizes_.resize(index + 1);
  ++observed_;
  Size& size = sizes_[index];
  if (Fresh(size)) {
    const double bounded = std::min(seconds, kMostUp * size.seconds);
    const double after =
        size.seconds + (bounded < size.seconds ? kDown : kUp) * (bounded - size.seconds);
    const double drift = after / size.seconds;
    for (Size& other : sizes_) other.seconds *= drift;
    size.seconds = after;
  } else {
    size.seconds = seconds;
  }
  size.at = observed_;
  ++size.count;
}

double CostCurve::Estimate(int32_t rows) const {
  int32_t below = 0;
  int32_t above = 0;
  for (int32_t r = 1; r <= static_cast<int32_t>(sizes_.size()); ++r) {
    if (!Fresh(sizes_[static_cast<size_t>(r) - 1])) continue;
    if (r <= rows) below = r;
    if (r >= rows && above == 0) above = r;
  }
  const auto at = [this](int32_t r) { return sizes_[static_cast<size_t>(r) - 1].seconds; };
  if (below == 0 && above == 0) return Guess(rows);
  if (below == 0) return at(above) * Guess(rows) / Guess(above);
  if (above == 0 || above == below) return at(below) * Guess(rows) / Guess(below);
  const double share = static_cast<double>(rows - below) / (above - below);
  return at(below) + share * (at(above) - at(below));
}

int64_t CostCurve::Age(int32_t rows) const {
  const size_t index = static_cast<size_t>(rows) - 1;
  if (index >= sizes_.size() || sizes_[index].count == 0) {
    return std::numeric_limits<int64_t>::max();
  }
  return observed_ - sizes_[index].at;
}

}  // namespace cogumi
