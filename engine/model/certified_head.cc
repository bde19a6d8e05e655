#include "engine/model/certified_head.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "engine/model/packing.h"

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

void CertifiedHead::Gather(Activations* in, int rows) const {
  const size_t blocks = head_.Blocks();
  Activations block = *in;  // behind the others, as a vector of its own
  block.inputs = kHeavyInputs;
  block.row_of = nullptr;
  block.want_quantised = true;
  block.want_f32 = false;
  block.codes += blocks * in->code_stride;
  block.scale += blocks * in->slot_stride;
  block.scaled_sum += blocks * in->slot_stride;
  block.sum += blocks * in->slot_stride;
  block.half_sum += blocks * in->slot_stride;
  std::array<float, kHeavyInputs> values;
  NormQuantiseArgs args;
  args.x = values.data();
  args.out = &block;
  for (int row = 0; row < rows; ++row) {
    for (size_t h = 0; h < values.size(); ++h) {
      values[h] = static_cast<float>(ValueOf(*in, row, head_.heavy[h]));
    }
    kernels_.norm_quantise(args, row, row + 1);
  }
}

double CertifiedHead::ValueOf(const Activations& in, int slot, int input) {
  const int block = input / kBlockInputs;
  const int8_t* codes = in.Codes(block, slot) + input % kBlockInputs;
  const int code = in.Wide(slot) ? 256 * codes[0] + codes[kBlockInputs] : int{codes[0]};
  return static_cast<double>(in.scale[in.At(block, slot)]) * code;
}

float CertifiedHead::Spread(const Activations& in, int slot) const {
  double all = 0;
  double sizes = 0;  // squares of blocks' sums of magnitudes
  for (int b = 0; b < static_cast<int>(head_.Blocks()); ++b) {
    double size = 0;
    for (int i = 0; i < kBlockInputs; ++i) {
      const double value = ValueOf(in, slot, b * kBlockInputs + i);
      all += value * value;
      size += std::fabs(value);
    }
    sizes += size * size;
  }
  double heavy = 0;
  double gathered = 0;  // error of their second quantisation
  for (int h = 0; h < kHeavyInputs; ++h) {
    const double value = ValueOf(in, slot, head_.heavy[h]);
    const double again = ValueOf(in, slot, head_.inputs + h);
    heavy += value * value;
    gathered += (value - again) * (value - again);
  }
  const double light = std::sqrt(std::max(all - heavy, 0.0));
  // Rounding of the estimate and of the whole product, chains of blocks + 8 operations that err by
  // 2^-24 of the terms' magnitudes. These add up to at most 128 times the norm of the row's scales
  // times that of the blocks' sizes, the heavy inputs' (up to 4 times the largest scale each) to 4
  // sqrt(blocks) times that.
  const double blocks = static_cast<double>(head_.Blocks());
  const double rounding = std::exp2(-24) * (blocks + 8) * (2 * 128 + 4 * std::sqrt(blocks));
  return static_cast<float>((light + std::sqrt(heavy) / kHeavyRest + std::sqrt(gathered)) * 1.001 +
                            rounding * std::sqrt(sizes));
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
