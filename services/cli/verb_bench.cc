// `cogumi bench`: how fast the engine itself is, without the services around it.
#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cogumi/engine.h"
#include "engine/core/clock.h"
#include "engine/core/status_macros.h"
#include "engine/core/thread_pool.h"
#include "services/cli/human.h"
#include "services/cli/json.h"
#include "services/cli/machine.h"
#include "services/cli/paths.h"
#include "services/cli/verbs.h"

namespace cogumi::cli {
namespace {

// Notes when the first token and the end came.
class Stopwatch : public ResponseSink {
 public:
  void OnChunk(Chunk chunk) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (first_ == 0 && !chunk.tokens.empty()) first_ = Clock::Real()->Now();
  }
  void OnFinished(absl::Status status, Completion completion) override {
    std::lock_guard<std::mutex> lock(mutex_);
    end_ = Clock::Real()->Now();
    status_ = std::move(status);
    tokens_ = completion.usage.completion_tokens;
    done_ = true;
    condition_.notify_all();
  }
  absl::Status Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    condition_.wait(lock, [this] { return done_; });
    return status_;
  }
  double first() const { return first_; }
  double end() const { return end_; }
  int32_t tokens() const { return tokens_; }

 private:
  std::mutex mutex_;
  std::condition_variable condition_;
  bool done_ = false;
  double first_ = 0, end_ = 0;
  int32_t tokens_ = 0;
  absl::Status status_;
};

struct Case {
  std::string name;
  int32_t prompt = 0;     // tokens
  int32_t generated = 0;  // tokens
  int streams = 1;
  bool prefill = false;  // tokens/s of the prompt instead of the answer
};

class BenchVerb : public Verb {
 public:
  BenchVerb()
      : Verb("bench", "[MODEL]",
             "Measures the engine: decode, prefill, batch and depth, in interleaved rounds.", 0,
             1) {
    options_.Int("tokens", &tokens_, 2, 100000, "tokens generated in a decode case")
        .Int("prompt", &prompt_, 1, 1000000, "prompt tokens of the prefill case")
        .List("batches", &batches_, "streams at once in the batch cases")
        .List("depths", &depths_, "tokens in the context before the decode cases of depth")
        .Int("rounds", &rounds_, 1, 1000, "each case runs once a round")
        .Int("threads", &threads_, 0, 1024, "0: one per core")
        .Choice("kernels", &kernels_, {"", "reference", "avx2", "avx512vnni", "avx512amx"},
                "instruction set; empty: the best of this machine")
        .Choice("activations", &activations_, {"mixed", "exact", "fast", "f32"},
                "format of activations")
        .Choice("speculation", &speculation_, {"off", "ngram"},
                "ngram: drafts by lookup; answers to random prompts are loops, which flatters it");
  }

  absl::StatusOr<int> Run() override {
    ASSIGN_OR_RETURN(const ModelFile file, FindModel(positionals_.empty() ? "" : positionals_[0]));
    ASSIGN_OR_RETURN(const std::vector<Case> cases, Cases());
    const int threads = threads_ > 0 ? threads_ : ThreadPool::AvailableCores();
    const double bandwidth = MeasureReadBandwidth(threads, 5);

    EngineOptions options;
    options.model_path = file.path;
    options.threads = threads;
    options.kernels = kernels_;
    options.activations = ActivationFormatOf(activations_);
    options.speculation = speculation_ == "ngram" ? Speculation::kNgram : Speculation::kOff;
    for (const Case& one : cases) {
      options.max_running = std::max(options.max_running, one.streams);
    }
    ASSIGN_OR_RETURN(engine_, Engine::Create(options));
    RETURN_IF_ERROR(RunCase({"warm-up", 32, 8}, rounds_).status());

    std::map<std::string, std::vector<double>> rates;
    for (int round = 0; round < rounds_; ++round) {
      for (const Case& one : cases) {
        ASSIGN_OR_RETURN(const double rate, RunCase(one, round));
        rates[one.name].push_back(rate);
      }
    }
    Report(file, cases, threads, bandwidth, rates);
    return kExitOk;
  }

 private:
  static absl::StatusOr<std::vector<int32_t>> Numbers(const std::vector<std::string>& words,
                                                      const std::string& option) {
    std::vector<int32_t> numbers;
    for (const std::string& word : words) {
      int32_t number = 0;
      if (!absl::SimpleAtoi(word, &number) || number < 1) {
        return UsageError(absl::StrCat("--", option, ": '", word, "' is no positive number"));
      }
      numbers.push_back(number);
    }
    return numbers;
  }

  absl::StatusOr<std::vector<Case>> Cases() const {
    std::vector<Case> cases = {{"decode", 16, tokens_}, {"prefill", prompt_, 1, 1, true}};
    ASSIGN_OR_RETURN(const auto batches, Numbers(batches_, "batches"));
    for (const int32_t streams : batches) {
      cases.push_back({absl::StrCat("batch-", streams), 16, tokens_, streams});
    }
    ASSIGN_OR_RETURN(const auto depths, Numbers(depths_, "depths"));
    for (const int32_t depth : depths) {
      cases.push_back({absl::StrCat("depth-", depth), depth, tokens_});
    }
    return cases;
  }

  // Tokens per second.
  absl::StatusOr<double> RunCase(const Case& one, int round) {
    std::vector<std::shared_ptr<Stopwatch>> streams;
    const double start = Clock::Real()->Now();
    for (int i = 0; i < one.streams; ++i) {
      GenerationRequest request;
      request.request_id = absl::StrCat("bench-", ++requests_);
      request.tokens = RandomTokens(one.prompt, static_cast<uint64_t>(round * kApart + i));
      request.sampling.temperature = 0;
      request.sampling.max_tokens = one.generated;
      request.sampling.ignore_eos = true;
      streams.push_back(std::make_shared<Stopwatch>());
      RETURN_IF_ERROR(engine_->Submit(std::move(request), streams.back()).status());
    }
    double first = 0, end = 0;
    int64_t tokens = 0;
    for (const auto& stream : streams) {
      RETURN_IF_ERROR(stream->Wait());
      first = std::max(first, stream->first());
      end = std::max(end, stream->end());
    }
    if (one.prefill) return one.prompt / (first - start);
    for (const auto& stream : streams) tokens += stream->tokens();
    // Of several streams the prompts are read one after another while others answer already: the
    // whole time counts. Of one stream, what comes after its first token.
    if (one.streams > 1) return static_cast<double>(tokens) / (end - start);
    return static_cast<double>(tokens - 1) / (end - first);
  }

  static double Median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const size_t middle = values.size() / 2;
    return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
  }

  // Other rounds have other prompts, so that nothing is found in a cache of prompts; those of the
  // first are bench/serving.py's too, since what an answer costs depends on it.
  static constexpr int kApart = 4096;
  std::vector<TokenId> RandomTokens(int32_t count, uint64_t seed) const {
    std::vector<TokenId> tokens;
    const uint64_t vocabulary = static_cast<uint64_t>(engine_->Model().vocabulary_size);
    const uint64_t first = std::min<uint64_t>(256, vocabulary / 2);
    uint64_t state = seed * 2654435761ULL + 1;
    for (int32_t i = 0; i < count; ++i) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      tokens.push_back(static_cast<TokenId>(first + (state >> 33) % (vocabulary - first)));
    }
    return tokens;
  }

  void Report(const ModelFile& file, const std::vector<Case>& cases, int threads, double bandwidth,
              const std::map<std::string, std::vector<double>>& rates) {
    const Receipt& kernels = engine_->Configuration();
    const std::string instruction_set =
        kernels.kernel_configuration.substr(0, kernels.kernel_configuration.find('/'));
    JsonArray results;
    if (!json()) {
      std::printf(
          "model      %s (%s)\nkernels    %s, %d threads\nbandwidth  %.1f GB/s read\n\n"
          "%-14s %12s %12s  tokens/s\n",
          file.name.c_str(), HumanBytes(file.bytes).c_str(), kernels.kernel_configuration.c_str(),
          threads, bandwidth / 1e9, "case", "median", "best");
    }
    for (const Case& one : cases) {
      const std::vector<double>& values = rates.at(one.name);
      const double best = *std::max_element(values.begin(), values.end());
      const double median = Median(values);
      JsonArray rounds;
      for (const double value : values) rounds.Add(value);
      results.Add(JsonObject()
                      .Add("name", one.name)
                      .Add("unit", "tokens/s")
                      .Add("prompt_tokens", one.prompt)
                      .Add("generated_tokens", one.generated)
                      .Add("streams", one.streams)
                      .Add("median", median)
                      .Add("best", best)
                      .Add("rounds", rounds));
      if (!json()) {
        std::printf("%-14s %12.1f %12.1f\n", one.name.c_str(), median, best);
      }
    }
    if (!json()) return;
    const int64_t bytes_per_token = engine_->Model().bytes_per_token;
    std::puts(JsonObject()
                  .Add("machine", ToJson(DescribeMachine()))
                  .Add("model", file.path)
                  .Add("model_digest", engine_->Model().digest)
                  .Add("model_bytes", file.bytes)
                  .Add("threads", threads)
                  .Add("instruction_set", instruction_set)
                  .Add("kernel_configuration", kernels.kernel_configuration)
                  .Add("speculation", speculation_)
                  .Add("read_bandwidth_bytes_per_second", bandwidth)
                  .Add("bytes_per_token", bytes_per_token)
                  // Of the median, like every figure that is compared.
                  .Add("decode_bandwidth_share",
                       bandwidth > 0 ? Median(rates.at("decode")) *
                                           static_cast<double>(bytes_per_token) / bandwidth
                                     : 0.0)
                  .Add("results", results)
                  .str()
                  .c_str());
  }

  int32_t tokens_ = 64;
  int32_t prompt_ = 512;
  int32_t rounds_ = 5;
  int32_t threads_ = 0;
  std::vector<std::string> batches_ = {"8"};
  std::vector<std::string> depths_ = {"1024", "4096"};
  std::string kernels_;
  std::string activations_ = "mixed";
  std::string speculation_ = "off";
  int64_t requests_ = 0;
  std::unique_ptr<Engine> engine_;
};

}  // namespace

std::unique_ptr<Verb> MakeBenchVerb() { return std::make_unique<BenchVerb>(); }

}  // namespace cogumi::cli
