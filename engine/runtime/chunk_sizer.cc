#include "engine/runtime/chunk_sizer.h"

#include <algorithm>
#include <cmath>

namespace cogumi {
namespace {

// Weight of the newest step: a few steps decide, one hiccup does not.
constexpr double kNewest = 0.3;
// A chunk of fewer costs about as much as one of these: the weights are read anyway.
constexpr int32_t kLeastRows = 8;
// Before anything was measured.
constexpr int32_t kFirstRows = 64;

void Blend(double& average, double value) {
  average = average > 0 ? average + kNewest * (value - average) : value;
}

}  // namespace

ChunkSizer::ChunkSizer(int32_t most, double target_seconds)
    : most_(most), target_(target_seconds) {}

int32_t ChunkSizer::Rows(int32_t others) const {
  if (std::isinf(target_)) return most_;
  if (seconds_per_row_ <= 0) return std::min(most_, kFirstRows);
  // As long as the decoding rows if they take more than half: a crowd that decodes must not leave a
  // newcomer's prompt less than half of the time.
  const double decoding = others > 0 ? other_seconds_ : 0;
  const double chunk = std::max(target_ - decoding, std::min(decoding, target_));
  const double rows = chunk / seconds_per_row_;
  if (rows >= most_) return most_;
  return std::min(most_, std::max(kLeastRows, static_cast<int32_t>(rows)));
}

void ChunkSizer::Measured(int32_t prompt_rows, int32_t other_rows, double seconds) {
  if (prompt_rows == 0) {
    if (other_rows > 0) Blend(other_seconds_, seconds);
    return;
  }
  // The others may have become fewer since.
  if (other_rows > 0) other_seconds_ = std::min(other_seconds_, seconds);
  const double others = other_rows > 0 ? other_seconds_ : 0;
  // What rows cost at least, so that a step that was faster than expected does not mean "free".
  const double least = seconds / (4 * static_cast<double>(prompt_rows + other_rows));
  Blend(seconds_per_row_, std::max(least, (seconds - others) / prompt_rows));
}

}  // namespace cogumi
