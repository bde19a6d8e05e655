// Speed of each fused operation on one thread, in every tier that this machine runs, with the
// default model's shapes: cogumi-kernels-bench --benchmark_filter=avx512vnni/GateUp
//
// Weights are cycled through more memory than the caches hold, as a step does; activations and
// keys stay warm, as they do in a step.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "engine/core/half.h"
#include "engine/io/gguf.h"
#include "engine/kernels/ops.h"
#include "engine/kernels/registry.h"
#include "engine/model/activation_buffer.h"
#include "engine/model/arena.h"
#include "engine/model/packing.h"

namespace cogumi::bench {
namespace {

constexpr int kWidth = 576, kFeedForward = 1536, kHeadDim = 64, kHeads = 9, kKvHeads = 3;
constexpr int kHeadRows = 8192;  // a part of the vocabulary, to keep the copies small
constexpr int kPageTokens = 64;
constexpr size_t kColdBytes = size_t{96} << 20;

size_t Size(int n) { return static_cast<size_t>(n); }

// Copies of one random matrix, together larger than the caches; Next() takes them in turn.
class ColdMatrix {
 public:
  ColdMatrix(GgmlType type, int rows, int inputs) {
    matrix_.format = PackedFormatOf(type);
    matrix_.rows = rows;
    matrix_.inputs = inputs;
    const std::vector<std::byte> tensor = RandomTensor(type, rows, inputs);
    copies_ = kColdBytes / matrix_.Bytes() + 1;
    // Where a model's weights lie: with pages of 4 KiB five rows take a fifth more.
    if (!memory_.Reserve(copies_ * matrix_.Bytes()).ok()) throw std::bad_alloc();
    first_ = memory_.Take(copies_ * matrix_.Bytes());
    matrix_.data = first_;
    for (int panel = 0; panel < matrix_.Panels(); ++panel) {
      PackPanel(type, tensor.data(), matrix_, panel);
    }
    for (size_t copy = 1; copy < copies_; ++copy) {
      std::memcpy(first_ + copy * matrix_.Bytes(), first_, matrix_.Bytes());
    }
  }

  const PackedMatrix& Next() {
    matrix_.data = first_ + matrix_.Bytes() * (turn_++ % copies_);
    return matrix_;
  }
  const PackedMatrix& matrix() const { return matrix_; }

 private:
  // Random codes with scales that keep products near one.
  static std::vector<std::byte> RandomTensor(GgmlType type, int rows, int inputs) {
    const GgmlTypeTraits traits = *TraitsOf(type);
    const size_t blocks = Size(rows) * Size(inputs) / traits.block_elements;
    std::vector<std::byte> bytes(blocks * traits.block_bytes);
    std::mt19937 random(1);
    for (std::byte& b : bytes) b = static_cast<std::byte>(random());
    const uint16_t scale = FloatToHalf(0.01f);
    const uint16_t minimum = FloatToHalf(-0.05f);
    for (size_t block = 0; block < blocks; ++block) {
      std::byte* at = bytes.data() + block * traits.block_bytes;
      std::memcpy(at, &scale, sizeof(scale));
      if (type == GgmlType::kQ4_1) std::memcpy(at + 2, &minimum, sizeof(minimum));
    }
    return bytes;
  }

  PackedMatrix matrix_;
  size_t copies_ = 1, turn_ = 0;
  Arena memory_;
  uint8_t* first_ = nullptr;
};

// Quantised rows of random numbers.
struct Input {
  Input(int inputs, int rows) {
    std::mt19937 random(2);
    std::normal_distribution<float> normal;
    x.resize(Size(inputs) * Size(rows));
    for (float& value : x) value = normal(random);
    buffer.Allocate(inputs, rows);
    buffer.view.wide_slots = rows;
    buffer.view.inputs = inputs;
    buffer.view.want_quantised = true;
    NormQuantiseArgs args;
    args.x = x.data();
    args.stride = Size(inputs);
    args.out = &buffer.view;
    ReferenceKernels().norm_quantise(args, 0, rows);
  }
  std::vector<float> x;
  ActivationBuffer buffer;
};

// Bytes of weights a second and products a second of `rows` rows.
void Count(benchmark::State& state, size_t weight_bytes, double products) {
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(weight_bytes));
  state.counters["products"] =
      benchmark::Counter(products, benchmark::Counter::kIsIterationInvariantRate);
}

double Products(const PackedMatrix& m, int rows) {
  return static_cast<double>(m.rows) * m.inputs * rows;
}

void NormQuantise(benchmark::State& state, const KernelTable* kernels) {
  const int rows = static_cast<int>(state.range(0));
  Input input(kWidth, rows);
  const std::vector<float> weight(kWidth, 1.0f);
  NormQuantiseArgs args;
  args.x = input.x.data();
  args.stride = kWidth;
  args.weight = weight.data();
  args.epsilon = 1e-5f;
  args.out = &input.buffer.view;
  while (state.KeepRunning()) {
    kernels->norm_quantise(args, 0, rows);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * rows);
}

// Pages of one sequence with random keys and values, and the contexts of its last rows.
struct Sequence {
  Sequence(int depth, int rows) {
    kv.head_dim = kHeadDim;
    kv.kv_heads = kKvHeads;
    const size_t page_bytes = kv.WideHeadBytes() * kKvHeads;
    const size_t count = (Size(depth + rows) + kPageTokens - 1) / kPageTokens;
    memory.resize(count * page_bytes / sizeof(uint16_t));
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (uint16_t& value : memory) value = FloatToHalf(normal(random));
    for (size_t page = 0; page < count; ++page) {
      pages.push_back({reinterpret_cast<std::byte*>(memory.data()) + page * page_bytes, nullptr});
    }
    for (int row = 0; row < rows; ++row) contexts.push_back({pages.data(), depth + row});
  }
  KvLayout kv;
  std::vector<uint16_t> memory;
  std::vector<KvPageView> pages;
  std::vector<RowContext> contexts;
};

void QkvRopeAppend(benchmark::State& state, const KernelTable* kernels) {
  const int rows = static_cast<int>(state.range(0));
  ColdMatrix wq(GgmlType::kQ4_1, kHeads * kHeadDim, kWidth);
  ColdMatrix wk(GgmlType::kQ4_1, kKvHeads * kHeadDim, kWidth);
  ColdMatrix wv(GgmlType::kQ4_1, kKvHeads * kHeadDim, kWidth);
  Input input(kWidth, rows);
  Sequence sequence(64, rows);
  std::vector<float> q(Size(rows) * kHeads * kHeadDim);
  const std::vector<float> cosine(Size(rows) * kHeadDim / 2, 0.8f);
  const std::vector<float> sine(Size(rows) * kHeadDim / 2, 0.6f);
  QkvRopeAppendArgs args;
  args.in = &input.buffer.view;
  args.rows = rows;
  args.q = q.data();
  args.context = sequence.contexts.data();
  args.cosine = cosine.data();
  args.sine = sine.data();
  args.rope_dim = kHeadDim;
  args.kv = sequence.kv;
  const int panels = wq.matrix().Panels() + wk.matrix().Panels() + wv.matrix().Panels();
  while (state.KeepRunning()) {
    args.wq = &wq.Next();
    args.wk = &wk.Next();
    args.wv = &wv.Next();
    kernels->qkv_rope_append(args, 0, panels);
    benchmark::ClobberMemory();
  }
  Count(state, wq.matrix().Bytes() + wk.matrix().Bytes() + wv.matrix().Bytes(),
        Products(wq.matrix(), rows) + Products(wk.matrix(), rows) + Products(wv.matrix(), rows));
}

void GateUpSwiglu(benchmark::State& state, const KernelTable* kernels) {
  const int rows = static_cast<int>(state.range(0));
  ColdMatrix gate(GgmlType::kQ4_1, kFeedForward, kWidth);
  ColdMatrix up(GgmlType::kQ4_1, kFeedForward, kWidth);
  Input input(kWidth, rows);
  Input output(kFeedForward, rows);
  GateUpSwigluArgs args;
  args.in = &input.buffer.view;
  args.rows = rows;
  args.out = &output.buffer.view;
  while (state.KeepRunning()) {
    args.gate = &gate.Next();
    args.up = &up.Next();
    kernels->gate_up_swiglu(args, 0, gate.matrix().Panels());
    benchmark::ClobberMemory();
  }
  Count(state, 2 * gate.matrix().Bytes(), 2 * Products(gate.matrix(), rows));
}

void ProjectResidual(benchmark::State& state, const KernelTable* kernels) {
  const int rows = static_cast<int>(state.range(0));
  ColdMatrix down(GgmlType::kQ4_1, kWidth, kFeedForward);
  Input input(kFeedForward, rows);
  std::vector<float> x(Size(rows) * kWidth);
  ProjectResidualArgs args;
  args.in = &input.buffer.view;
  args.rows = rows;
  args.x = x.data();
  while (state.KeepRunning()) {
    args.w = &down.Next();
    kernels->project_residual(args, 0, down.matrix().Panels());
    benchmark::ClobberMemory();
  }
  Count(state, down.matrix().Bytes(), Products(down.matrix(), rows));
}

void Head(benchmark::State& state, const KernelTable* kernels) {
  const int rows = static_cast<int>(state.range(0));
  ColdMatrix head(GgmlType::kQ8_0, kHeadRows, kWidth);
  Input input(kWidth, rows);
  std::vector<float> logits(Size(rows) * kHeadRows);
  HeadArgs args;
  args.in = &input.buffer.view;
  args.rows = rows;
  args.logits = logits.data();
  while (state.KeepRunning()) {
    args.w = &head.Next();
    kernels->head(args, 0, head.matrix().Panels());
    benchmark::ClobberMemory();
  }
  Count(state, head.matrix().Bytes(), Products(head.matrix(), rows));
}

// All heads of `rows` new rows after `depth` keys.
void PagedAttention(benchmark::State& state, const KernelTable* kernels) {
  const int rows = static_cast<int>(state.range(0));
  const int depth = static_cast<int>(state.range(1));
  Sequence sequence(depth, rows);
  std::mt19937 random(4);
  std::normal_distribution<float> normal(0.0f, 0.125f);
  std::vector<float> q(Size(rows) * kHeads * kHeadDim), out(q.size());
  for (float& value : q) value = normal(random);
  std::vector<AttentionItem> items;
  constexpr int kGroup = kHeads / kKvHeads;
  constexpr int kRun = 16;  // rows of an item, all in one page
  for (int row = 0; row < rows; row += kRun) {
    const int n = std::min(kRun, rows - row);
    const int chunks = (depth + row + n + kAttentionChunk - 1) / kAttentionChunk;
    for (int head = 0; head < kHeads; head += kGroup) {
      items.push_back({row, n, head, kGroup, 0, chunks, -1});
    }
  }
  PagedAttentionArgs args;
  args.q = q.data();
  args.out = out.data();
  args.context = sequence.contexts.data();
  args.items = items.data();
  args.heads = kHeads;
  args.kv = sequence.kv;
  while (state.KeepRunning()) {
    kernels->paged_attention(args, 0, static_cast<int>(items.size()));
    benchmark::ClobberMemory();
  }
  Count(state, sequence.kv.WideHeadBytes() * kKvHeads * sequence.pages.size(),
        2.0 * kHeads * kHeadDim * rows * depth);
}

void Summarise(benchmark::State& state, const KernelTable* kernels) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0.0f, 4.0f);
  std::vector<float> logits(kSummaryChunk);
  for (float& value : logits) value = normal(random);
  while (state.KeepRunning()) {
    benchmark::DoNotOptimize(kernels->summarise(logits.data(), 0, kSummaryChunk));
  }
  state.SetItemsProcessed(state.iterations() * kSummaryChunk);
}

void RegisterAll() {
  using Function = void (*)(benchmark::State&, const KernelTable*);
  const std::vector<std::pair<std::string, Function>> matrices = {
      {"QkvRopeAppend", QkvRopeAppend},
      {"GateUpSwiglu", GateUpSwiglu},
      {"ProjectResidual", ProjectResidual},
      {"Head", Head}};
  for (const KernelTable* kernels : SupportedKernels()) {
    const std::string tier = std::string(kernels->name) + "/";
    const bool scalar = kernels == &ReferenceKernels();
    const std::vector<int64_t> widths =
        scalar ? std::vector<int64_t>{1} : std::vector<int64_t>{1, 5, 8, 32, 256};
    for (const int64_t rows : widths) {
      benchmark::RegisterBenchmark((tier + "NormQuantise").c_str(), NormQuantise, kernels)
          ->ArgName("rows")
          ->Arg(rows);
      for (const auto& [name, function] : matrices) {
        benchmark::RegisterBenchmark((tier + name).c_str(), function, kernels)
            ->ArgName("rows")
            ->Arg(rows);
      }
    }
    for (const int64_t depth : {256, 4096}) {
      benchmark::RegisterBenchmark((tier + "PagedAttention").c_str(), PagedAttention, kernels)
          ->ArgNames({"rows", "depth"})
          ->Args({1, depth});
    }
    benchmark::RegisterBenchmark((tier + "Summarise").c_str(), Summarise, kernels);
  }
}

}  // namespace
}  // namespace cogumi::bench

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  cogumi::bench::RegisterAll();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
