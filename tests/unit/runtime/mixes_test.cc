// Random mixes of requests on a tiny real model: each answer has the bits that it has alone, in any
// batch and chunk, after preemption, with beginnings from the prefix cache, with and without
// drafts, in every KV format and on every instruction set. Counters show that the mixes contained
// all of it.
#include <algorithm>
#include <bit>
#include <cstdio>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "engine/core/clock.h"
#include "engine/decode/ngram_drafter.h"
#include "engine/decode/speculator.h"
#include "engine/io/gguf.h"
#include "engine/kernels/registry.h"
#include "engine/runtime/scheduler.h"
#include "gtest/gtest.h"
#include "tests/support/long_tests.h"
#include "tests/support/sanitizers.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/runtime/fake_parts.h"

namespace cogumi {
namespace {

constexpr int32_t kContext = 1536;
constexpr int32_t kChunks[] = {1, 17, 64, 512};
constexpr int32_t kWidths[] = {1, 2, 5, 8, 9, 32};

// All that the logits of a token say about themselves, bit by bit.
using Bits = std::vector<uint32_t>;

Bits BitsOf(const TokenInfo& info, bool logprobs) {
  Bits bits = {static_cast<uint32_t>(info.id)};
  // Without log-probabilities the rest may be estimates that depend on the step (LogitNeed::kTop).
  if (!logprobs) return bits;
  for (const float value : {info.logprob, info.margin, info.entropy}) {
    bits.push_back(std::bit_cast<uint32_t>(value));
  }
  for (const TopLogprob& top : info.top) {
    bits.push_back(static_cast<uint32_t>(top.id));
    bits.push_back(std::bit_cast<uint32_t>(top.logprob));
  }
  return bits;
}

std::vector<Bits> BitsOf(const std::vector<TokenInfo>& infos, bool logprobs) {
  std::vector<Bits> bits;
  for (const TokenInfo& info : infos) bits.push_back(BitsOf(info, logprobs));
  return bits;
}

// What must not be: attention over a long context whose chunks of keys are added in an order that
// depends on how many sequences are in the step. One row and head at a time, by the tier's kernels.
class SplitByBatch {
 public:
  // The table of a tier with that attention. One at a time.
  static const KernelTable& Over(const KernelTable& tier) {
    tier_ = &tier;
    wrong_ = tier;
    wrong_.paged_attention = Attend;
    return wrong_;
  }
  static void SetSequences(size_t count) { sequences_ = count; }

 private:
  static void Attend(const PagedAttentionArgs& args, int begin, int end) {
    for (int i = begin; i < end; ++i) {
      const AttentionItem& item = args.items[i];
      const int chunks = item.chunk_end - item.chunk_begin;
      if (item.partial != -1 || chunks < 2 || sequences_ < 2) {
        tier_->paged_attention(args, i, i + 1);
        continue;
      }
      const int queries = item.rows * item.heads;
      const int floats = AttentionPartialFloats(args.kv.head_dim);
      std::vector<float> partials(static_cast<size_t>(2 * chunks * queries * floats));
      std::vector<AttentionItem> parts(static_cast<size_t>(chunks), item);
      // Chunk c goes where merging looks for chunk `chunks - 1 - c`.
      for (int c = 0; c < chunks; ++c) {
        AttentionItem& part = parts[static_cast<size_t>(c)];
        part.chunk_begin = c;
        part.chunk_end = c + 1;
        part.partial = (2 * chunks - 1 - 2 * c) * queries;
      }
      PagedAttentionArgs split = args;
      split.items = parts.data();
      split.partials = partials.data();
      tier_->paged_attention(split, 0, chunks);
      AttentionItem merged = item;
      merged.partial = chunks * queries;
      split.items = &merged;
      tier_->merge_attention(split, 0, 1);
    }
  }

  static inline const KernelTable* tier_ = nullptr;
  static inline KernelTable wrong_;
  static inline size_t sequences_ = 0;  // set before a step's threads begin
};

// Which of the work that must not matter has been seen, by one kernel configuration.
struct Counters {
  std::set<int32_t> widths;  // rows of steps that only decode
  std::set<int32_t> chunks;  // configured ones that a prompt filled without ending
  int32_t deepest = 0;       // position that a token was generated after
  uint64_t preemptions = 0;
  uint64_t prefix_hits = 0;
  uint64_t evictions = 0;
  uint64_t drafted = 0;
  uint64_t accepted = 0;
};
using CountersByConfiguration = std::map<std::string, Counters>;

// A model on two threads for mixes, on one for requests alone.
struct Machine {
  Machine(const std::string& kernels, KvFormat format, const KernelTable* table = nullptr) {
    testing::TinyModelOptions tiny;
    tiny.context_length = 2048;
    tiny.type = GgmlType::kQ4_1;
    tiny.head_type = GgmlType::kQ8_0;  // certified
    const std::string bytes = testing::TinyModelBytes(tiny);
    const auto file =
        *GgufFile::Parse(std::as_bytes(std::span(bytes.data(), bytes.size())), "tiny");
    ModelOptions options;
    options.kernels = kernels;
    options.kv_format = format;
    options.max_rows = 32 + 512 + 32;
    options.max_logit_rows = 64;
    options.table = table;
    model = *Model::Load(*file, options, &two);
    options.table = nullptr;
    alone = *Model::Load(*file, options, &one);
    tokenizer = *Tokenizer::Create(*file);
  }
  ThreadPool one{1};
  ThreadPool two{2};
  std::unique_ptr<Model> model;
  std::unique_ptr<Model> alone;
  std::unique_ptr<Tokenizer> tokenizer;
};

SchedulerOptions OptionsOf(const Machine& machine, int32_t running, int32_t chunk) {
  SchedulerOptions options;
  options.vocabulary = machine.model->config().vocabulary_size;
  options.context_length = kContext;
  options.max_running = running;
  options.max_queued = 128;
  options.prefill_chunk = chunk;
  options.seed = [] { return uint64_t{1}; };
  return options;
}

void Deliver(Scheduler& scheduler) {
  std::vector<Delivery> deliveries;
  scheduler.TakeDeliveries(deliveries);
  for (Delivery& delivery : deliveries) {
    if (delivery.chunk.has_value()) delivery.sink->OnChunk(*std::move(delivery.chunk));
    if (delivery.end.has_value()) {
      delivery.sink->OnFinished(*std::move(delivery.end), std::move(delivery.completion));
    }
  }
}

void Count(const StepPlan& plan, int32_t chunk, Counters& counters) {
  const auto wants_logits = [&plan](const StepSequence& sequence) {
    const auto first =
        std::lower_bound(plan.logit_rows.begin(), plan.logit_rows.end(), sequence.first_row);
    return first != plan.logit_rows.end() && *first < sequence.first_row + sequence.rows;
  };
  bool decodes = true;
  for (const StepSequence& sequence : plan.sequences) {
    const bool ends = wants_logits(sequence);
    if (!ends && sequence.rows == chunk) counters.chunks.insert(chunk);
    if (!ends || sequence.rows > 1) decodes = false;
    if (ends) {
      counters.deepest = std::max(counters.deepest, sequence.first_position + sequence.rows);
    }
  }
  if (decodes) counters.widths.insert(plan.Rows());
}

// One step; false when there is nothing to do.
bool Step(Scheduler& scheduler, Model& model, KvCache& cache, int32_t chunk, Counters* counters) {
  const StepPlan* plan = scheduler.Plan(0);
  if (plan == nullptr) {
    Deliver(scheduler);
    return false;
  }
  if (counters != nullptr) Count(*plan, chunk, *counters);
  SplitByBatch::SetSequences(plan->sequences.size());
  const absl::Status status = model.Forward(*plan, cache);
  EXPECT_TRUE(status.ok()) << status;
  if (status.ok()) scheduler.Sample(model);
  scheduler.Commit(status, 0);
  scheduler.Draft();
  EXPECT_LE(cache.used_bytes(), cache.budget_bytes());
  const EngineStats stats = scheduler.Stats();
  EXPECT_EQ(stats.kv_pages_used + stats.kv_pages_cached + stats.kv_pages_free, stats.kv_pages);
  EXPECT_EQ(stats.kv_pages_used > 0, stats.kv_bytes_used > 0);
  // What is free can be written.
  EXPECT_LE(stats.kv_pages_free * cache.wide().block_bytes(), cache.free_bytes());
  EXPECT_LE(cache.wide().resident_bytes() + cache.narrow().resident_bytes(), cache.budget_bytes());
  Deliver(scheduler);
  return true;
}

struct Asked {
  GenerationRequest request;
  std::shared_ptr<RecordingSink> sink;
  bool cancelled = false;
};

std::shared_ptr<RecordingSink> Submit(Scheduler& scheduler, const GenerationRequest& request,
                                      RequestHandle* handle = nullptr) {
  auto sink = std::make_shared<RecordingSink>();
  auto sequence = scheduler.Prepare(request, sink);
  EXPECT_TRUE(sequence.ok()) << sequence.status();
  const auto submitted = scheduler.Submit(*std::move(sequence), 0);
  EXPECT_TRUE(submitted.ok()) << submitted.status();
  if (handle != nullptr) *handle = *submitted;
  return sink;
}

std::vector<TokenInfo> AnswerAlone(Machine& machine, const GenerationRequest& request) {
  auto cache = *KvCache::Create(machine.alone->kv_shape(), 64 << 20);
  SchedulerOptions options = OptionsOf(machine, 1, 512);
  options.prefix_cache = false;
  Scheduler scheduler(options, cache.get(), machine.tokenizer.get());
  const auto sink = Submit(scheduler, request);
  while (Step(scheduler, *machine.alone, *cache, 512, nullptr)) {
  }
  EXPECT_TRUE(sink->status().ok()) << sink->status();
  return sink->infos();
}

class Mix {
 public:
  Mix(Machine& machine, uint64_t seed) : machine_(machine), random_(seed) {}

  // How many answers differ from those alone.
  int Differences(CountersByConfiguration& by_configuration) {
    Model& model = *machine_.model;
    Counters& counters = by_configuration[model.kernel_configuration()];
    const int32_t running = kWidths[Below(6)];
    // Everybody at once and for long, so that all places decode together.
    const bool crowd = Below(3) == 0;
    const int32_t chunk = crowd && running == 32 ? 512 : kChunks[Below(4)];
    auto cache = *KvCache::Create(model.kv_shape(), Budget(model.kv_shape(), crowd));
    SchedulerOptions options = OptionsOf(machine_, running, chunk);
    options.context_length =
        static_cast<int32_t>(std::min<int64_t>(kContext, cache->LongestSequence()));
    // Time stands still: drafts cost nothing and are verified whenever there are any.
    const FakeClock clock;
    Speculator speculator(std::make_unique<NgramDrafter>(), nullptr, &clock);
    if (Below(2) == 0) options.speculation = Speculation::kNgram;
    Scheduler scheduler(options, cache.get(), machine_.tokenizer.get(), &speculator);

    std::vector<Asked> asked;
    const int wanted = running + Below(running == 32 ? 6 : 8);
    // Few tokens a step: few long prompts.
    int long_ones = chunk == 1 || crowd ? 0 : 1 + Below(2);
    bool busy = true;
    while (busy || static_cast<int>(asked.size()) < wanted) {
      const int arrivals = crowd ? wanted : Below(3) == 0 || !busy ? 1 + Below(running) : 0;
      for (int i = 0; i < arrivals && static_cast<int>(asked.size()) < wanted; ++i) {
        const bool deep = long_ones > 0 && Below(4) == 0;
        if (deep) --long_ones;
        Asked next{Request(asked, deep, options.context_length), nullptr, false};
        if (crowd) next.request.sampling.max_tokens = 40 + Below(10);
        RequestHandle handle = 0;
        next.sink = Submit(scheduler, next.request, &handle);
        if (Below(12) == 0) {
          scheduler.Cancel(handle);
          next.cancelled = true;
        }
        asked.push_back(std::move(next));
      }
      busy = Step(scheduler, model, *cache, chunk, &counters) || !scheduler.Idle();
    }
    const EngineStats stats = scheduler.Stats();
    EXPECT_EQ(stats.kv_bytes_used, 0);
    EXPECT_EQ(stats.running + stats.queued, 0);
    counters.preemptions += stats.preemptions;
    counters.prefix_hits += stats.prefix_hits;
    counters.evictions += stats.prefix_evictions;
    counters.drafted += stats.drafted_tokens;
    counters.accepted += stats.accepted_tokens;

    int different = 0;
    for (const Asked& one : asked) {
      if (one.cancelled) continue;
      EXPECT_TRUE(one.sink->status().ok()) << one.sink->status();
      const bool logprobs = one.request.sampling.logprobs;
      different += BitsOf(one.sink->infos(), logprobs) !=
                           BitsOf(AnswerAlone(machine_, one.request), logprobs)
                       ? 1
                       : 0;
    }
    return different;
  }

 private:
  int Below(int bound) { return static_cast<int>(random_() % static_cast<uint64_t>(bound)); }

  int64_t Budget(const KvShape& shape, bool ample) {
    const int64_t page = static_cast<int64_t>(shape.WideBytes());
    return page * (ample || Below(8) == 0 ? 400 : 20 + Below(8));
  }

  void Extend(GenerationRequest& request, int32_t count, TokenRole role, uint64_t text) {
    std::mt19937_64 words(text);
    for (int32_t i = 0; i < count; ++i) {
      request.tokens.push_back(static_cast<TokenId>(words() % 256));
      request.roles.push_back(role);
    }
  }

  // A common beginning, the turns of an earlier request, or the same prompt once more; then
  // something of its own.
  GenerationRequest Request(const std::vector<Asked>& asked, bool deep, int32_t context) {
    GenerationRequest request;
    const int kind = Below(4);
    const Asked* earlier = nullptr;
    if (!asked.empty()) {
      earlier = &asked[static_cast<size_t>(Below(static_cast<int>(asked.size())))];
    }
    if (kind == 0 && earlier != nullptr) {
      request.tokens = earlier->request.tokens;
      request.roles = earlier->request.roles;
      for (const TokenId token : earlier->sink->tokens()) {
        request.tokens.push_back(token);
        request.roles.push_back(TokenRole::kGenerated);
      }
      Extend(request, 1 + Below(40), TokenRole::kPrompt, random_());
    } else if (kind == 1 && earlier != nullptr) {
      request.tokens = earlier->request.tokens;
      request.roles = earlier->request.roles;
    } else {
      Extend(request, 40 * Below(5), TokenRole::kPrompt, static_cast<uint64_t>(Below(2)));
      Extend(request, 1 + Below(90), TokenRole::kPrompt, random_());
    }
    if (deep) Extend(request, 1000, TokenRole::kPrompt, random_());
    const size_t most = static_cast<size_t>(context - 60);
    if (request.tokens.size() > most) {
      request.tokens.resize(most);
      request.roles.resize(most);
    }
    request.tenant = Below(3) == 0 ? "a" : "b";
    request.priority = Below(5) == 0 ? 1 : 0;
    request.sampling.max_tokens = 1 + Below(50);
    request.sampling.ignore_eos = true;
    request.sampling.temperature = Below(2) == 0 ? 0.0f : 0.8f;
    request.sampling.seed = random_();
    request.sampling.logprobs = Below(4) != 0;
    request.sampling.top_logprobs = request.sampling.logprobs ? 20 : 0;
    return request;
  }

  Machine& machine_;
  std::mt19937_64 random_;
};

std::vector<std::string> Tiers() {
  std::vector<std::string> tiers;
  for (const KernelTable* table : SupportedKernels()) {
    if (std::string(table->name) != "reference") tiers.push_back(table->name);
  }
  if (tiers.empty()) tiers.push_back("reference");
  return tiers;
}

TEST(Mixes, EveryAnswerHasTheBitsThatItHasAlone) {
  const int wanted = testing::kSanitized ? 24 : Trials(200, 5);
  std::vector<std::unique_ptr<Machine>> machines;
  std::set<std::string> configurations;
  for (const std::string& tier : Tiers()) {
    for (const auto& known : kKvFormats) {
      machines.push_back(std::make_unique<Machine>(tier, known.format));
      configurations.insert(machines.back()->model->kernel_configuration());
    }
  }
  CountersByConfiguration seen;
  for (int i = 0; i < wanted && !HasFailure(); ++i) {
    SCOPED_TRACE(::testing::Message() << "mix " << i);
    Machine& machine = *machines[static_cast<size_t>(i) % machines.size()];
    Mix mix(machine, static_cast<uint64_t>(i) + 1);
    EXPECT_EQ(mix.Differences(seen), 0) << machine.model->kernel_configuration();
  }
  EXPECT_EQ(seen.size(), configurations.size());
  Counters all;
  for (const auto& [name, counters] : seen) {
    SCOPED_TRACE(name);
    if (!testing::kSanitized) {
      EXPECT_GT(counters.preemptions, 0u);
      EXPECT_GT(counters.prefix_hits, 0u);
      EXPECT_GT(counters.evictions, 0u);
      EXPECT_GT(counters.deepest, 1024);
      EXPECT_GT(counters.accepted, 0u);
      EXPECT_GT(counters.drafted, counters.accepted);
    }
    all.widths.insert(counters.widths.begin(), counters.widths.end());
    all.chunks.insert(counters.chunks.begin(), counters.chunks.end());
    std::printf(
        "%s: %zu widths, %zu chunks, deepest %d, %llu preemptions, %llu tokens from the "
        "prefix cache, %llu evictions, %llu of %llu drafts\n",
        name.c_str(), counters.widths.size(), counters.chunks.size(), counters.deepest,
        static_cast<unsigned long long>(counters.preemptions),
        static_cast<unsigned long long>(counters.prefix_hits),
        static_cast<unsigned long long>(counters.evictions),
        static_cast<unsigned long long>(counters.accepted),
        static_cast<unsigned long long>(counters.drafted));
  }
  for (const int32_t chunk : kChunks) EXPECT_TRUE(all.chunks.contains(chunk)) << chunk;
  for (const int32_t width : kWidths) {
    EXPECT_TRUE(testing::kSanitized || all.widths.contains(width)) << width;
  }
  std::printf("%d mixes on %s\n", wanted, absl::StrJoin(Tiers(), ", ").c_str());
}

TEST(Mixes, ASplitThatDependsOnTheBatchIsSeen) {
  const KernelTable& tier = **SelectKernels(Tiers().front());
  Machine machine(Tiers().front(), KvFormat::kF16, &SplitByBatch::Over(tier));
  CountersByConfiguration seen;
  int different = 0;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    different += Mix(machine, seed).Differences(seen);
  }
  EXPECT_GT(different, 0);
}

}  // namespace
}  // namespace cogumi
