// cogumi-engine-bench: speed of the forward pass alone (no scheduler, sampling or text), as one
// object of JSON on standard output. bench/peers/compare runs it beside the peers.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "bench/lib/bench_text.h"
#include "bench/lib/machine.h"
#include "bench/lib/model_cost.h"
#include "bench/lib/model_speed.h"
#include "bench/lib/print_result.h"
#include "engine/core/status_macros.h"
#include "engine/core/thread_pool.h"
#include "engine/io/gguf.h"
#include "engine/kernels/registry.h"
#include "engine/model/model.h"
#include "engine/model/weights.h"

namespace cogumi::bench {
namespace {

struct BenchOptions {
  std::string model_path;
  ModelOptions model;
  int threads = 0;
  int32_t chunk = 256;
  int repeat = 1;
  std::vector<std::string> tests;
};

absl::StatusOr<std::vector<SpeedTest>> SelectTests(const std::vector<std::string>& names) {
  std::vector<SpeedTest> selected;
  for (const std::string& name : names) {
    const size_t before = selected.size();
    for (const SpeedTest& test : KnownTests()) {
      if (test.name == name) selected.push_back(test);
    }
    if (selected.size() == before) {
      return absl::InvalidArgumentError(absl::StrCat("--tests: no test '", name, "'"));
    }
  }
  return selected;
}

// How fast the machine is around the tests: it may change within seconds.
class MachineSpeed {
 public:
  MachineSpeed(ThreadPool* pool, int64_t bytes) : pool_(pool), bytes_(static_cast<size_t>(bytes)) {}

  void Measure() {
    constexpr int kPasses = 9;
    // Beside another process one thread may read more than a team whose half waits.
    bandwidths_.push_back(std::max(MeasureReadBandwidth(*pool_, bytes_, kPasses).median,
                                   MeasureReadBandwidth(alone_, bytes_, kPasses).median));
    barriers_.push_back(MeasureBarrier(*pool_));
    vnni_rates_.push_back(MeasureVnniRate(*pool_, kPasses));
  }

  nlohmann::json Json() const {
    return {{"cpu", CpuName()},
            {"features", CpuFeatures()},
            {"cores", ThreadPool::AvailableCores()},
            {"read_bandwidth", Mean(bandwidths_)},
            {"barrier_seconds", Mean(barriers_)},
            {"vnni_products", Mean(vnni_rates_)}};
  }

 private:
  static double Mean(const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  }

  ThreadPool* pool_;
  ThreadPool alone_{1};
  const size_t bytes_;
  std::vector<double> bandwidths_, barriers_, vnni_rates_;
};

absl::StatusOr<nlohmann::json> RunBench(const BenchOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<SpeedTest> tests, SelectTests(options.tests));
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(options.model_path));
  ThreadPool pool(options.threads > 0 ? options.threads : ThreadPool::AvailableCores());
  const ModelCost cost = CostOfToken(*file);
  nlohmann::json result = {{"model", options.model_path},
                           {"file_bytes", file->bytes()},
                           {"bytes_per_token", cost.bytes_per_token},
                           {"threads", pool.size()},
                           {"chunk", options.chunk},
                           {"rows", nlohmann::json::array()}};
  // Reads as much as a token does, over and over, which is what decoding does.
  MachineSpeed machine(&pool, cost.bytes_per_token);
  machine.Measure();
  ModelOptions model_options = options.model;
  for (const SpeedTest& test : tests) {
    model_options.max_rows = std::max({model_options.max_rows, options.chunk, test.sequences});
    model_options.max_logit_rows = std::max(model_options.max_logit_rows, test.sequences);
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, Model::Load(*file, model_options, &pool));
  result["configuration"] = model->kernel_configuration();
  const SpeedTest warm_up = {.name = "warm-up", .depth = options.chunk, .steps = 8};
  std::vector<SpeedTest> all = tests;
  all.push_back(warm_up);
  ASSIGN_OR_RETURN(const std::unique_ptr<SpeedRunner> runner,
                   SpeedRunner::Create(model.get(), options.chunk, all, BenchTokens(*file)));
  RETURN_IF_ERROR(runner->Measure(warm_up).status());
  for (const SpeedTest& test : tests) {
    std::vector<double> rates;
    for (int i = 0; i < options.repeat; ++i) {
      ASSIGN_OR_RETURN(const double seconds, runner->Measure(test));
      rates.push_back(static_cast<double>(test.Tokens()) / seconds);
    }
    const int32_t step_rows = std::min(test.rows, options.chunk);
    result["rows"].push_back(
        {{"name", test.name},
         {"sequences", test.sequences},
         {"depth", test.depth},
         {"tokens", test.Tokens()},
         {"resident_bytes", ResidentBytes()},
         {"tokens_per_second", rates},
         // Each step reads the weights once, and what its sequences keep.
         {"tokens_per_step", test.sequences * step_rows},
         {"kv_bytes_per_step", test.sequences * runner->KvBytes(test)},
         {"products_per_token", cost.layer_products + (test.all_logits ? cost.head_products : 0)}});
  }
  machine.Measure();
  result["machine"] = machine.Json();
  return result;
}

int Main(int argc, char** argv) {
  std::map<std::string, ActivationFormat> activations;
  for (const auto& known : kActivationFormats) activations[known.name] = known.format;
  std::map<std::string, KvFormat> kv_formats;
  for (const auto& known : kKvFormats) kv_formats[known.name] = known.format;
  BenchOptions options;
  options.tests = {"decode", "prefill"};
  CLI::App app("Speed of the engine's forward pass, as JSON.", "cogumi-engine-bench");
  app.add_option("model", options.model_path, "GGUF file")->required();
  app.add_option("--tests", options.tests,
                 "decode, prefill, five, batch8, batch32, depth4096, streams1024 (comma-separated)")
      ->delimiter(',');
  app.add_option("--kernels", options.model.kernels,
                 "reference, avx2, avx512vnni, avx512amx; none: the best");
  app.add_option("--activations", options.model.activations, "mixed, exact, fast, f32")
      ->transform(CLI::CheckedTransformer(activations));
  app.add_option("--kv", options.model.kv_format, "f16, f32, int8, int4, k8v4")
      ->transform(CLI::CheckedTransformer(kv_formats));
  app.add_option("--threads", options.threads, "0: one per core")->check(CLI::Range(0, 1024));
  app.add_option("--chunk", options.chunk, "prompt tokens in a step")->check(CLI::Range(1, 8192));
  app.add_option("--repeat", options.repeat, "measurements of each test")
      ->check(CLI::Range(1, 1000));
  CLI11_PARSE(app, argc, argv);
  return PrintResult("cogumi-engine-bench", RunBench(options));
}

}  // namespace
}  // namespace cogumi::bench

int main(int argc, char** argv) { return cogumi::bench::Main(argc, argv); }
