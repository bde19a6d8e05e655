#include "engine/model/certified_head.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace cogumi {
namespace {

// Panels that are computed exactly to know what the others must reach: with 4 and 8 of them as many
// follow.
constexpr size_t kSeeds = 4;

}  // namespace

CertifiedHead::CertifiedHead(const KernelTable& kernels, const PackedMatrix& head)
    : kernels_(kernels), head_(head), spread_(kMostRows), least_(kMostRows) {
  best_.resize(static_cast<size_t>(kMostRows) * static_cast<size_t>(head.Panels()));
  upper_.resize(best_.size());
}

void CertifiedHead::Run(ThreadPool& pool, int thread, const Activations& in, int rows,
                        float* logits) {
  const auto [begin, end] = pool.Share(rows, thread);
  for (int row = begin; row < end; ++row) spread_[static_cast<size_t>(row)] = Spread(in, row);
  pool.Barrier();
  ScanHeadArgs scan;
  scan.w = &head_;
  scan.in = &in;
  scan.rows = rows;
  scan.spread = spread_.data();
  scan.logits = logits;
  scan.best = best_.data();
  scan.upper = upper_.data();
  pool.ForEach(head_.Panels(), thread, [&](int panel_begin, int panel_end) {
    kernels_.scan_head(scan, panel_begin, panel_end);
  });
  HeadArgs one;
  one.w = &head_;
  one.in = &in;
  one.rows = 1;
  one.logits = logits;
  for (one.first = begin; one.first < end; ++one.first) Seed(one, rows);
  pool.Barrier();
  pool.ForEach(head_.Panels(), thread, [&](int panel_begin, int panel_end) {
    HeadArgs args = one;
    for (int panel = panel_begin; panel < panel_end; ++panel) {
      for (args.first = 0; args.first < rows; ++args.first) {
        const size_t row = static_cast<size_t>(args.first);
        const size_t at = static_cast<size_t>(panel) * static_cast<size_t>(rows) + row;
        if (upper_[at] >= least_[row]) kernels_.head(args, panel, panel + 1);
      }
    }
  });
}

float CertifiedHead::Spread(const Activations& in, int slot) const {
  const bool wide = in.Wide(slot);
  double squares = 0;
  for (int b = 0; b < static_cast<int>(head_.Blocks()); ++b) {
    const int8_t* codes = in.Codes(b, slot);
    int32_t size = 0;
    for (int i = 0; i < kBlockInputs; ++i) {
      size += std::abs(wide ? 256 * codes[i] + codes[kBlockInputs + i] : int32_t{codes[i]});
    }
    const size_t at = in.At(b, slot);
    const double block = static_cast<double>(in.scale[at]) *
                         (3.5 * size + 0.5 * std::abs(static_cast<double>(in.sum[at])));
    squares += block * block;
  }
  // Rounding of both sums: (blocks + 3) * 2^-24 of terms that are up to 127.5 / 3.5 times a
  // bound's, twice, and of the bound itself.
  const double slack = 1 + 5e-6 * static_cast<double>(head_.Blocks() + 8);
  return static_cast<float>(slack * std::sqrt(squares));
}

void CertifiedHead::Seed(HeadArgs args, int rows) {
  const size_t row = static_cast<size_t>(args.first);
  const size_t stride = static_cast<size_t>(rows);
  const size_t panels = static_cast<size_t>(head_.Panels());
  const size_t seeds = std::min(kSeeds, panels);
  // By descending estimate, the first of equals first.
  std::array<size_t, kSeeds> chosen{};
  size_t count = 0;
  const auto best = [&](size_t panel) { return best_[panel * stride + row]; };
  for (size_t panel = 0; panel < panels; ++panel) {
    size_t at = count;
    while (at > 0 && best(panel) > best(chosen[at - 1])) --at;
    if (at == seeds) continue;
    count = std::min(count + 1, seeds);
    for (size_t i = count - 1; i > at; --i) chosen[i] = chosen[i - 1];
    chosen[at] = panel;
  }
  float max = -INFINITY;
  const float* values = args.logits + row * static_cast<size_t>(head_.rows);
  for (size_t i = 0; i < seeds; ++i) {
    const int panel = static_cast<int>(chosen[i]);
    kernels_.head(args, panel, panel + 1);
    upper_[chosen[i] * stride + row] = -INFINITY;
    const int end = std::min(head_.rows, (panel + 1) * kPanelRows);
    for (int token = panel * kPanelRows; token < end; ++token) max = std::max(max, values[token]);
  }
  least_[row] = max;
}

}  // namespace cogumi
