// The certified head against the whole product: the same largest logit and token, in every tier.
#include "engine/model/certified_head.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "engine/model/heavy_inputs.h"
#include "tests/kernels/every_tier.h"
#include "tests/kernels/quantised_input.h"
#include "tests/kernels/random_weights.h"

namespace cogumi {
namespace {

const KernelTable* counted = nullptr;
std::atomic<int> whole_panels{0};

// A tier's table that counts the panels computed whole.
KernelTable Counting(const KernelTable& tier) {
  counted = &tier;
  whole_panels = 0;
  KernelTable table = tier;
  table.head = [](const HeadArgs& args, int begin, int end) {
    whole_panels += (end - begin) * args.rows;
    counted->head(args, begin, end);
  };
  return table;
}

class CertifiedHeadTest : public EveryTier {
 protected:
  // Both heads for x[rows][inputs].
  struct Both {
    std::vector<float> certified;
    std::vector<float> whole;
    int panels = 0;  // computed whole by the certified one
  };
  Both Compute(const TestMatrix& w, const std::vector<float>& x, int rows, bool wide,
               int threads) const {
    Input input(x, w.packed.inputs, rows, wide, kernels());
    const Activations& in = input.buffer.view;
    Both both;
    both.whole.resize(static_cast<size_t>(rows) * static_cast<size_t>(w.packed.rows));
    both.certified.assign(both.whole.size(), -1.0f);
    kernels().head({&w.packed, &in, rows, both.whole.data()}, 0, w.packed.Panels());
    const KernelTable table = Counting(kernels());
    CertifiedHead head(table, w.packed);
    head.Gather(&input.buffer.view, rows);
    ThreadPool pool(threads);
    pool.Run([&](int thread) { head.Run(pool, thread, in, rows, both.certified.data()); });
    both.panels = whole_panels;
    return both;
  }

  static void ExpectSameLargest(const Both& both, int rows) {
    const auto size = static_cast<std::ptrdiff_t>(both.whole.size()) / rows;
    for (int row = 0; row < rows; ++row) {
      const auto want = both.whole.begin() + row * size;
      const auto got = both.certified.begin() + row * size;
      const auto largest = std::max_element(want, want + size);
      ASSERT_EQ(std::max_element(got, got + size) - got, largest - want) << "row " << row;
      ASSERT_EQ(*(got + (largest - want)), *largest) << "row " << row;
    }
  }

  std::mt19937 random_{5};
};

TEST_P(CertifiedHeadTest, FindsTheLargestLogitOfAnyRow) {
  for (const int inputs : {32, 96, 576}) {
    for (const int outputs : {1, 33, 100, 2000}) {
      if (Slow() && outputs * inputs > 10000) continue;
      const TestMatrix w(GgmlType::kQ8_0, outputs, inputs, random_, true);
      for (int round = 0; round < 12; ++round) {
        const int rows = 1 + round % CertifiedHead::kMostRows;
        std::normal_distribution<float> normal(0.0f, 1.0f);
        std::vector<float> x(static_cast<size_t>(rows * inputs));
        for (float& v : x) v = normal(random_) * (round % 4 == 1 ? std::exp(normal(random_)) : 1);
        if (round % 4 == 2) std::fill(x.begin() + 1, x.end(), 0.0f);
        if (round % 4 == 3) {
          // Along a row of the matrix: one token stands out.
          UnpackRow(w.packed, static_cast<int>(random_() % static_cast<unsigned>(outputs)),
                    x.data());
        }
        for (const bool wide : {true, false}) {
          const Both both = Compute(w, x, rows, wide, 1 + round % 3);
          ExpectSameLargest(both, rows);
          if (HasFatalFailure()) FAIL() << outputs << "x" << inputs << " round " << round;
        }
      }
    }
  }
}

// The best row has all that matters in its lower bits, and the others, which have all in their
// upper ones, are just below it: their estimates are far above its own.
TEST_P(CertifiedHeadTest, WhatEstimatesDoNotTellIsComputed) {
  const int inputs = 64;
  const int outputs = 640;
  for (int round = 0; round < 20; ++round) {
    TestMatrix w(GgmlType::kQ8_0, outputs, inputs, random_, true);
    std::vector<float> x(inputs);
    for (float& v : x) v = random_() % 2 == 0 ? 1.0f : -1.0f;
    const auto ups = std::count(x.begin(), x.end(), 1.0f);
    const auto best = static_cast<int>(random_() % outputs);
    for (int row = 0; row < outputs; ++row) {
      // Of a row that is not the best: nothing beside it, elsewhere one less.
      auto left = row / kPanelRows == best / kPanelRows ? 0 : 7 * ups - 1;
      for (int i = 0; i < inputs; ++i) {
        std::byte* block = w.raw.data() + (row * (inputs / 32) + i / 32) * 34;
        const uint16_t one = 0x3C00;
        std::memcpy(block, &one, 2);
        std::ptrdiff_t code = 0;
        if (x[static_cast<size_t>(i)] > 0)
          code = row == best ? 7 : std::min<std::ptrdiff_t>(left, 8);
        if (row != best) left -= code;
        block[2 + i % 32] = static_cast<std::byte>(code);
      }
    }
    w.Pack();
    const Both both = Compute(w, x, 1, true, 2);
    const auto largest = std::max_element(both.whole.begin(), both.whole.end());
    ASSERT_EQ(largest - both.whole.begin(), best);
    ExpectSameLargest(both, 1);
  }
}

TEST_P(CertifiedHeadTest, ComputesLittleWhereOneTokenStandsOut) {
  const int inputs = 576;
  const int outputs = Slow() ? 512 : 4096;
  const TestMatrix w(GgmlType::kQ8_0, outputs, inputs, random_, true);
  std::vector<float> x(inputs);
  UnpackRow(w.packed, 333, x.data());
  const Both both = Compute(w, x, 1, true, 2);
  ExpectSameLargest(both, 1);
  EXPECT_LE(both.panels, 8);
  EXPECT_GE(both.panels, 1);
}

// Large values at heavy inputs leave few panels, anywhere else many.
TEST_P(CertifiedHeadTest, EstimatesKnowTheHeavyInputs) {
  const int inputs = 576;
  const int outputs = Slow() ? 1024 : 4096;
  TestMatrix w(GgmlType::kQ8_0, outputs, inputs, random_, true);
  for (size_t i = 0; i < w.raw.size(); ++i) {  // much of what codes say is in their lower bits
    const uint16_t scale = 0x2000;
    if (i % 34 == 0) std::memcpy(w.raw.data() + i, &scale, 2);
    if (i % 34 >= 2) w.raw[i] = static_cast<std::byte>(random_() % 61 - 30);
  }
  w.Pack();
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> heavy(inputs);
  for (float& v : heavy) v = 0.01f * normal(random_);
  std::vector<float> light = heavy;
  for (const int32_t k : w.heavy) {
    const float value = normal(random_);
    heavy[static_cast<size_t>(k)] = value;
    light[static_cast<size_t>(k + 1)] = value;  // heavy inputs lie seven apart
  }
  const Both known = Compute(w, heavy, 1, true, 2);
  const Both unknown = Compute(w, light, 1, true, 2);
  ExpectSameLargest(known, 1);
  ExpectSameLargest(unknown, 1);
  EXPECT_LE(4 * known.panels, unknown.panels) << known.panels << " of " << w.packed.Panels();
}

GgufTensor Floats(const std::vector<float>& values, std::vector<uint64_t> shape) {
  GgufTensor tensor;
  tensor.shape = std::move(shape);
  tensor.data = std::as_bytes(std::span(values));
  return tensor;
}

TEST(HeavyInputs, ComeByTheNormsWeightAndWhatIsWrittenBeforeIt) {
  const size_t width = 96;
  const size_t ffn = 2;
  std::vector<float> norm(width, 1.0f);
  std::vector<float> down(width * ffn, 0.5f);
  norm[70] = -3.0f;          // 9 times the energy
  down[5 * ffn + 1] = 2.0f;  // 8.5 times
  norm[6] = 0.1f;
  down[6 * ffn] = 2.0f;  // as large, but little of it comes through
  down[7 * ffn] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<int32_t> heavy = HeavyInputs(Floats(norm, {width}), Floats(down, {ffn, width}));
  ASSERT_EQ(heavy.size(), size_t{kHeavyInputs});
  EXPECT_EQ(heavy[0], 70);
  EXPECT_EQ(heavy[1], 5);
  EXPECT_EQ(heavy[2], 0) << "of equals the first";
  EXPECT_EQ(std::count(heavy.begin(), heavy.end(), 6), 0);
  EXPECT_EQ(std::count(heavy.begin(), heavy.end(), 7), 0);
  std::vector<int32_t> once = heavy;
  std::sort(once.begin(), once.end());
  EXPECT_EQ(std::unique(once.begin(), once.end()), once.end());
}

// Beside others or alone, on any number of threads: the same bits, estimates too.
TEST_P(CertifiedHeadTest, ARowDependsOnItselfOnly) {
  const int inputs = 96;
  const int outputs = 333;
  const int rows = CertifiedHead::kMostRows;
  const TestMatrix w(GgmlType::kQ8_0, outputs, inputs, random_, true);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> x(rows * inputs);
  for (float& v : x) v = normal(random_);
  const Both together = Compute(w, x, rows, true, 3);
  for (int row = 0; row < rows; ++row) {
    const std::vector<float> one(x.begin() + row * inputs, x.begin() + (row + 1) * inputs);
    const Both alone = Compute(w, one, 1, true, 1);
    EXPECT_TRUE(std::equal(alone.certified.begin(), alone.certified.end(),
                           together.certified.begin() + row * outputs))
        << row;
  }
}

TEST_P(CertifiedHeadTest, AValueThatIsNotFiniteShows) {
  const int inputs = 64;
  const TestMatrix w(GgmlType::kQ8_0, 200, inputs, random_, true);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> x(2 * inputs, 0.5f);
    x[70] = bad;
    const Both both = Compute(w, x, 2, true, 2);
    for (int i = 0; i < 400; ++i) {
      ASSERT_EQ(std::isnan(both.certified[static_cast<size_t>(i)]), i >= 200) << i;
    }
  }
}

COGUMI_EVERY_TIER(CertifiedHeadTest);

}  // namespace
}  // namespace cogumi
