#include "bench/lib/model_speed.h"

#include <algorithm>
#include <chrono>

#include "engine/core/status_macros.h"
#include "engine/model/step_plan.h"

namespace cogumi::bench {

const std::vector<SpeedTest>& KnownTests() {
  static const std::vector<SpeedTest>* const tests = new std::vector<SpeedTest>{
      {.name = "decode", .steps = 128},
      {.name = "prefill", .rows = 512, .role = TokenRole::kPrompt, .all_logits = false},
      // As the verification of drafts computes them: logits of every row.
      {.name = "five", .steps = 16, .rows = 5},
      {.name = "batch8", .sequences = 8, .depth = 128, .steps = 64},
      {.name = "batch32", .sequences = 32, .depth = 128, .steps = 32},
      {.name = "depth4096", .depth = 4096, .steps = 32},
      // What a full house keeps resident.
      {.name = "streams1024", .sequences = 32, .depth = 1008, .steps = 16},
  };
  return *tests;
}

absl::StatusOr<std::unique_ptr<SpeedRunner>> SpeedRunner::Create(
    Model* model, int32_t chunk, const std::vector<SpeedTest>& tests, std::vector<TokenId> text) {
  int64_t pages = 1;
  for (const SpeedTest& test : tests) {
    pages = std::max(
        pages, int64_t{test.sequences} * KvCache::PagesFor(test.depth + test.steps * test.rows));
  }
  std::unique_ptr<SpeedRunner> runner(new SpeedRunner(model, chunk, std::move(text)));
  const KvShape shape = model->kv_shape();
  const int64_t page_bytes = static_cast<int64_t>(shape.WideBytes() + shape.NarrowBytes());
  ASSIGN_OR_RETURN(runner->cache_, KvCache::Create(shape, pages * page_bytes));
  return runner;
}

int64_t SpeedRunner::KvBytes(const SpeedTest& test) const {
  return cache_->BytesFor(test.depth + test.steps * test.rows / 2);
}

TokenId SpeedRunner::NextToken(size_t sequence, int32_t position) {
  if (!text_.empty()) {
    // Sequences begin at places of their own.
    constexpr size_t kApart = 37;
    return text_[(sequence * kApart + static_cast<size_t>(position)) % text_.size()];
  }
  // A fixed sequence (Knuth's MMIX generator) makes runs repeatable.
  random_ = random_ * 6364136223846793005ULL + 1442695040888963407ULL;
  return static_cast<TokenId>((random_ >> 33) %
                              static_cast<uint64_t>(model_->config().vocabulary_size));
}

absl::Status SpeedRunner::Step(std::vector<KvSequence>& sequences, size_t first, size_t count,
                               int32_t rows, TokenRole role, bool all_logits) {
  StepPlan plan;
  for (size_t i = first; i < first + count; ++i) {
    KvSequence& sequence = sequences[i];
    StepSequence step;
    step.pages = &sequence.pages;
    step.first_row = plan.Rows();
    step.rows = rows;
    step.first_position = sequence.length;
    RETURN_IF_ERROR(cache_->Extend(sequence, sequence.length + rows));
    for (int32_t row = 0; row < rows; ++row) {
      if (all_logits || row == rows - 1) {
        plan.logit_rows.push_back(plan.Rows());
        plan.logit_needs.push_back(LogitNeed::kTop);  // of a greedy answer
      }
      plan.tokens.push_back(NextToken(i, step.first_position + row));
      plan.roles.push_back(role);
    }
    plan.sequences.push_back(step);
  }
  RETURN_IF_ERROR(model_->Forward(plan, *cache_));
  for (size_t i = first; i < first + count; ++i) {
    cache_->Commit(sequences[i], sequences[i].length);
  }
  return absl::OkStatus();
}

absl::Status SpeedRunner::Prompt(std::vector<KvSequence>& sequences, size_t index, int32_t tokens) {
  for (int32_t left = tokens; left > 0;) {
    const int32_t rows = std::min(left, chunk_);
    RETURN_IF_ERROR(Step(sequences, index, 1, rows, TokenRole::kPrompt, false));
    left -= rows;
  }
  return absl::OkStatus();
}

absl::StatusOr<double> SpeedRunner::Measure(const SpeedTest& test) {
  std::vector<KvSequence> sequences(static_cast<size_t>(test.sequences));
  for (size_t i = 0; i < sequences.size(); ++i) RETURN_IF_ERROR(Prompt(sequences, i, test.depth));
  const auto start = std::chrono::steady_clock::now();
  for (int32_t step = 0; step < test.steps; ++step) {
    if (test.role == TokenRole::kPrompt) {
      RETURN_IF_ERROR(Prompt(sequences, 0, test.rows));
    } else {
      RETURN_IF_ERROR(Step(sequences, 0, sequences.size(), test.rows, test.role, test.all_logits));
    }
  }
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  for (KvSequence& sequence : sequences) cache_->Release(sequence);
  return taken.count();
}

}  // namespace cogumi::bench
