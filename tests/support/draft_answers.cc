// Greedy answers without drafts and with those of a draft model, for the Python tests.
//
// Usage: cogumi-draft-answers MODEL DRAFT
// Input: prompts, one a line, each a user's message. Output: a line for each: tokens of the prompt,
// tokens drafted and tokens accepted; a tab; the answer's ids without drafts; a tab; those with
// them. Both go on behind an end token.
//
// What is drafted must depend neither on the machine nor on how good the draft model is. So time
// is told by what is computed: a step with a draft takes half as long as one without, and a pass of
// the draft model next to nothing. Then drafts pay even if hardly any is accepted.
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/lib/shared_model.h"
#include "cogumi/engine.h"
#include "engine/core/clock.h"
#include "engine/core/status_macros.h"
#include "engine/core/thread_pool.h"
#include "engine/io/gguf.h"
#include "engine/runtime/engine_parts.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"
#include "tests/unit/runtime/fake_parts.h"

namespace cogumi {
namespace {

constexpr int32_t kTokens = 48;  // of an answer
// Seconds.
constexpr double kPlainStep = 1;
constexpr double kDraftedStep = 0.5;
constexpr double kPass = 1e-6;

// Moves the clock by what a step, or a pass of the draft model, takes.
class TimedModel : public bench::SharedModel {
 public:
  TimedModel(std::shared_ptr<Model> model, bool drafts, FakeClock* clock)
      : SharedModel(std::move(model)), drafts_(drafts), clock_(clock) {}

  absl::Status Forward(const StepPlan& plan, KvCache& cache) override {
    absl::Status status = SharedModel::Forward(plan, cache);
    clock_->Advance(Seconds(plan));
    return status;
  }

 private:
  double Seconds(const StepPlan& plan) const {
    if (drafts_) return kPass;
    // Time begins with the draft model's first pass: before, its price is a guess, and what that
    // forbids would never be measured.
    if (clock_->Now() <= 0) return 0;
    const bool drafted = plan.Rows() > static_cast<int32_t>(plan.sequences.size());
    return drafted ? kDraftedStep : kPlainStep;
  }

  const bool drafts_;
  FakeClock* const clock_;
};

absl::StatusOr<std::unique_ptr<Engine>> CreateEngine(const std::string& path,
                                                     const std::string& draft_path,
                                                     FakeClock* clock) {
  EngineOptions options;
  options.model_path = path;
  options.speculation = Speculation::kDraftModel;
  options.draft_model_path = draft_path;
  options.max_running = 1;
  options.prefix_cache = false;     // the second answer reads its prompt too
  options.step_target_seconds = 0;  // these seconds say nothing about chunks
  options.clock = clock;
  ASSIGN_OR_RETURN(const std::shared_ptr<GgufFile> file, GgufFile::Open(path));
  ASSIGN_OR_RETURN(const std::shared_ptr<GgufFile> draft_file, GgufFile::Open(draft_path));
  EngineParts parts;
  ASSIGN_OR_RETURN(parts.tokenizer, Tokenizer::Create(*file));
  ASSIGN_OR_RETURN(parts.chat_template, ChatTemplate::Create(*file, options.chat_template));
  parts.pool = std::make_unique<ThreadPool>(ThreadPool::AvailableCores());
  ASSIGN_OR_RETURN(std::unique_ptr<Model> model,
                   Model::Load(*file, ModelOptionsFor(options), parts.pool.get()));
  parts.model = std::make_unique<TimedModel>(std::move(model), /*drafts=*/false, clock);
  ASSIGN_OR_RETURN(std::unique_ptr<Model> draft_model,
                   Model::Load(*draft_file, DraftModelOptionsFor(options), parts.pool.get()));
  parts.draft_model = std::make_unique<TimedModel>(std::move(draft_model), /*drafts=*/true, clock);
  parts.digest = [] { return std::string("not computed"); };
  return CreateEngineFromParts(options, std::move(parts));
}

absl::StatusOr<std::shared_ptr<RecordingSink>> Answer(Engine& engine,
                                                      const std::vector<TokenId>& prompt,
                                                      Speculation speculation) {
  GenerationRequest request;
  request.tokens = prompt;
  request.sampling.temperature = 0;
  request.sampling.max_tokens = kTokens;
  request.sampling.ignore_eos = true;
  request.speculation = speculation;
  auto sink = std::make_shared<RecordingSink>();
  RETURN_IF_ERROR(engine.Submit(std::move(request), sink).status());
  sink->Wait();
  RETURN_IF_ERROR(sink->status());
  return sink;
}

void PrintIds(const RecordingSink& sink) {
  for (const TokenId id : sink.tokens()) std::printf(" %d", id);
}

absl::Status Run(const std::string& path, const std::string& draft_path) {
  FakeClock clock;
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, CreateEngine(path, draft_path, &clock));
  std::string line;
  while (std::getline(std::cin, line)) {
    ASSIGN_OR_RETURN(const TokenizedPrompt prompt,
                     engine->Tokenize(std::vector<Message>{{MessageRole::kUser, line}}));
    ASSIGN_OR_RETURN(const std::shared_ptr<RecordingSink> plain,
                     Answer(*engine, prompt.tokens, Speculation::kOff));
    ASSIGN_OR_RETURN(const std::shared_ptr<RecordingSink> drafted,
                     Answer(*engine, prompt.tokens, Speculation::kDraftModel));
    const SpeculationStats& stats = drafted->completion().speculation;
    std::printf("%zu %d %d\t", prompt.tokens.size(), stats.drafted_tokens, stats.accepted_tokens);
    PrintIds(*plain);
    std::printf("\t");
    PrintIds(*drafted);
    std::printf("\n");
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace cogumi

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s MODEL DRAFT < prompts\n", argv[0]);
    return 2;
  }
  const absl::Status status = cogumi::Run(argv[1], argv[2]);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return 1;
  }
  return 0;
}
