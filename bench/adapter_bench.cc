// cogumi-adapter-bench: what adapters cost in the forward pass, as one object of JSON on standard
// output. bench/modifiers runs it.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "bench/lib/bench_text.h"
#include "bench/lib/machine.h"
#include "bench/lib/print_result.h"
#include "engine/core/status_macros.h"
#include "engine/core/thread_pool.h"
#include "engine/io/gguf.h"
#include "engine/model/adapter_table.h"
#include "engine/model/model.h"

namespace cogumi::bench {
namespace {

constexpr int32_t kBatch = 8;
constexpr int32_t kDepth = 64;    // tokens before the steps that are timed
constexpr int32_t kPrompt = 256;  // rows of a timed prompt
constexpr int64_t kAdapterBytes = int64_t{4} << 30;

struct BenchOptions {
  std::string model_path;
  std::vector<std::string> adapters;  // folders
  ModelOptions model;
  int threads = 0;
  int rounds = 7;
  int steps = 48;
};

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  return bytes;
}

class Runner {
 public:
  Runner(Model* model, std::unique_ptr<KvCache> cache, std::vector<TokenId> text)
      : model_(model), cache_(std::move(cache)), text_(std::move(text)) {}

  // A batch that steps token by token: an adapter a sequence, -1 for none; the first one's turns by
  // one place a step when `turning`.
  struct Case {
    const char* name;
    std::vector<int32_t> adapters;
    bool turning = false;
  };

  // Per case the seconds of `steps` steps. The cases take turns step by step, in an order that
  // turns too, so that a machine that drifts changes all of them alike.
  absl::StatusOr<std::vector<std::vector<double>>> Decode(std::vector<Case> cases, int steps) {
    std::vector<std::vector<KvSequence>> batches;
    std::vector<std::vector<double>> seconds(cases.size());
    for (Case& c : cases) {
      std::vector<KvSequence>& sequences = batches.emplace_back(c.adapters.size());
      for (size_t i = 0; i < sequences.size(); ++i) {
        RETURN_IF_ERROR(Step(&sequences[i], &c.adapters[i], 1, kDepth));
      }
    }
    for (int i = 0; i < steps; ++i) {
      for (size_t k = 0; k < cases.size(); ++k) {
        const size_t at = (k + static_cast<size_t>(i)) % cases.size();
        Case& c = cases[at];
        const double start = Now();
        RETURN_IF_ERROR(Step(batches[at].data(), c.adapters.data(), c.adapters.size(), 1));
        seconds[at].push_back(Now() - start);
        if (c.turning) Turn(&c.adapters[0]);
      }
    }
    for (std::vector<KvSequence>& sequences : batches) {
      for (KvSequence& sequence : sequences) cache_->Release(sequence);
    }
    return seconds;
  }

  absl::StatusOr<double> Prefill(int32_t adapter) {
    KvSequence sequence;
    const double start = Now();
    RETURN_IF_ERROR(Step(&sequence, &adapter, 1, kPrompt));
    const double seconds = Now() - start;
    cache_->Release(sequence);
    return seconds;
  }

  void SetTurns(std::vector<int32_t> indexes) { turns_ = std::move(indexes); }

 private:
  void Turn(int32_t* adapter) { *adapter = turns_[++turn_ % turns_.size()]; }

  absl::Status Step(KvSequence* sequences, const int32_t* adapters, size_t count, int32_t rows) {
    StepPlan plan;
    for (size_t i = 0; i < count; ++i) {
      const int32_t first = sequences[i].length;
      RETURN_IF_ERROR(cache_->Extend(sequences[i], first + rows));
      plan.sequences.push_back({&sequences[i].pages, plan.Rows(), rows, first, adapters[i]});
      for (int32_t row = 0; row < rows; ++row) {
        // Every sequence has its own place in the text.
        plan.tokens.push_back(
            text_[(i * kDepth + static_cast<size_t>(first + row)) % text_.size()]);
        plan.roles.push_back(rows > 1 ? TokenRole::kPrompt : TokenRole::kGenerated);
      }
      plan.logit_rows.push_back(plan.Rows() - 1);
      plan.logit_needs.push_back(LogitNeed::kTop);  // greedy
    }
    RETURN_IF_ERROR(model_->Forward(plan, *cache_));
    for (size_t i = 0; i < count; ++i) cache_->Commit(sequences[i], sequences[i].length);
    return absl::OkStatus();
  }

  Model* const model_;
  const std::unique_ptr<KvCache> cache_;
  const std::vector<TokenId> text_;
  std::vector<int32_t> turns_;
  size_t turn_ = 0;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

absl::StatusOr<nlohmann::json> RunBench(const BenchOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(options.model_path));
  ThreadPool pool(options.threads > 0 ? options.threads : ThreadPool::AvailableCores());
  ModelOptions model_options = options.model;
  model_options.max_rows = kPrompt;
  model_options.adapter_bytes = kAdapterBytes;
  ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, Model::Load(*file, model_options, &pool));
  AdapterTable& table = *model->adapters();

  nlohmann::json result = {{"model", options.model_path},
                           {"cpu", CpuName()},
                           {"threads", pool.size()},
                           {"configuration", model->kernel_configuration()},
                           {"barrier_seconds", MeasureBarrier(pool)},
                           {"load_seconds", nlohmann::json::array()},
                           {"rounds", nlohmann::json::array()}};
  std::vector<AdapterRef> held;
  for (const std::string& folder : options.adapters) {
    AdapterFiles files;
    ASSIGN_OR_RETURN(files.config, ReadFile(folder + "/adapter_config.json"));
    ASSIGN_OR_RETURN(files.weights, ReadFile(folder + "/adapter_model.safetensors"));
    const double start = Now();
    ASSIGN_OR_RETURN(AdapterRef adapter, table.Load(folder, files));
    result["load_seconds"].push_back(Now() - start);
    held.push_back(std::move(adapter));
  }
  result["adapter_rank"] = held.front()->adapter->rank();
  result["adapter_bytes"] = held.front()->bytes;

  const KvShape shape = model->kv_shape();
  const int64_t pages =
      int64_t{2 * kBatch} * KvCache::PagesFor(std::max(kPrompt, kDepth + options.steps));
  ASSIGN_OR_RETURN(std::unique_ptr<KvCache> cache,
                   KvCache::Create(shape, pages * static_cast<int64_t>(shape.WideBytes())));
  std::vector<TokenId> text = BenchTokens(*file);
  if (text.empty()) return absl::InvalidArgumentError("the model has no vocabulary");
  Runner runner(model.get(), std::move(cache), std::move(text));
  std::vector<int32_t> many;
  for (size_t i = 0; i < kBatch; ++i) many.push_back(held[i % held.size()]->index);
  runner.SetTurns(many);
  const std::vector<int32_t> none(kBatch, -1);
  const int32_t one = held.front()->index;
  // What is compared steps in turns.
  const std::vector<std::vector<Runner::Case>> groups = {
      {{"decode", {-1}}, {"decode_adapter", {one}}, {"decode_turning", {one}, true}},
      {{"batch8", none}, {"batch8_adapters", many}}};
  RETURN_IF_ERROR(runner.Decode(groups[0], options.steps).status());  // warm
  for (int round = 0; round < options.rounds; ++round) {
    nlohmann::json figures;
    for (const std::vector<Runner::Case>& cases : groups) {
      ASSIGN_OR_RETURN(const std::vector<std::vector<double>> seconds,
                       runner.Decode(cases, options.steps));
      for (size_t i = 0; i < cases.size(); ++i) figures[cases[i].name] = Median(seconds[i]);
    }
    ASSIGN_OR_RETURN(figures["prefill"], runner.Prefill(-1));
    ASSIGN_OR_RETURN(figures["prefill_adapter"], runner.Prefill(one));
    result["rounds"].push_back(figures);
  }
  std::vector<double> finds;
  for (int i = 0; i < 1000; ++i) {
    const double start = Now();
    const AdapterRef found = table.Find(held[static_cast<size_t>(i) % held.size()]->digest);
    finds.push_back(Now() - start);
  }
  result["find_seconds"] = Median(finds);
  return result;
}

int Main(int argc, char** argv) {
  BenchOptions options;
  CLI::App app("What adapters cost in the forward pass, as JSON.", "cogumi-adapter-bench");
  app.add_option("model", options.model_path, "GGUF file")->required();
  app.add_option("adapters", options.adapters, "folders of PEFT adapters")->required();
  app.add_option("--kernels", options.model.kernels,
                 "reference, avx2, avx512vnni, avx512amx; none: the best");
  app.add_option("--threads", options.threads, "0: one per core")->check(CLI::Range(0, 1024));
  app.add_option("--rounds", options.rounds, "of all cases")->check(CLI::Range(1, 1000));
  app.add_option("--steps", options.steps, "of a case in a round")->check(CLI::Range(8, 100000));
  CLI11_PARSE(app, argc, argv);
  return PrintResult("cogumi-adapter-bench", RunBench(options));
}

}  // namespace
}  // namespace cogumi::bench

int main(int argc, char** argv) { return cogumi::bench::Main(argc, argv); }
