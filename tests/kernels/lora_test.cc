// Low-rank differences inside the fused operations, in every tier: equal to a computation in
// doubles, and the bits of a row independent of its neighbours and their adapters.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#include "engine/core/half.h"
#include "engine/kernels/registry.h"
#include "engine/model/activation_buffer.h"
#include "tests/kernels/random_weights.h"

namespace cogumi {
namespace {

constexpr LoraFormat kFormats[] = {LoraFormat::kF16, LoraFormat::kInt8};

// One layer's difference to the linears of a group, in random numbers.
class RandomAdapter {
 public:
  // `outputs`: of each linear of the group; 0 leaves it as it is.
  RandomAdapter(LoraGroup group, std::vector<LlamaLinear> linears, std::vector<int> outputs,
                int rank, int inputs, std::mt19937& random, LoraFormat format = LoraFormat::kF16)
      : inputs_(inputs), format_(format) {
    LoraLayer::Shrink& shrink = layer_.shrink[static_cast<int>(group)];
    const size_t stride = static_cast<size_t>(LoraStride(inputs));
    for (size_t l = 0; l < linears.size(); ++l) {
      if (outputs[l] == 0) continue;
      LoraLayer::Expand& expand = layer_.expand[static_cast<int>(linears[l])];
      expand.rank = rank;
      expand.first = shrink.ranks;
      shrink.ranks += rank;
      for (int k = 0; k < rank; ++k) {
        scale_.push_back(0.0125f * static_cast<float>(l + 1) / Unit() / Unit());
        for (size_t i = 0; i < stride; ++i) {
          Push(a_, i < static_cast<size_t>(inputs) ? normal_(random) : 0);
        }
      }
      std::vector<uint8_t>& b = b_.emplace_back();
      const int values = (outputs[l] + 31) / 32 * rank * 32;
      for (int i = 0; i < values; ++i) Push(b, normal_(random));
      expand.b = b.data();
    }
    shrink.a = a_.data();
    shrink.scale = scale_.data();
  }

  const LoraLayer* layers() const { return &layer_; }
  LoraFormat format() const { return format_; }

  // Output `o` of the difference for one row, in doubles.
  double Difference(LoraGroup group, LlamaLinear linear, const float* x, int o) const {
    const LoraLayer::Shrink& shrink = layer_.shrink[static_cast<int>(group)];
    const LoraLayer::Expand& expand = layer_.expand[static_cast<int>(linear)];
    double sum = 0;
    for (int k = 0; k < expand.rank; ++k) {
      const size_t rank = static_cast<size_t>(expand.first + k);
      double value = 0;
      for (size_t i = 0; i < static_cast<size_t>(inputs_); ++i) {
        value += Value(shrink.a, rank * static_cast<size_t>(LoraStride(inputs_)) + i) *
                 static_cast<double>(x[i]);
      }
      const size_t at = static_cast<size_t>((o / 32 * expand.rank + k) * 32 + o % 32);
      sum += value * static_cast<double>(shrink.scale[rank]) * Value(expand.b, at);
    }
    return sum;
  }

 private:
  // Of a value 1, in what is stored.
  float Unit() const { return format_ == LoraFormat::kInt8 ? 30.0f : 1.0f; }
  void Push(std::vector<uint8_t>& to, float value) const {
    to.resize(to.size() + LoraValueBytes(format_));
    if (format_ == LoraFormat::kInt8) {
      to.back() = static_cast<uint8_t>(std::lrint(std::clamp(value * Unit(), -127.0f, 127.0f)));
    } else {
      const uint16_t half = FloatToHalf(value);
      std::memcpy(&to.back() - 1, &half, sizeof half);
    }
  }
  double Value(const uint8_t* from, size_t i) const {
    if (format_ == LoraFormat::kInt8) return static_cast<int8_t>(from[i]);
    uint16_t half;
    std::memcpy(&half, from + 2 * i, sizeof half);
    return static_cast<double>(HalfToFloat(half));
  }

  int inputs_;
  LoraFormat format_;
  std::normal_distribution<float> normal_{0.0f, 1.0f};
  LoraLayer layer_;
  std::vector<uint8_t> a_;
  std::vector<float> scale_;
  std::deque<std::vector<uint8_t>> b_;
};

// A step's rows with their adapters (null: none), and what shrink computes for them.
struct Rows {
  Rows(const std::vector<const RandomAdapter*>& rows) {
    for (size_t r = 0; r < rows.size(); ++r) {
      const LoraLayer* layers = rows[r] != nullptr ? rows[r]->layers() : nullptr;
      adapters.push_back(layers);
      if (layers == nullptr) continue;
      if (!runs.empty() && runs.back().layers == layers &&
          runs.back().first + runs.back().count == static_cast<int>(r)) {
        ++runs.back().count;
      } else {
        runs.push_back({static_cast<int32_t>(r), 1, layers});
      }
    }
    values.assign(rows.size() * kLoraValues, NAN);
    view.adapters = adapters.data();
    view.runs = runs.data();
    view.run_count = static_cast<int>(runs.size());
    view.values = values.data();
    for (const RandomAdapter* adapter : rows) {
      if (adapter != nullptr) view.format = adapter->format();
    }
  }
  // Shared by rows and by ranks, into `shares` of each, as threads do.
  void Shrink(const KernelTable& kernels, LoraGroup group, const float* x, int inputs, int shares) {
    LoraShrinkArgs args{&view, group, x, inputs};
    args.parts = shares;
    const int rows = static_cast<int>(adapters.size());
    for (int i = 0; i < shares; ++i) {
      for (args.part = 0; args.part < shares; ++args.part) {
        kernels.lora_shrink(args, rows * i / shares, rows * (i + 1) / shares);
      }
    }
  }
  std::vector<const LoraLayer*> adapters;
  std::vector<LoraRun> runs;
  std::vector<float> values;
  LoraSlots view;
};

class LoraConformance : public testing::TestWithParam<const KernelTable*> {
 protected:
  std::vector<float> RandomFloats(int n) {
    std::normal_distribution<float> normal(0.0f, 1.0f);
    std::vector<float> values(static_cast<size_t>(n));
    for (float& v : values) v = normal(random_);
    return values;
  }
  std::unique_ptr<ActivationBuffer> Quantised(const float* x, int rows, int inputs) {
    auto buffer = std::make_unique<ActivationBuffer>();
    buffer->Allocate(inputs, rows);
    buffer->view.inputs = inputs;
    buffer->view.wide_slots = rows;
    buffer->view.want_quantised = buffer->view.want_f32 = true;
    NormQuantiseArgs args;
    args.x = x;
    args.stride = static_cast<size_t>(inputs);
    args.out = &buffer->view;
    kernels().norm_quantise(args, 0, rows);
    return buffer;
  }
  // x += W in, by a projection of `outputs`, for rows with these adapters.
  std::vector<float> Project(const TestMatrix& w, const std::vector<float>& x, int rows,
                             const std::vector<const RandomAdapter*>* adapters, int shares = 1) {
    const int inputs = w.packed.inputs;
    const auto in = Quantised(x.data(), rows, inputs);
    std::vector<float> out(static_cast<size_t>(rows * w.packed.rows), 0.25f);
    ProjectResidualArgs args{&w.packed, &in->view, rows, out.data(), LlamaLinear::kDown};
    std::unique_ptr<Rows> lora;
    if (adapters != nullptr) {
      lora = std::make_unique<Rows>(*adapters);
      lora->Shrink(kernels(), LoraGroup::kDown, x.data(), inputs, shares);
      args.lora = &lora->view;
    }
    kernels().project_residual(args, 0, w.packed.Panels());
    return out;
  }
  struct Case {
    LoraFormat format;
    int rank;
    int inputs;
  };
  static std::vector<Case> Cases() {
    std::vector<Case> cases;
    for (const LoraFormat format : kFormats) {
      for (const int rank : {1, 3, 4, 8, 17, 64}) {
        for (const int inputs : {32, 72, 576}) cases.push_back({format, rank, inputs});
      }
    }
    return cases;
  }
  const KernelTable& kernels() const { return *GetParam(); }
  std::mt19937 random_{3};
};

TEST_P(LoraConformance, AddsTheDifferenceOfEveryRank) {
  for (const auto [format, rank, inputs] : Cases()) {
    const int outputs = 100;
    const int rows = 9;
    const TestMatrix w(inputs % 32 == 0 ? GgmlType::kQ4_1 : GgmlType::kF32, outputs, inputs,
                       random_);
    const std::vector<float> x = RandomFloats(rows * inputs);
    const RandomAdapter one(LoraGroup::kDown, {LlamaLinear::kDown}, {outputs}, rank, inputs,
                            random_, format);
    const RandomAdapter two(LoraGroup::kDown, {LlamaLinear::kDown}, {outputs}, 2, inputs, random_,
                            format);
    const std::vector<const RandomAdapter*> adapters = {&one, nullptr, &two, &one,   &one,
                                                        &one, &one,    &one, nullptr};
    const std::vector<float> base = Project(w, x, rows, nullptr);
    const std::vector<float> got = Project(w, x, rows, &adapters, 3);
    for (int r = 0; r < rows; ++r) {
      for (int o = 0; o < outputs; ++o) {
        const size_t at = static_cast<size_t>(r * outputs + o);
        const RandomAdapter* adapter = adapters[static_cast<size_t>(r)];
        if (adapter == nullptr) {
          ASSERT_EQ(got[at], base[at]) << "a row without an adapter";
          continue;
        }
        const double difference =
            adapter->Difference(LoraGroup::kDown, LlamaLinear::kDown, x.data() + r * inputs, o);
        ASSERT_NEAR(static_cast<double>(got[at]), static_cast<double>(base[at]) + difference,
                    2e-5 * std::sqrt(static_cast<double>(inputs * rank)))
            << "rank " << rank << " inputs " << inputs << " row " << r << " output " << o;
      }
    }
  }
}

TEST_P(LoraConformance, BitsOfARowDependOnItAlone) {
  const int inputs = 96;
  const int outputs = 64;
  const int rows = 70;  // more than a tile
  const TestMatrix w(GgmlType::kQ4_1, outputs, inputs, random_);
  const std::vector<float> x = RandomFloats(rows * inputs);
  for (const LoraFormat format : kFormats) {
    std::deque<RandomAdapter> pool;
    for (const int rank : {1, 5, 8, 12}) {
      pool.emplace_back(LoraGroup::kDown, std::vector<LlamaLinear>{LlamaLinear::kDown},
                        std::vector<int>{outputs}, rank, inputs, random_, format);
    }
    std::vector<const RandomAdapter*> adapters;
    for (int r = 0; r < rows; ++r) {
      // Runs of one to many rows, with rows of the base between them.
      const int which = r < 20 ? 0 : r % 6;
      adapters.push_back(which < 4 ? &pool[static_cast<size_t>(which)] : nullptr);
    }
    const std::vector<float> together = Project(w, x, rows, &adapters, 2);
    for (int r = 0; r < rows; ++r) {
      const std::vector<const RandomAdapter*> own = {adapters[static_cast<size_t>(r)]};
      const std::vector<float> row(x.begin() + r * inputs, x.begin() + (r + 1) * inputs);
      const std::vector<float> alone = Project(w, row, 1, &own);
      ASSERT_EQ(
          0, std::memcmp(alone.data(), together.data() + r * outputs, alone.size() * sizeof(float)))
          << "row " << r;
    }
  }
}

TEST_P(LoraConformance, GateAndUpAreAdaptedBeforeTheirProduct) {
  const int inputs = 64;
  const int outputs = 96;
  const int rows = 5;
  // Weights of zero: what is left is the adapter.
  TestMatrix gate(GgmlType::kF32, outputs, inputs, random_);
  TestMatrix up(GgmlType::kF32, outputs, inputs, random_);
  std::memset(gate.packed.data, 0, gate.packed.Bytes());
  std::memset(up.packed.data, 0, up.packed.Bytes());
  const std::vector<float> x = RandomFloats(rows * inputs);
  for (const bool both : {true, false}) {
    const RandomAdapter adapter(LoraGroup::kGateUp, {LlamaLinear::kGate, LlamaLinear::kUp},
                                {outputs, both ? outputs : 0}, 3, inputs, random_);
    const auto in = Quantised(x.data(), rows, inputs);
    ActivationBuffer out;
    out.Allocate(outputs, rows);
    out.view.inputs = outputs;
    out.view.want_f32 = true;
    Rows lora(std::vector<const RandomAdapter*>(rows, &adapter));
    lora.Shrink(kernels(), LoraGroup::kGateUp, x.data(), inputs, 1);
    GateUpSwigluArgs args{&gate.packed, &up.packed, &in->view, rows, &out.view, &lora.view};
    kernels().gate_up_swiglu(args, 0, gate.packed.Panels());
    for (int r = 0; r < rows; ++r) {
      for (int o = 0; o < outputs; ++o) {
        const float* row = x.data() + r * inputs;
        const double g = adapter.Difference(LoraGroup::kGateUp, LlamaLinear::kGate, row, o);
        const double u = adapter.Difference(LoraGroup::kGateUp, LlamaLinear::kUp, row, o);
        ASSERT_NEAR(static_cast<double>(out.view.f32[r * outputs + o]), g / (1 + std::exp(-g)) * u,
                    1e-3)
            << r << " " << o;
      }
    }
  }
}

TEST_P(LoraConformance, QueriesAndKeysAreAdaptedBeforeTheyTurn) {
  const int inputs = 64;
  const int head_dim = 32;
  const int rows = 3;
  TestMatrix wq(GgmlType::kF32, 2 * head_dim, inputs, random_);
  TestMatrix wk(GgmlType::kF32, head_dim, inputs, random_);
  TestMatrix wv(GgmlType::kF32, head_dim, inputs, random_);
  for (TestMatrix* w : {&wq, &wk, &wv}) std::memset(w->packed.data, 0, w->packed.Bytes());
  const std::vector<float> x = RandomFloats(rows * inputs);
  const RandomAdapter adapter(LoraGroup::kQkv, {LlamaLinear::kQ, LlamaLinear::kK, LlamaLinear::kV},
                              {2 * head_dim, head_dim, head_dim}, 6, inputs, random_);
  const auto in = Quantised(x.data(), rows, inputs);
  Rows lora(std::vector<const RandomAdapter*>(rows, &adapter));
  lora.Shrink(kernels(), LoraGroup::kQkv, x.data(), inputs, 1);

  KvLayout layout;
  layout.wide = KvWide::kF32;
  layout.head_dim = head_dim;
  layout.kv_heads = 1;
  std::vector<std::byte> page(layout.WideHeadBytes());
  const KvPageView pages[] = {{page.data(), nullptr}};
  std::vector<RowContext> context;
  std::vector<float> cosine, sine;
  for (int r = 0; r < rows; ++r) {
    context.push_back({pages, r});
    for (int i = 0; i < head_dim / 2; ++i) {  // a quarter turn
      cosine.push_back(0.0f);
      sine.push_back(1.0f);
    }
  }
  std::vector<float> q(static_cast<size_t>(rows * 2 * head_dim));
  QkvRopeAppendArgs args;
  args.wq = &wq.packed;
  args.wk = &wk.packed;
  args.wv = &wv.packed;
  args.in = &in->view;
  args.rows = rows;
  args.q = q.data();
  args.context = context.data();
  args.cosine = cosine.data();
  args.sine = sine.data();
  args.rope_dim = head_dim;
  args.kv = layout;
  args.lora = &lora.view;
  kernels().qkv_rope_append(args, 0, wq.packed.Panels() + wk.packed.Panels() + wv.packed.Panels());
  const auto want = [&](LlamaLinear linear, int r, int o) {
    return adapter.Difference(LoraGroup::kQkv, linear, x.data() + r * inputs, o);
  };
  // (x, y) turned by a quarter is (-y, x).
  const auto turned = [&](LlamaLinear linear, int r, int o) {
    return o % 2 == 0 ? -want(linear, r, o + 1) : want(linear, r, o - 1);
  };
  const float* keys = reinterpret_cast<const float*>(page.data());
  const float* values = reinterpret_cast<const float*>(page.data() + layout.WideV());
  for (int r = 0; r < rows; ++r) {
    for (int o = 0; o < 2 * head_dim; ++o) {
      ASSERT_NEAR(static_cast<double>(q[static_cast<size_t>(r * 2 * head_dim + o)]),
                  turned(LlamaLinear::kQ, r, o) / std::sqrt(static_cast<double>(head_dim)), 1e-3);
    }
    for (int d = 0; d < head_dim; ++d) {
      ASSERT_NEAR(static_cast<double>(keys[d * 64 + r]), turned(LlamaLinear::kK, r, d), 1e-3);
      ASSERT_NEAR(static_cast<double>(values[r * head_dim + d]), want(LlamaLinear::kV, r, d), 1e-3);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tiers, LoraConformance, testing::ValuesIn(SupportedKernels()),
                         [](const auto& tier) { return std::string(tier.param->name); });

}  // namespace
}  // namespace cogumi
