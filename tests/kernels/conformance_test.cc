// Every fused operation, in every tier that this machine runs, against the scalar reference, over
// shape classes; and every output independent of the rows that are computed with it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/kernels/registry.h"
#include "engine/model/activation_buffer.h"
#include "engine/model/certified_head.h"
#include "tests/kernels/every_tier.h"
#include "tests/kernels/quantised_input.h"
#include "tests/kernels/random_weights.h"

namespace cogumi {
namespace {

std::vector<float> RandomFloats(size_t n, std::mt19937& random, float scale = 1.0f) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(n);
  for (float& v : values) v = normal(random);
  return values;
}

// The scale of float32 rounding of a dot product: sums of about sqrt(inputs) terms of size one.
float DotTolerance(int inputs) { return 4e-6f * static_cast<float>(inputs); }

class KernelConformance : public EveryTier {
 protected:
  std::mt19937 random_{7};
};

TEST_P(KernelConformance, NormQuantiseMatchesReference) {
  for (const int inputs : {32, 64, 576, 1536}) {
    for (const bool int16 : {true, false}) {
      for (const bool norm : {true, false}) {
        const int rows = 5;
        std::vector<float> x = RandomFloats(static_cast<size_t>(rows * inputs), random_, 3.0f);
        std::fill(x.begin(), x.begin() + 32, 0.0f);  // an all-zero block
        const std::vector<float> weight = RandomFloats(static_cast<size_t>(inputs), random_);
        ActivationBuffer got, want;
        for (ActivationBuffer* buffer : {&got, &want}) {
          buffer->Allocate(inputs, rows);
          buffer->view.wide_slots = int16 ? rows : 0;
          buffer->view.inputs = inputs;
          buffer->view.want_quantised = buffer->view.want_f32 = true;
          NormQuantiseArgs args;
          args.x = x.data();
          args.stride = static_cast<size_t>(inputs);
          args.weight = norm ? weight.data() : nullptr;
          args.epsilon = 1e-5f;
          args.out = &buffer->view;
          (buffer == &got ? kernels() : ReferenceKernels()).norm_quantise(args, 0, rows);
        }
        const Activations& a = got.view;
        const Activations& b = want.view;
        for (int block = 0; block < inputs / 32; ++block) {
          for (int row = 0; row < rows; ++row) {
            const size_t at = a.At(block, row);
            ASSERT_NEAR(a.scale[at], b.scale[at], 2e-6f * b.scale[at]);
            const int8_t* p = a.Codes(block, row);
            const int8_t* q = b.Codes(block, row);
            int sum = 0;
            int half = 0;
            for (int i = 0; i < 32; ++i) {
              const int code = int16 ? 256 * p[i] + p[32 + i] : p[i];
              const int expected = int16 ? 256 * q[i] + q[32 + i] : q[i];
              ASSERT_NEAR(code, expected, 1) << "block " << block << " row " << row;
              const float value = b.f32[row * inputs + block * 32 + i];
              ASSERT_NEAR(static_cast<float>(code) * a.scale[at], value,
                          0.51f * a.scale[at] + 1e-6f);
              sum += code;
              if (i < 16) half += code;
            }
            ASSERT_EQ(a.sum[at], sum);
            ASSERT_EQ(a.half_sum[at], half);
            ASSERT_FLOAT_EQ(a.scaled_sum[at], a.scale[at] * static_cast<float>(sum));
          }
        }
        for (int i = 0; i < rows * inputs; ++i) {
          ASSERT_NEAR(a.f32[i], b.f32[i], 2e-6f * std::fabs(b.f32[i]));
        }
      }
    }
  }
}

TEST_P(KernelConformance, NormOfAWidthThatFillsNoBlock) {
  const int inputs = 48;
  const std::vector<float> x = RandomFloats(static_cast<size_t>(2 * inputs), random_);
  const std::vector<float> weight(static_cast<size_t>(inputs), 1.0f);
  ActivationBuffer buffer;
  buffer.Allocate(inputs, 2);
  buffer.view.wide_slots = 2;
  buffer.view.inputs = inputs;
  buffer.view.want_f32 = true;
  const int32_t rows[] = {1, 0};
  buffer.view.row_of = rows;
  NormQuantiseArgs args;
  args.x = x.data();
  args.stride = static_cast<size_t>(inputs);
  args.weight = weight.data();
  args.epsilon = 1e-5f;
  args.out = &buffer.view;
  kernels().norm_quantise(args, 0, 2);
  for (int row = 0; row < 2; ++row) {
    double mean = 0;
    for (int i = 0; i < inputs; ++i) {
      const double v = x[static_cast<size_t>((1 - row) * inputs + i)];
      mean += v * v / inputs;
    }
    for (int i = 0; i < inputs; ++i) {
      const double v = x[static_cast<size_t>((1 - row) * inputs + i)];
      ASSERT_NEAR(buffer.view.f32[row * inputs + i], v / std::sqrt(mean + 1e-5), 1e-5);
    }
  }
}

TEST_P(KernelConformance, ABlockWithAValueThatIsNotFiniteMakesTheProductNaN) {
  const int inputs = 96;
  const int rows = 3;
  const TestMatrix w(GgmlType::kQ4_1, 32, inputs, random_);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(),
        std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    for (int lane = 0; lane < 32; ++lane) {
      for (const bool int16 : {true, false}) {
        std::vector<float> x = RandomFloats(static_cast<size_t>(rows * inputs), random_);
        x[static_cast<size_t>(inputs + 32 + lane)] = bad;  // the middle row, the middle block
        Input input(x, inputs, rows, int16, kernels());
        Activations& view = input.buffer.view;
        for (int block = 0; block < 3; ++block) {
          for (int row = 0; row < rows; ++row) {
            const size_t at = view.At(block, row);
            ASSERT_EQ(std::isnan(view.scale[at]), block == 1 && row == 1) << bad;
            if (block != 1 || row != 1) continue;
            ASSERT_TRUE(std::isnan(view.scaled_sum[at]));
            ASSERT_EQ(view.sum[at], 0);
            ASSERT_EQ(view.half_sum[at], 0);
            const int8_t* codes = view.Codes(1, 1);
            for (int i = 0; i < (int16 ? 64 : 32); ++i) ASSERT_EQ(codes[i], 0);
          }
        }
        std::vector<float> out(static_cast<size_t>(rows * 32));
        const HeadArgs head{&w.packed, &view, rows, out.data()};
        kernels().head(head, 0, 1);
        for (int i = 0; i < rows * 32; ++i) {
          ASSERT_EQ(std::isnan(out[static_cast<size_t>(i)]), i / 32 == 1) << bad << " " << lane;
        }
      }
    }
  }
}

// The factor of such a block would overflow; its values are as good as zero.
TEST_P(KernelConformance, ABlockOfTheTiniestValuesIsZero) {
  const std::vector<float> x(32, 1e-42f);
  ActivationBuffer buffer;
  buffer.Allocate(32, 1);
  buffer.view.wide_slots = 1;
  buffer.view.inputs = 32;
  buffer.view.want_quantised = true;
  NormQuantiseArgs args;
  args.x = x.data();
  args.stride = 32;
  args.out = &buffer.view;
  kernels().norm_quantise(args, 0, 1);
  for (int i = 0; i < 64; ++i) ASSERT_EQ(buffer.view.codes[i], 0);
  EXPECT_EQ(buffer.view.sum[0], 0);
  EXPECT_EQ(buffer.view.scaled_sum[0], 0);
}

TEST_P(KernelConformance, SwigluOfAValueThatIsNotFiniteIsNotFinite) {
  const TestMatrix gate(GgmlType::kF32, 32, 32, random_);
  const TestMatrix up(GgmlType::kF32, 32, 32, random_);
  std::vector<float> x = RandomFloats(32, random_);
  x[5] = std::numeric_limits<float>::quiet_NaN();
  Input input(x, 32, 1, true);
  ActivationBuffer buffer;
  buffer.Allocate(32, 1);
  buffer.view.wide_slots = 1;
  buffer.view.inputs = 32;
  buffer.view.want_f32 = buffer.view.want_quantised = true;
  const GateUpSwigluArgs args{&gate.packed, &up.packed, &input.buffer.view, 1, &buffer.view};
  kernels().gate_up_swiglu(args, 0, 1);
  for (int i = 0; i < 32; ++i) ASSERT_TRUE(std::isnan(buffer.view.f32[i])) << i;
  EXPECT_TRUE(std::isnan(buffer.view.scale[0]));
}

TEST_P(KernelConformance, HeadMatchesReferenceForEveryTypeAndWidth) {
  for (const GgmlType type : kAllTypes) {
    const bool super = TraitsOf(type)->block_elements == 256;
    for (const int inputs : super ? std::vector<int>{256, 768} : std::vector<int>{32, 96, 576}) {
      for (const int outputs : {1, 31, 32, 33, 100}) {
        const TestMatrix w(type, outputs, inputs, random_);
        for (const bool int16 : {true, false}) {
          const int most = 70;
          const std::vector<float> x =
              RandomFloats(static_cast<size_t>(most * inputs), random_, 2.0f);
          Input input(x, inputs, most, int16);
          std::vector<float> want(static_cast<size_t>(most * outputs));
          HeadArgs args;
          args.w = &w.packed;
          args.in = &input.buffer.view;
          args.rows = most;
          args.logits = want.data();
          ReferenceKernels().head(args, 0, w.packed.Panels());
          std::vector<float> all(want.size());
          args.logits = all.data();
          kernels().head(args, 0, w.packed.Panels());
          for (size_t i = 0; i < want.size(); ++i) {
            ASSERT_NEAR(all[i], want[i], DotTolerance(inputs))
                << GgmlTypeName(type) << " " << outputs << "x" << inputs << " row "
                << i / static_cast<size_t>(outputs) << (int16 ? " int16" : " int8");
          }
          // The same bits whatever is computed beside a row.
          for (const int rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 32, 65}) {
            std::vector<float> some(static_cast<size_t>(rows * outputs), -1.0f);
            args.rows = rows;
            args.logits = some.data();
            kernels().head(args, 0, w.packed.Panels());
            ASSERT_EQ(0, std::memcmp(some.data(), all.data(), some.size() * sizeof(float)))
                << GgmlTypeName(type) << " with " << rows << " rows";
          }
        }
      }
    }
  }
}

// Tiles give the integers that vpdpbusd gives, in the same order.
TEST(Amx, HasTheBitsOfVnni) {
  if (!SelectKernels("avx512amx").ok()) {
    GTEST_SKIP() << "this CPU cannot run avx512amx, it has " << CpuFeatures();
  }
  std::mt19937 random(11);
  for (const GgmlType type : kAllTypes) {
    const int inputs = TraitsOf(type)->block_elements == 256 ? 768 : 96;
    const int outputs = 70;
    const int most = 70;
    for (const bool split : {false, true}) {
      const TestMatrix w(type, outputs, inputs, random, split);
      for (const bool int16 : {true, false}) {
        Input input(RandomFloats(static_cast<size_t>(most * inputs), random), inputs, most, int16);
        // Groups of all sizes, that end within and at the end of the slots.
        for (int rows = 1; rows <= most; ++rows) {
          std::vector<float> want(static_cast<size_t>(most * outputs));
          std::vector<float> got(want.size());
          const int first = rows % 2 == 0 ? 0 : most - rows;
          Avx512VnniKernels().head({&w.packed, &input.buffer.view, rows, want.data(), first}, 0,
                                   w.packed.Panels());
          Avx512AmxKernels().head({&w.packed, &input.buffer.view, rows, got.data(), first}, 0,
                                  w.packed.Panels());
          ASSERT_EQ(0, std::memcmp(got.data(), want.data(), want.size() * sizeof(float)))
              << GgmlTypeName(type) << (int16 ? " int16, " : " int8, ") << rows << " rows";
        }
      }
    }
  }
}

TEST_P(KernelConformance, ASplitHeadHasTheBitsOfAWholeOne) {
  for (const int inputs : {32, 96, 576}) {
    for (const int outputs : {1, 31, 33, 100}) {
      const TestMatrix split(GgmlType::kQ8_0, outputs, inputs, random_, true);
      TestMatrix whole(GgmlType::kQ8_0, outputs, inputs, random_);
      whole.raw = split.raw;
      whole.Pack();
      ASSERT_TRUE(split.packed.format.split);
      for (const bool int16 : {true, false}) {
        const int most = 65;
        const std::vector<float> x =
            RandomFloats(static_cast<size_t>(most * inputs), random_, 2.0f);
        Input input(x, inputs, most, int16);
        std::vector<float> want(static_cast<size_t>(most * outputs));
        kernels().head({&whole.packed, &input.buffer.view, most, want.data()}, 0,
                       whole.packed.Panels());
        for (const int rows : {1, 2, 3, 4, 5, 8, 65}) {
          for (const int first : {0, most - rows}) {
            std::vector<float> got(want.size());
            kernels().head({&split.packed, &input.buffer.view, rows, got.data(), first}, 0,
                           split.packed.Panels());
            const size_t begin = static_cast<size_t>(first * outputs);
            ASSERT_EQ(0, std::memcmp(got.data() + begin, want.data() + begin,
                                     static_cast<size_t>(rows * outputs) * sizeof(float)))
                << rows << " rows of " << outputs << "x" << inputs;
          }
        }
      }
    }
  }
}

// Estimates leave out what they say they do, and the extremes of a panel are of its rows only.
TEST_P(KernelConformance, ScanHeadEstimatesWithoutTheLowerBits) {
  for (const int inputs : {32, 96, 576}) {
    for (const int outputs : {1, 31, 33, 100}) {
      TestMatrix w(GgmlType::kQ8_0, outputs, inputs, random_, true);
      TestMatrix coarse(GgmlType::kQ8_0, outputs, inputs, random_);
      coarse.raw = w.raw;
      for (size_t i = 0; i < coarse.raw.size(); ++i) {
        // A code + 128 with its lower bits replaced by four.
        if (i % 34 >= 2) coarse.raw[i] = (coarse.raw[i] & std::byte{0xF8}) | std::byte{4};
      }
      coarse.Pack();
      // What that leaves out of weight (row, input).
      const auto left_out = [&](size_t row, int input) {
        const size_t at =
            (row * static_cast<size_t>(inputs / 32) + static_cast<size_t>(input / 32)) * 34;
        uint16_t half;
        std::memcpy(&half, w.raw.data() + at, 2);
        const int code = static_cast<int>(w.raw[at + 2 + static_cast<size_t>(input % 32)]);
        return static_cast<double>(HalfToFloat(half)) * ((code & 7) - 4);
      };
      const int rows = 7;
      const std::vector<float> x = RandomFloats(static_cast<size_t>(rows * inputs), random_, 2.0f);
      for (const bool int16 : {true, false}) {
        Input input(x, inputs, rows, int16);
        CertifiedHead(kernels(), w.packed).Gather(&input.buffer.view, rows);
        const size_t panels = static_cast<size_t>(w.packed.Panels());
        std::vector<float> want(static_cast<size_t>(rows * outputs)), got(want.size());
        ReferenceKernels().head({&coarse.packed, &input.buffer.view, rows, want.data()}, 0,
                                w.packed.Panels());
        std::vector<float> best(panels * rows), upper(panels * rows);
        const std::vector<float> spread = {0.0f, 0.5f, 1.0f, 2.0f, 3.0f, 4.0f, 5.0f};
        ScanHeadArgs args{&w.packed,  &input.buffer.view, rows,        spread.data(),
                          got.data(), best.data(),        upper.data()};
        kernels().scan_head(args, 0, w.packed.Panels());
        for (size_t row = 0; row < rows; ++row) {
          const float* values = x.data() + row * static_cast<size_t>(inputs);
          for (size_t o = 0; o < static_cast<size_t>(outputs); ++o) {
            double heavy = 0;
            double most = 0;
            double sizes = 0;
            double largest = 0;
            for (const int32_t k : w.heavy) {
              const auto value = static_cast<double>(values[k]);
              heavy += left_out(o, k) * value;
              most = std::max(most, std::fabs(left_out(o, k)));
              sizes += std::fabs(value);
              largest = std::max(largest, std::fabs(value));
            }
            // Half of one of 32 levels, and the values' second quantisation.
            const double slack = most * (0.034 * sizes + 32 * largest / (int16 ? 32512 : 127));
            const size_t at = row * static_cast<size_t>(outputs) + o;
            ASSERT_NEAR(static_cast<double>(got[at]), static_cast<double>(want[at]) + heavy,
                        slack + static_cast<double>(DotTolerance(inputs)))
                << outputs << "x" << inputs;
          }
          for (size_t p = 0; p < panels; ++p) {
            float most = -INFINITY;
            float furthest = -INFINITY;
            for (size_t i = 32 * p; i < std::min<size_t>(32 * p + 32, outputs); ++i) {
              double squares = 0;
              for (int k = 0; k < inputs; ++k) {
                const bool light = std::count(w.heavy.begin(), w.heavy.end(), k) == 0;
                if (light) squares += std::pow(left_out(i, k), 2);
              }
              const float norm = w.packed.Norms(static_cast<int>(p))[i % 32];
              ASSERT_GE(static_cast<double>(norm), std::sqrt(squares) * (1 - 1e-6));
              // Nothing else counts where most is left out.
              if (inputs == 576) {
                ASSERT_LE(static_cast<double>(norm), std::sqrt(squares) * 1.001);
              }
              const float value = got[row * static_cast<size_t>(outputs) + i];
              most = std::max(most, value);
              furthest = std::max(furthest, value + spread[row] * norm);
            }
            ASSERT_EQ(best[p * rows + row], most);
            ASSERT_NEAR(upper[p * rows + row], furthest, 1e-5f * (1 + std::fabs(furthest)));
          }
        }
      }
    }
  }
}

TEST_P(KernelConformance, ProjectResidualAddsToItsPanelsOnly) {
  const int inputs = 96;
  const int outputs = 100;
  const int rows = 6;
  const TestMatrix w(GgmlType::kQ4_1, outputs, inputs, random_);
  const std::vector<float> x = RandomFloats(static_cast<size_t>(rows * inputs), random_);
  Input input(x, inputs, rows, true);
  std::vector<float> product(static_cast<size_t>(rows * outputs));
  HeadArgs head{&w.packed, &input.buffer.view, rows, product.data()};
  kernels().head(head, 0, w.packed.Panels());
  const std::vector<float> before = RandomFloats(product.size(), random_);
  std::vector<float> after = before;
  ProjectResidualArgs args{&w.packed, &input.buffer.view, rows, after.data()};
  kernels().project_residual(args, 1, 3);
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < outputs; ++i) {
      const size_t at = static_cast<size_t>(r * outputs + i);
      const bool inside = i >= 32 && i < 96;
      ASSERT_EQ(after[at], inside ? before[at] + product[at] : before[at]) << r << " " << i;
    }
  }
}

TEST_P(KernelConformance, ProjectResidualMatchesReferenceForEveryType) {
  const int outputs = 65;
  const int rows = 9;
  for (const GgmlType type : kAllTypes) {
    const int inputs = TraitsOf(type)->block_elements == 256 ? 256 : 96;
    const TestMatrix w(type, outputs, inputs, random_);
    for (const bool int16 : {true, false}) {
      Input input(RandomFloats(static_cast<size_t>(rows * inputs), random_), inputs, rows, int16);
      const std::vector<float> before = RandomFloats(static_cast<size_t>(rows * outputs), random_);
      std::vector<float> got = before;
      std::vector<float> want = before;
      ProjectResidualArgs args{&w.packed, &input.buffer.view, rows, got.data()};
      kernels().project_residual(args, 0, w.packed.Panels());
      args.x = want.data();
      ReferenceKernels().project_residual(args, 0, w.packed.Panels());
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_NEAR(got[i], want[i], DotTolerance(inputs))
            << GgmlTypeName(type) << (int16 ? " int16 " : " int8 ") << i;
      }
      ASSERT_NE(got, before);
    }
  }
}

TEST_P(KernelConformance, GateUpSwigluMatchesReferenceForEveryType) {
  const int outputs = 64;
  const int rows = 9;
  for (const GgmlType type : kAllTypes) {
    const int inputs = TraitsOf(type)->block_elements == 256 ? 256 : 96;
    const TestMatrix gate(type, outputs, inputs, random_);
    const TestMatrix up(type, outputs, inputs, random_);
    for (const bool int16 : {true, false}) {
      Input input(RandomFloats(static_cast<size_t>(rows * inputs), random_), inputs, rows, int16);
      ActivationBuffer got, want;
      for (ActivationBuffer* buffer : {&got, &want}) {
        buffer->Allocate(outputs, rows);
        buffer->view.wide_slots = int16 ? rows : 0;
        buffer->view.inputs = outputs;
        buffer->view.want_f32 = buffer->view.want_quantised = true;
        const GateUpSwigluArgs args{&gate.packed, &up.packed, &input.buffer.view, rows,
                                    &buffer->view};
        (buffer == &got ? kernels() : ReferenceKernels())
            .gate_up_swiglu(args, 0, gate.packed.Panels());
      }
      // The product of two dot products, so an error counts as often as the other one is large.
      for (int i = 0; i < rows * outputs; ++i) {
        ASSERT_NEAR(got.view.f32[i], want.view.f32[i], 1e-2f + 1e-4f * std::fabs(want.view.f32[i]))
            << GgmlTypeName(type) << (int16 ? " int16 " : " int8 ") << i;
      }
    }
  }
}

TEST_P(KernelConformance, GateUpSwigluMatchesReference) {
  for (const int outputs : {32, 96, 160}) {
    for (const int rows : {1, 3, 5, 66}) {
      const int inputs = 64;
      const TestMatrix gate(GgmlType::kQ4_0, outputs, inputs, random_);
      const TestMatrix up(GgmlType::kQ8_0, outputs, inputs, random_);
      const std::vector<float> x = RandomFloats(static_cast<size_t>(rows * inputs), random_, 4.0f);
      Input input(x, inputs, rows, true);
      ActivationBuffer got, want;
      for (ActivationBuffer* buffer : {&got, &want}) {
        buffer->Allocate(outputs, rows);
        buffer->view.wide_slots = rows;
        buffer->view.inputs = outputs;
        buffer->view.want_f32 = buffer->view.want_quantised = true;
        const GateUpSwigluArgs args{&gate.packed, &up.packed, &input.buffer.view, rows,
                                    &buffer->view};
        (buffer == &got ? kernels() : ReferenceKernels())
            .gate_up_swiglu(args, 0, gate.packed.Panels());
      }
      for (int i = 0; i < rows * outputs; ++i) {
        ASSERT_NEAR(got.view.f32[i], want.view.f32[i], 1e-4f + 1e-5f * std::fabs(want.view.f32[i]));
      }
      for (int block = 0; block < outputs / 32; ++block) {
        for (int row = 0; row < rows; ++row) {
          const size_t at = got.view.At(block, row);
          ASSERT_NEAR(got.view.scale[at], want.view.scale[at], 1e-4f * want.view.scale[at] + 1e-9f);
        }
      }
    }
  }
}

struct AttentionShape {
  int heads;
  int kv_heads;
  int head_dim;
  int rope_dim;
  bool f32;
};

constexpr AttentionShape kAttentionShapes[] = {
    {9, 3, 64, 64, false}, {4, 4, 16, 16, false},   {4, 1, 24, 16, false},
    {2, 2, 80, 80, true},  {8, 2, 128, 128, false}, {6, 3, 40, 0, true},
};

// A page pool for one layer in the middle of three.
struct Pages {
  Pages(const AttentionShape& shape, int tokens) {
    layout.wide = shape.f32 ? KvWide::kF32 : KvWide::kF16;
    layout.head_dim = shape.head_dim;
    layout.kv_heads = shape.kv_heads;
    layout.layer = 1;
    const size_t page = 3 * layout.WideHeadBytes() * static_cast<size_t>(shape.kv_heads);
    const int count = (tokens + 63) / 64;
    // NaN everywhere: what is not written must not be read into a result.
    memory.assign(page * static_cast<size_t>(count), std::byte{0xFF});
    for (int i = 0; i < count; ++i) {
      pages.push_back({memory.data() + page * static_cast<size_t>(count - 1 - i), nullptr});
    }
  }
  KvLayout layout;
  std::vector<std::byte> memory;
  std::vector<KvPageView> pages;
};

void FillRotation(int rows, const RowContext* context, int half, std::vector<float>* cosine,
                  std::vector<float>* sine) {
  cosine->resize(static_cast<size_t>(rows * half) + 1);
  sine->resize(cosine->size());
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < half; ++i) {
      const double angle = context[r].position / std::pow(100.0, static_cast<double>(i) / half);
      (*cosine)[static_cast<size_t>(r * half + i)] = static_cast<float>(std::cos(angle));
      (*sine)[static_cast<size_t>(r * half + i)] = static_cast<float>(std::sin(angle));
    }
  }
}

// What a tier and the reference write into queries and pages.
struct QkvCase {
  AttentionShape shape;
  GgmlType q, k, v;
  bool int16;
};

std::vector<QkvCase> QkvCases() {
  std::vector<QkvCase> cases;
  for (const AttentionShape& shape : kAttentionShapes) {
    cases.push_back({shape, GgmlType::kQ4_1, GgmlType::kQ4_0, GgmlType::kF16, true});
  }
  for (const GgmlType type : kAllTypes) {
    for (const bool int16 : {true, false}) {
      cases.push_back({kAttentionShapes[1], type, type, type, int16});
    }
  }
  return cases;
}

TEST_P(KernelConformance, QkvRopeAppendMatchesReference) {
  for (const auto& [shape, q_type, k_type, v_type, int16] : QkvCases()) {
    SCOPED_TRACE(GgmlTypeName(q_type) + (int16 ? " int16" : " int8"));
    const int inputs = TraitsOf(q_type)->block_elements == 256 ? 256 : 96;
    const int rows = 7;
    const int first = 60;  // crosses a page
    const int q_rows = shape.heads * shape.head_dim;
    const int kv_rows = shape.kv_heads * shape.head_dim;
    const TestMatrix wq(q_type, q_rows, inputs, random_);
    const TestMatrix wk(k_type, kv_rows, inputs, random_);
    const TestMatrix wv(v_type, kv_rows, inputs, random_);
    Input input(RandomFloats(static_cast<size_t>(rows * inputs), random_), inputs, rows, int16);
    std::vector<float> q[2];
    Pages pages[2] = {Pages(shape, 128), Pages(shape, 128)};
    for (int k = 0; k < 2; ++k) {
      std::vector<RowContext> context;
      for (int r = 0; r < rows; ++r) context.push_back({pages[k].pages.data(), first + r});
      std::vector<float> cosine, sine;
      FillRotation(rows, context.data(), shape.rope_dim / 2, &cosine, &sine);
      q[k].assign(static_cast<size_t>(rows * q_rows), -1.0f);
      QkvRopeAppendArgs args{&wq.packed,  &wk.packed,     &wv.packed,     &input.buffer.view,
                             rows,        q[k].data(),    context.data(), cosine.data(),
                             sine.data(), shape.rope_dim, nullptr,        pages[k].layout};
      const int panels = wq.packed.Panels() + wk.packed.Panels() + wv.packed.Panels();
      (k == 0 ? kernels() : ReferenceKernels()).qkv_rope_append(args, 0, panels);
    }
    for (size_t i = 0; i < q[0].size(); ++i) ASSERT_NEAR(q[0][i], q[1][i], 1e-4f) << i;
    size_t differing = 0;
    const size_t step = shape.f32 ? 4 : 2;
    for (size_t i = 0; i < pages[0].memory.size(); i += step) {
      float a, b;
      if (shape.f32) {
        std::memcpy(&a, &pages[0].memory[i], 4);
        std::memcpy(&b, &pages[1].memory[i], 4);
      } else {
        uint16_t x, y;
        std::memcpy(&x, &pages[0].memory[i], 2);
        std::memcpy(&y, &pages[1].memory[i], 2);
        a = HalfToFloat(x);
        b = HalfToFloat(y);
      }
      ASSERT_EQ(std::isnan(a), std::isnan(b)) << "slot written by one only, at byte " << i;
      if (std::isnan(a)) continue;
      ASSERT_NEAR(a, b, shape.f32 ? 1e-4f : 1e-4f + 1e-3f * std::fabs(b));
      ++differing;
    }
    EXPECT_EQ(differing, static_cast<size_t>(2 * rows * kv_rows));
  }
}

TEST_P(KernelConformance, SummariseMatchesReference) {
  for (const int count : {1, 2, 15, 16, 17, 100, 2048}) {
    std::vector<float> logits = RandomFloats(static_cast<size_t>(count + 3), random_, 5.0f);
    if (count >= 17) logits[3 + 9] = logits[3 + 16] = 40.0f;  // a tie: the lowest id wins
    const LogitPartial a = kernels().summarise(logits.data(), 3, count);
    const LogitPartial b = ReferenceKernels().summarise(logits.data(), 3, count);
    EXPECT_EQ(a.max, b.max);
    EXPECT_EQ(a.second, b.second) << count;
    EXPECT_EQ(a.argmax, b.argmax);
    EXPECT_TRUE(a.finite);
    EXPECT_NEAR(a.sum_exp, b.sum_exp, 1e-5f * b.sum_exp);
    EXPECT_NEAR(a.sum_exp_x, b.sum_exp_x, 1e-4f);
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
          -std::numeric_limits<float>::infinity()}) {
      std::vector<float> broken = logits;
      broken[static_cast<size_t>(3 + count - 1)] = bad;
      EXPECT_FALSE(kernels().summarise(broken.data(), 3, count).finite) << bad;
    }
  }
}

COGUMI_EVERY_TIER(KernelConformance);

TEST(Packing, HoldsEveryTypeWithoutLoss) {
  std::mt19937 random(3);
  for (const GgmlType type : kAllTypes) {
    const int inputs = TraitsOf(type)->block_elements == 256 ? 512 : 96;
    const int rows = 70;
    for (const bool head : {false, true}) {
      const TestMatrix w(type, rows, inputs, random, head);
      std::vector<float> want(static_cast<size_t>(rows * inputs));
      Dequantize(type, w.raw.data(), want.size(), want.data());
      std::vector<float> got(static_cast<size_t>(inputs));
      for (int r = 0; r < rows; ++r) {
        UnpackRow(w.packed, r, got.data());
        for (int i = 0; i < inputs; ++i) {
          ASSERT_EQ(got[static_cast<size_t>(i)], want[static_cast<size_t>(r * inputs + i)])
              << GgmlTypeName(type) << " row " << r << " input " << i;
        }
      }
    }
  }
}

TEST(Half, ConvertsEveryValueBothWays) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = HalfToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) continue;
    ASSERT_EQ(FloatToHalf(value), bits) << value;
  }
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7C00);
  EXPECT_EQ(FloatToHalf(1.0f + 0x1p-11f), 0x3C00);      // tie to even
  EXPECT_EQ(FloatToHalf(1.0f + 3 * 0x1p-11f), 0x3C02);  // tie to even
}

TEST(Registry, RefusesUnknownTiersByName) {
  const auto unknown = SelectKernels("sse9");
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.status().message()), ::testing::HasSubstr("avx512vnni"));
  ASSERT_TRUE(SelectKernels("reference").ok());
  EXPECT_STREQ((*SelectKernels("reference"))->name, "reference");
}

}  // namespace
}  // namespace cogumi
