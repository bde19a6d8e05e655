// cogumi-logits: the raw logits of given token sequences, for comparing the engine with a ruler.
//
// Reads sequences (sequences.h) on standard input. Writes one line of JSON (kernel configuration,
// vocabulary size, rows), then the rows as little-endian float32 in the order of the sequences.
// Exit status: 0, 3 when this processor lacks the kernels that were asked for, 1 for other errors.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "cogumi/options.h"
#include "engine/core/status_macros.h"
#include "engine/core/thread_pool.h"
#include "engine/io/gguf.h"
#include "engine/memory/kv_cache.h"
#include "engine/model/adapter_table.h"
#include "engine/model/model.h"
#include "engine/model/step_plan.h"
#include "tools/logits/sequences.h"

namespace cogumi {
namespace {

constexpr int kExitUnsupported = 3;  // this machine cannot run the kernels that were asked for

struct LogitsOptions {
  std::string model_path;
  ModelOptions model;
  int threads = 0;
  int32_t chunk = 256;
  std::string adapter;  // folder
};

// Feeds one sequence step by step and writes the wanted rows to standard output.
class SequenceRunner {
 public:
  SequenceRunner(Model& model, KvCache& cache, int32_t chunk, int32_t adapter)
      : model_(model), cache_(cache), chunk_(chunk), adapter_(adapter) {}

  absl::Status Run(const LogitSequence& sequence) {
    KvSequence kv;
    const int32_t count = static_cast<int32_t>(sequence.tokens.size());
    for (int32_t position = 0; position < count;) {
      const bool prompt = position < sequence.decode_from;
      const int32_t rows =
          prompt ? std::min(chunk_, std::min(count, sequence.decode_from) - position) : 1;
      RETURN_IF_ERROR(
          Step(sequence, kv, position, rows, prompt ? TokenRole::kPrompt : TokenRole::kGenerated));
      position += rows;
    }
    cache_.Release(kv);
    return absl::OkStatus();
  }

 private:
  absl::Status Step(const LogitSequence& sequence, KvSequence& kv, int32_t position, int32_t rows,
                    TokenRole role) {
    RETURN_IF_ERROR(cache_.Extend(kv, position + rows));
    StepPlan plan;
    const auto first = sequence.tokens.begin() + position;
    plan.tokens.assign(first, first + rows);
    plan.roles.assign(static_cast<size_t>(rows), role);
    StepSequence step;
    step.pages = &kv.pages;
    step.rows = rows;
    step.first_position = position;
    step.adapter = adapter_;
    plan.sequences.push_back(step);
    for (int32_t row = std::max(0, sequence.logits_from - position); row < rows; ++row) {
      plan.logit_rows.push_back(row);
    }
    RETURN_IF_ERROR(model_.Forward(plan, cache_));
    cache_.Commit(kv, kv.length);
    const size_t vocabulary = static_cast<size_t>(model_.config().vocabulary_size);
    for (size_t i = 0; i < plan.logit_rows.size(); ++i) {
      const float* logits = model_.Logits(static_cast<int32_t>(i));
      if (std::fwrite(logits, sizeof(float), vocabulary, stdout) != vocabulary) {
        return absl::UnavailableError("standard output: cannot write");
      }
    }
    return absl::OkStatus();
  }

  Model& model_;
  KvCache& cache_;
  const int32_t chunk_;
  const int32_t adapter_;
};

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  return bytes;
}

absl::Status WriteLogits(const LogitsOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(options.model_path));
  ThreadPool pool(options.threads > 0 ? options.threads : ThreadPool::AvailableCores());
  ASSIGN_OR_RETURN(const std::unique_ptr<Model> model, Model::Load(*file, options.model, &pool));
  const ModelConfig& config = model->config();
  ASSIGN_OR_RETURN(const std::vector<LogitSequence> sequences,
                   ReadSequences(std::cin, config.vocabulary_size, config.context_length));
  int32_t longest = 0;
  int64_t rows = 0;
  for (const LogitSequence& sequence : sequences) {
    const int32_t count = static_cast<int32_t>(sequence.tokens.size());
    longest = std::max(longest, count);
    rows += count - sequence.logits_from;
  }
  const KvShape shape = model->kv_shape();
  // Both forms of every page, as a step of the whole sequence needs them.
  ASSIGN_OR_RETURN(const std::unique_ptr<KvCache> cache,
                   KvCache::Create(shape, static_cast<int64_t>(shape.WideBytes() +
                                                               shape.NarrowBytes()) *
                                              KvCache::PagesFor(longest)));
  std::cout << "{\"kernels\": \"" << model->kernel_configuration()
            << "\", \"vocabulary\": " << config.vocabulary_size << ", \"rows\": " << rows
            << ", \"threads\": " << pool.size() << ", \"chunk\": " << options.chunk << "}"
            << std::endl;
  AdapterRef adapter;
  if (!options.adapter.empty()) {
    AdapterFiles files;
    ASSIGN_OR_RETURN(files.config, ReadFile(options.adapter + "/adapter_config.json"));
    ASSIGN_OR_RETURN(files.weights, ReadFile(options.adapter + "/adapter_model.safetensors"));
    ASSIGN_OR_RETURN(adapter, model->adapters()->Load(options.adapter, files));
  }
  SequenceRunner runner(*model, *cache, options.chunk, adapter != nullptr ? adapter->index : -1);
  for (const LogitSequence& sequence : sequences) RETURN_IF_ERROR(runner.Run(sequence));
  if (std::fflush(stdout) != 0) return absl::UnavailableError("standard output: cannot write");
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  std::map<std::string, ActivationFormat> activations;
  for (const auto& known : kActivationFormats) activations[known.name] = known.format;
  std::map<std::string, KvFormat> kv_formats;
  for (const auto& known : kKvFormats) kv_formats[known.name] = known.format;
  LogitsOptions options;
  CLI::App app("Raw float32 logits of token sequences read from standard input.", "cogumi-logits");
  app.add_option("model", options.model_path, "GGUF file")->required();
  app.add_option("--kernels", options.model.kernels,
                 "reference, avx2, avx512vnni, avx512amx; none: the best");
  app.add_option("--activations", options.model.activations, "mixed, exact, fast, f32")
      ->transform(CLI::CheckedTransformer(activations));
  app.add_option("--kv", options.model.kv_format, "f16, f32, int8, int4, k8v4")
      ->transform(CLI::CheckedTransformer(kv_formats));
  app.add_option("--threads", options.threads, "0: one per core")->check(CLI::Range(0, 1024));
  app.add_option("--chunk", options.chunk, "prompt tokens in a step, at most")
      ->check(CLI::Range(1, 8192));
  app.add_option("--adapter", options.adapter, "folder of a PEFT adapter to apply");
  CLI11_PARSE(app, argc, argv);
  options.model.max_rows = options.chunk;
  options.model.max_logit_rows = options.chunk;
  options.model.adapter_bytes = int64_t{1} << 30;
  const absl::Status status = WriteLogits(options);
  if (!status.ok()) {
    std::cerr << "cogumi-logits: " << status.message() << "\n";
    return absl::IsFailedPrecondition(status) ? kExitUnsupported : 1;
  }
  return 0;
}

}  // namespace
}  // namespace cogumi

int main(int argc, char** argv) { return cogumi::Main(argc, argv); }
