// cogumi-latency-bench: how long running streams wait for their next token while long prompts
// arrive, as one object of JSON on standard output.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <condition_variable>
#include <iostream>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "cogumi/engine.h"
#include "engine/core/clock.h"
#include "engine/core/status_macros.h"

namespace cogumi::bench {
namespace {

constexpr size_t kWarmTokens = 16;    // of every stream, before anything is measured
constexpr size_t kQuietTokens = 100;  // of every stream, before the first prompt arrives

// When the tokens of a stream came.
class TimedSink : public ResponseSink {
 public:
  void OnChunk(Chunk chunk) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!chunk.tokens.empty()) times_.push_back(Clock::Real()->Now());
    changed_.notify_all();
  }
  void OnFinished(absl::Status status, Completion /*completion*/) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    status_ = std::move(status);
    ended_ = true;
    changed_.notify_all();
  }
  // False when the stream ended before.
  bool WaitForTokens(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return ended_ || times_.size() >= count; });
    return times_.size() >= count;
  }
  absl::Status WaitForEnd() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return ended_; });
    return status_;
  }
  std::vector<double> times() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return times_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<double> times_;
  absl::Status status_;
  bool ended_ = false;
};

struct BenchOptions {
  EngineOptions engine;
  int32_t streams = 8;
  int32_t arrivals = 3;
  int32_t prompt = 4096;
  double limit_ms = 100;
  bool check = false;
};

GenerationRequest Request(Engine& engine, int32_t prompt, int32_t generated,
                          std::mt19937_64& random) {
  GenerationRequest request;
  const uint64_t vocabulary = static_cast<uint64_t>(engine.Model().vocabulary_size);
  for (int32_t i = 0; i < prompt; ++i) {
    request.tokens.push_back(static_cast<TokenId>(random() % vocabulary));
  }
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  request.sampling.max_tokens = generated;
  return request;
}

// Gaps between tokens of the streams that ended between the two moments, in milliseconds.
nlohmann::json Gaps(const std::vector<std::shared_ptr<TimedSink>>& streams, double from,
                    double to) {
  std::vector<double> gaps;
  for (const auto& stream : streams) {
    const std::vector<double> times = stream->times();
    for (size_t i = 1; i < times.size(); ++i) {
      if (times[i] > from && times[i] <= to) gaps.push_back(1e3 * (times[i] - times[i - 1]));
    }
  }
  if (gaps.empty()) return {{"tokens", 0}};
  std::sort(gaps.begin(), gaps.end());
  const auto at = [&](double share) {
    const double place = share * static_cast<double>(gaps.size());
    return gaps[std::min(gaps.size() - 1, static_cast<size_t>(place))];
  };
  return {{"tokens", gaps.size()}, {"p50_ms", at(0.5)}, {"p99_ms", at(0.99)},
          {"max_ms", gaps.back()}};
}

absl::StatusOr<nlohmann::json> RunBench(BenchOptions options) {
  options.engine.max_running = std::max(options.engine.max_running, options.streams + 1);
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Create(options.engine));
  const int32_t context = engine->Model().context_length;
  if (options.prompt >= context) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompt: ", options.prompt, " leaves no room in the context of ", context));
  }
  std::mt19937_64 random(7);
  std::vector<std::shared_ptr<TimedSink>> streams;
  std::vector<RequestHandle> handles;
  for (int32_t i = 0; i < options.streams; ++i) {
    streams.push_back(std::make_shared<TimedSink>());
    ASSIGN_OR_RETURN(
        const RequestHandle handle,
        engine->Submit(Request(*engine, 32, context - 32, random), streams.back()));
    handles.push_back(handle);
  }
  const auto all_have = [&](size_t tokens) {
    return std::all_of(streams.begin(), streams.end(),
                       [&](const auto& stream) { return stream->WaitForTokens(tokens); });
  };
  bool running = all_have(kWarmTokens);
  const double quiet = Clock::Real()->Now();
  running = running && all_have(kWarmTokens + kQuietTokens);
  const double begin = Clock::Real()->Now();
  for (int32_t i = 0; running && i < options.arrivals; ++i) {
    const auto arrival = std::make_shared<TimedSink>();
    RETURN_IF_ERROR(
        engine->Submit(Request(*engine, options.prompt, 1, random), arrival).status());
    RETURN_IF_ERROR(arrival->WaitForEnd());
  }
  const double end = Clock::Real()->Now();
  // A stream that has ended no longer waits for tokens: the figures would be of fewer.
  running = running && std::all_of(streams.begin(), streams.end(), [&](const auto& stream) {
              return stream->times().size() < static_cast<size_t>(context - 32);
            });
  for (const RequestHandle handle : handles) engine->Cancel(handle);
  for (const auto& stream : streams) (void)stream->WaitForEnd();
  if (!running) return absl::OutOfRangeError("the streams ended before the last prompt did");
  const double prompts = static_cast<double>(options.arrivals) * options.prompt;
  return nlohmann::json{{"configuration", engine->Configuration().kernel_configuration},
                        {"streams", options.streams},
                        {"arrivals", options.arrivals},
                        {"prompt_tokens", options.prompt},
                        {"step_target_seconds", options.engine.step_target_seconds},
                        {"quiet", Gaps(streams, quiet, begin)},
                        {"beside_prompts", Gaps(streams, begin, end)},
                        {"prompt_tokens_per_second", prompts / (end - begin)},
                        {"preemptions", engine->Stats().preemptions}};
}

int Main(int argc, char** argv) {
  BenchOptions options;
  options.engine.kv_bytes = 2LL << 30;
  CLI::App app("Inter-token times of running streams while long prompts arrive, as JSON.",
               "cogumi-latency-bench");
  app.add_option("model", options.engine.model_path, "GGUF file")->required();
  app.add_option("--streams", options.streams, "running streams")->check(CLI::Range(1, 512));
  app.add_option("--arrivals", options.arrivals, "long prompts, one after another")
      ->check(CLI::Range(1, 1000));
  app.add_option("--prompt", options.prompt, "tokens of a long prompt")
      ->check(CLI::Range(1, 1 << 24));
  app.add_option("--step-target", options.engine.step_target_seconds,
                 "seconds of a step with prompts; 0: whole chunks")
      ->check(CLI::Range(0.0, 3600.0));
  app.add_option("--prefill-chunk", options.engine.prefill_chunk, "prompt tokens in a step")
      ->check(CLI::Range(1, 8192));
  app.add_option("--threads", options.engine.threads, "0: one per core")
      ->check(CLI::Range(0, 1024));
  app.add_option("--limit", options.limit_ms, "milliseconds that --check allows at p99");
  app.add_flag("--check", options.check, "fail when the p99 beside prompts is above the limit");
  CLI11_PARSE(app, argc, argv);
  const absl::StatusOr<nlohmann::json> result = RunBench(options);
  if (!result.ok()) {
    std::cerr << "cogumi-latency-bench: " << result.status().message() << "\n";
    return 1;
  }
  std::cout << result->dump(1) << std::endl;
  if (!options.check) return 0;
  const double p99 = (*result)["beside_prompts"]["p99_ms"];
  if (p99 <= options.limit_ms) return 0;
  std::cerr << "cogumi-latency-bench: p99 of " << p99 << " ms is above " << options.limit_ms
            << " ms\n";
  return 1;
}

}  // namespace
}  // namespace cogumi::bench

int main(int argc, char** argv) { return cogumi::bench::Main(argc, argv); }
