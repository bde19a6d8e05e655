// cogumi-speculation-bench: answers to given prompts with and without drafts, side by side, as
// JSON. bench/speculation gives it the tasks and reads the figures.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "bench/lib/shared_model.h"
#include "bench/lib/turns.h"
#include "cogumi/engine.h"
#include "engine/core/status_macros.h"
#include "engine/core/thread_pool.h"
#include "engine/io/gguf.h"
#include "engine/runtime/engine_parts.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"

namespace cogumi::bench {
namespace {

struct Options {
  std::string model_path;
  std::string draft_model_path;
  std::string tasks_path;
  std::vector<int> batches = {1};
  double temperature = 0;
  int32_t max_tokens = 128;
  int groups = 0;  // of a batch, at most; 0: all
  double bound = 0;
  int threads = 0;
};

constexpr size_t kLeastGroups = 4;
constexpr size_t kMostGroups = 32;
constexpr double kTurnSeconds = 0.02;
// Of an answer that keeps the other side company.
constexpr int32_t kFillerTokens = 32;

struct Task {
  std::string kind;
  std::string prompt;
};

// When tokens came, and which.
class Recorder : public ResponseSink {
 public:
  Recorder(std::shared_ptr<Turns> turns, int side) : turns_(std::move(turns)), side_(side) {}

  void OnChunk(Chunk chunk) override {
    const double now = turns_->Seconds(side_);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const TokenInfo& token : chunk.tokens) {
        tokens_.push_back(token.id);
        times_.push_back(now);
      }
    }
    // Holds this engine's step thread until its turn comes again.
    turns_->Offer(side_);
  }
  void OnFinished(absl::Status status, Completion completion) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    status_ = std::move(status);
    completion_ = std::move(completion);
    done_ = true;
    condition_.notify_all();
  }
  absl::Status Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    condition_.wait(lock, [this] { return done_; });
    return status_;
  }
  // After the end.
  const std::vector<TokenId>& tokens() const { return tokens_; }
  const std::vector<double>& times() const { return times_; }
  const Completion& completion() const { return completion_; }

 private:
  const std::shared_ptr<Turns> turns_;
  const int side_;
  std::mutex mutex_;
  std::condition_variable condition_;
  bool done_ = false;
  absl::Status status_;
  Completion completion_;
  std::vector<TokenId> tokens_;
  std::vector<double> times_;
};

struct GroupResult {
  // From the moment when all streams of the group have their first token: prompts are not
  // speculation's business.
  double seconds = 0;
  int64_t tokens = 0;
  double whole_seconds = 0;
  std::vector<std::vector<TokenId>> answers;
  SpeculationStats stats;
};

// Somebody says the same again and again: such text is easy to draft and worth nothing.
bool Loops(const std::vector<TokenId>& tokens) {
  std::map<std::vector<TokenId>, int> counts;
  for (size_t i = 0; i + 4 <= tokens.size(); ++i) {
    const auto at = tokens.begin() + static_cast<std::ptrdiff_t>(i);
    if (++counts[std::vector<TokenId>(at, at + 4)] >= 4) return true;
  }
  return false;
}

// Whether a row is told from its bound: the mean of its groups' ratios lies more than its standard
// error above. One that is below goes on to the end as well: the verdict is of all its groups.
bool IsClear(const std::vector<double>& ratios, double bound) {
  const double count = static_cast<double>(ratios.size());
  double mean = 0;
  for (const double ratio : ratios) mean += ratio / count;
  double variance = 0;
  for (const double ratio : ratios) variance += (ratio - mean) * (ratio - mean) / (count - 1);
  return mean - std::sqrt(variance / count) > bound;
}

using Engines = std::array<std::unique_ptr<Engine>, 2>;

// Two engines with the same options on the same weights, which must take turns.
absl::StatusOr<Engines> CreateEngines(const EngineOptions& options) {
  ASSIGN_OR_RETURN(const std::shared_ptr<GgufFile> file, GgufFile::Open(options.model_path));
  const int threads = options.threads > 0 ? options.threads : ThreadPool::AvailableCores();
  const auto pool = std::make_shared<ThreadPool>(threads);
  // The last engine takes the pool along.
  const auto load = [&pool](const GgufFile& from,
                            const ModelOptions& how) -> absl::StatusOr<std::shared_ptr<Model>> {
    ASSIGN_OR_RETURN(std::unique_ptr<Model> model, Model::Load(from, how, pool.get()));
    return std::shared_ptr<Model>(model.release(), [pool](Model* owned) { delete owned; });
  };
  ASSIGN_OR_RETURN(const std::shared_ptr<Model> model, load(*file, ModelOptionsFor(options)));
  std::shared_ptr<Model> draft_model;
  if (!options.draft_model_path.empty()) {
    ASSIGN_OR_RETURN(const std::shared_ptr<GgufFile> draft_file,
                     GgufFile::Open(options.draft_model_path));
    ASSIGN_OR_RETURN(draft_model, load(*draft_file, DraftModelOptionsFor(options)));
  }
  Engines engines;
  for (std::unique_ptr<Engine>& engine : engines) {
    EngineParts parts;
    ASSIGN_OR_RETURN(parts.tokenizer, Tokenizer::Create(*file));
    ASSIGN_OR_RETURN(parts.chat_template, ChatTemplate::Create(*file, options.chat_template));
    parts.model = std::make_unique<SharedModel>(model);
    if (draft_model != nullptr) parts.draft_model = std::make_unique<SharedModel>(draft_model);
    parts.digest = [] { return std::string("not computed"); };
    ASSIGN_OR_RETURN(engine, CreateEngineFromParts(options, std::move(parts)));
  }
  return engines;
}

class Bench {
 public:
  // Each engine answers with drafts as often as without: one may be faster by where its memory
  // lies.
  Bench(const Options& options, Engines engines)
      : options_(options), engines_(std::move(engines)) {}

  struct Pair {
    GroupResult without;
    GroupResult with;
  };
  // The same prompts on both engines, which take turns; the group's number says which does what.
  absl::StatusOr<Pair> RunBoth(const std::vector<const Task*>& tasks, size_t group,
                               Speculation drafter) {
    const int plain = group / 2 % 2 == 0 ? 0 : 1;
    const auto turns =
        std::make_shared<Turns>(kTurnSeconds, /*first=*/group % 2 == 0 ? plain : 1 - plain);
    absl::StatusOr<GroupResult> with;
    std::thread other([&] { with = Run(tasks, 1 - plain, drafter, turns); });
    absl::StatusOr<GroupResult> without = Run(tasks, plain, Speculation::kOff, turns);
    other.join();
    RETURN_IF_ERROR(without.status());
    RETURN_IF_ERROR(with.status());
    return Pair{*std::move(without), *std::move(with)};
  }

  absl::StatusOr<GroupResult> Run(const std::vector<const Task*>& tasks, int side,
                                  Speculation speculation, const std::shared_ptr<Turns>& turns) {
    turns->Begin(side);
    absl::StatusOr<GroupResult> result =
        RunInTurn(tasks, side, speculation, options_.max_tokens, turns);
    turns->Finish(side);
    absl::Status filled;
    while (result.ok() && filled.ok() && !turns->Finished(1 - side)) {
      filled = RunInTurn({tasks.front()}, side, Speculation::kOff, kFillerTokens, turns).status();
    }
    turns->End(side);
    RETURN_IF_ERROR(filled);
    return result;
  }

  absl::StatusOr<GroupResult> RunInTurn(const std::vector<const Task*>& tasks, int side,
                                        Speculation speculation, int32_t max_tokens,
                                        const std::shared_ptr<Turns>& turns) {
    Engine& engine = *engines_[static_cast<size_t>(side)];
    std::vector<std::shared_ptr<Recorder>> streams;
    for (const Task* task : tasks) {
      ASSIGN_OR_RETURN(TokenizedPrompt prompt,
                       engine.Tokenize(std::vector<Message>{{MessageRole::kUser, task->prompt}}));
      GenerationRequest request;
      request.tokens = std::move(prompt.tokens);
      // Another tenant each time: no prompt is found in a cache.
      request.tenant = absl::StrCat("tenant-", tenants_.fetch_add(1));
      request.sampling.temperature = static_cast<float>(options_.temperature);
      request.sampling.max_tokens = max_tokens;
      request.sampling.seed = 1234 + static_cast<uint64_t>(task - first_task_);
      request.speculation = speculation;
      streams.push_back(std::make_shared<Recorder>(turns, side));
      RETURN_IF_ERROR(engine.Submit(std::move(request), streams.back()).status());
    }
    GroupResult result;
    double all_began = 0;
    for (const auto& stream : streams) {
      RETURN_IF_ERROR(stream->Wait());
      all_began = std::max(all_began, stream->times().front());
      result.whole_seconds = std::max(result.whole_seconds, stream->times().back());
    }
    for (const auto& stream : streams) {
      for (const double time : stream->times()) result.tokens += time > all_began ? 1 : 0;
      result.answers.push_back(stream->tokens());
      Add(stream->completion().speculation, result.stats);
    }
    result.seconds = result.whole_seconds - all_began;
    return result;
  }

  static void Add(const SpeculationStats& from, SpeculationStats& to) {
    to.drafts += from.drafts;
    to.drafted_tokens += from.drafted_tokens;
    to.accepted_tokens += from.accepted_tokens;
    const size_t positions = from.accepted_per_position.size();
    if (to.accepted_per_position.size() < positions) to.accepted_per_position.resize(positions);
    for (size_t i = 0; i < positions; ++i) {
      to.accepted_per_position[i] += from.accepted_per_position[i];
    }
  }

  absl::StatusOr<nlohmann::json> Measure(const std::vector<Task>& tasks, Speculation drafter) {
    first_task_ = tasks.data();
    nlohmann::json rows = nlohmann::json::array();
    std::map<std::string, std::vector<const Task*>> by_kind;
    for (const Task& task : tasks) by_kind[task.kind].push_back(&task);
    for (const auto& [kind, all] : by_kind) {
      // Which answers are left out: the same at any batch, with and without drafts.
      std::vector<const Task*> kept;
      for (size_t i = 0; i < all.size(); i += 8) {
        const std::vector<const Task*> group(
            all.begin() + static_cast<std::ptrdiff_t>(i),
            all.begin() + static_cast<std::ptrdiff_t>(std::min(all.size(), i + 8)));
        const auto alone = std::make_shared<Turns>(kTurnSeconds, /*first=*/0);
        alone->Finish(1);
        alone->End(1);
        ASSIGN_OR_RETURN(const GroupResult result, Run(group, 0, Speculation::kOff, alone));
        for (size_t k = 0; k < group.size(); ++k) {
          if (!Loops(result.answers[k])) kept.push_back(group[k]);
        }
      }
      for (const int batch : options_.batches) {
        if (kept.empty()) continue;
        ASSIGN_OR_RETURN(nlohmann::json row, MeasureBatch(kept, batch, drafter));
        row["task"] = kind;
        row["prompts"] = all.size();
        row["left_out"] = all.size() - kept.size();
        rows.push_back(std::move(row));
      }
    }
    return rows;
  }

 private:
  absl::StatusOr<nlohmann::json> MeasureBatch(const std::vector<const Task*>& tasks, int batch,
                                              Speculation drafter) {
    const size_t size = static_cast<size_t>(batch);
    // So that each way begins as often as the other, on either engine.
    size_t groups = std::max(kLeastGroups, tasks.size() / size / kLeastGroups * kLeastGroups);
    if (options_.groups > 0) groups = std::min(groups, static_cast<size_t>(options_.groups));
    const size_t most = options_.bound > 0 ? std::max(groups, kMostGroups) : groups;
    std::vector<double> ratios;
    nlohmann::json plain_seconds = nlohmann::json::array(), seconds = nlohmann::json::array();
    nlohmann::json plain_tokens = nlohmann::json::array(), tokens = nlohmann::json::array();
    double whole_plain = 0;
    double whole = 0;
    int different = 0;
    SpeculationStats stats;
    for (size_t g = 0; g < groups; ++g) {
      std::vector<const Task*> group;
      for (size_t i = 0; i < size; ++i) group.push_back(tasks[(g * size + i) % tasks.size()]);
      ASSIGN_OR_RETURN(const Pair pair, RunBoth(group, g, drafter));
      const auto& [without, with] = pair;
      different += without.answers == with.answers ? 0 : 1;
      plain_seconds.push_back(without.seconds);
      plain_tokens.push_back(without.tokens);
      seconds.push_back(with.seconds);
      tokens.push_back(with.tokens);
      whole_plain += without.whole_seconds;
      whole += with.whole_seconds;
      Add(with.stats, stats);
      if (with.tokens > 0 && without.tokens > 0) {  // else all ended with their first token
        ratios.push_back(static_cast<double>(with.tokens) / with.seconds * without.seconds /
                         static_cast<double>(without.tokens));
      }
      if (g + 1 == groups && groups < most && !IsClear(ratios, options_.bound))
        groups += kLeastGroups;
    }
    return nlohmann::json{{"batch", batch},
                          {"groups", groups},
                          {"different", different},
                          {"plain_seconds", plain_seconds},
                          {"plain_tokens", plain_tokens},
                          {"seconds", seconds},
                          {"tokens", tokens},
                          {"whole_plain_seconds", whole_plain},
                          {"whole_seconds", whole},
                          {"drafts", stats.drafts},
                          {"drafted", stats.drafted_tokens},
                          {"accepted", stats.accepted_tokens},
                          {"accepted_per_position", stats.accepted_per_position}};
  }

  const Options options_;
  const Engines engines_;
  const Task* first_task_ = nullptr;
  std::atomic<int64_t> tenants_ = 0;
};

absl::StatusOr<nlohmann::json> RunBench(const Options& options) {
  std::ifstream file(options.tasks_path);
  const nlohmann::json input = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!input.is_array() || input.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(options.tasks_path, ": no list of tasks"));
  }
  std::vector<Task> tasks;
  for (const nlohmann::json& task : input) {
    tasks.push_back({task.value("kind", ""), task.value("prompt", "")});
  }
  EngineOptions engine_options;
  engine_options.model_path = options.model_path;
  engine_options.threads = options.threads;
  engine_options.max_running = *std::max_element(options.batches.begin(), options.batches.end());
  engine_options.max_running = std::max(engine_options.max_running, 8);
  engine_options.kv_bytes = int64_t{1} << 30;
  const bool by_model = !options.draft_model_path.empty();
  if (by_model) {
    engine_options.speculation = Speculation::kDraftModel;
    engine_options.draft_model_path = options.draft_model_path;
    engine_options.draft_kv_bytes = int64_t{1} << 30;
  }
  ASSIGN_OR_RETURN(Engines engines, CreateEngines(engine_options));
  const std::string configuration = engines[0]->Configuration().kernel_configuration;
  Bench bench(options, std::move(engines));
  ASSIGN_OR_RETURN(nlohmann::json rows,
                   bench.Measure(tasks, by_model ? Speculation::kDraftModel : Speculation::kNgram));
  return nlohmann::json{{"kernel_configuration", configuration},
                        {"temperature", options.temperature},
                        {"max_tokens", options.max_tokens},
                        {"rows", rows}};
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Answers with and without drafts, side by side, as JSON.",
               "cogumi-speculation-bench");
  app.add_option("model", options.model_path, "GGUF file")->required();
  app.add_option("tasks", options.tasks_path, "JSON: a list of {kind, prompt}")->required();
  app.add_option("--draft-model", options.draft_model_path, "GGUF file; none: n-gram lookup");
  app.add_option("--batches", options.batches, "streams at once")->delimiter(',');
  app.add_option("--temperature", options.temperature)->check(CLI::Range(0.0, 2.0));
  app.add_option("--max-tokens", options.max_tokens, "of an answer")->check(CLI::Range(2, 4096));
  app.add_option("--groups", options.groups, "of a batch, at most; 0: all prompts");
  app.add_option("--bound", options.bound,
                 "further groups, up to 32, for a row whose ratio is not clearly above; 0: none");
  app.add_option("--threads", options.threads, "0: one per core")->check(CLI::Range(0, 1024));
  CLI11_PARSE(app, argc, argv);
  const absl::StatusOr<nlohmann::json> result = RunBench(options);
  if (!result.ok()) {
    std::cerr << "cogumi-speculation-bench: " << result.status().message() << "\n";
    return 1;
  }
  std::cout << result->dump() << std::endl;
  return 0;
}

}  // namespace
}  // namespace cogumi::bench

int main(int argc, char** argv) { return cogumi::bench::Main(argc, argv); }
