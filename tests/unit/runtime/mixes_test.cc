// Random mixes of requests on a tiny real model: each answer has the bits that it has alone, in any
// batch and chunk, after preemption, with beginnings from the prefix cache, with and without
// drafts, beside answers of other adapters, whether all logits are wanted or the largest of few
// rows, in every KV format and on every instruction set. Counters show that the mixes contained
// all of it: what is the scheduler's in every configuration, what kernels see in every tier.
#include <algorithm>
#include <bit>
#include <cstdio>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/core/clock.h"
#include "engine/decode/ngram_drafter.h"
#include "engine/decode/speculator.h"
#include "engine/io/gguf.h"
#include "engine/kernels/registry.h"
#include "engine/model/adapter_table.h"
#include "engine/model/certified_head.h"
#include "engine/runtime/scheduler.h"
#include "gtest/gtest.h"
#include "tests/support/adapter_files.h"
#include "tests/support/long_tests.h"
#include "tests/support/sanitizers.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/runtime/fake_parts.h"

namespace cogumi {
namespace {

constexpr int32_t kContext = 1536;
constexpr int32_t kChunks[] = {1, 17, 64, 512};
constexpr int32_t kWidths[] = {1, 2, 5, 8, 9, 32};
constexpr int32_t kWidest = 32;
constexpr int32_t kLargestChunk = 512;
constexpr const char* kAdapters[] = {"first", "second"};  // digests

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

// Which of the work that must not matter the kernels have seen.
struct Coverage {
  std::set<int32_t> widths;        // rows of steps that only decode
  std::set<int32_t> chunks;        // configured ones that a prompt filled without ending
  std::set<int32_t> certified;     // rows of logits of steps with the certified head
  int32_t adapters_preempted = 0;  // requests with an adapter

  void Add(const Coverage& other) {
    widths.insert(other.widths.begin(), other.widths.end());
    chunks.insert(other.chunks.begin(), other.chunks.end());
    certified.insert(other.certified.begin(), other.certified.end());
    adapters_preempted += other.adapters_preempted;
  }
};

// And the rest of it, by one kernel configuration.
struct Counters {
  Coverage covered;
  int32_t deepest = 0;  // position that a token was generated after
  uint64_t preemptions = 0;
  uint64_t prefix_hits = 0;
  uint64_t evictions = 0;
  uint64_t drafted = 0;
  uint64_t accepted = 0;
  uint64_t mixed_steps = 0;           // of both adapters and none
  uint64_t adapters_prefix_hits = 0;  // of requests with an adapter
};
using CountersByConfiguration = std::map<std::string, Counters>;

// Small ones; the second leaves most linears as they are.
AdapterFiles FilesOf(size_t adapter, const testing::TinyModelOptions& tiny) {
  testing::AdapterFilesOptions options;
  options.shape = testing::ShapeOf(tiny);
  options.seed = adapter + 1;
  if (adapter == 1) {
    options.rank = 9;
    options.targets = {"v_proj", "down_proj"};
  }
  return testing::RandomAdapter(options);
}

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
    options.max_rows = kWidest + kLargestChunk + 32;
    options.max_logit_rows = kWidest + 32;
    options.adapter_bytes = 64 << 20;
    options.table = table;
    model = *Model::Load(*file, options, &two);
    options.table = nullptr;
    alone = *Model::Load(*file, options, &one);
    tokenizer = *Tokenizer::Create(*file);
    // The two have them under different indices.
    constexpr size_t kLast = std::size(kAdapters) - 1;
    for (size_t i = 0; i <= kLast; ++i) {
      LoadAdapter(*model, i, tiny);
      LoadAdapter(*alone, kLast - i, tiny);
    }
  }
  static void LoadAdapter(Model& into, size_t adapter, const testing::TinyModelOptions& tiny) {
    const auto loaded = into.adapters()->Load(kAdapters[adapter], FilesOf(adapter, tiny));
    EXPECT_TRUE(loaded.ok()) << loaded.status();
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
  std::set<int32_t> adapters;
  for (const StepSequence& sequence : plan.sequences) {
    const bool ends = wants_logits(sequence);
    if (!ends && sequence.rows == chunk) counters.covered.chunks.insert(chunk);
    if (!ends || sequence.rows > 1) decodes = false;
    if (ends) {
      counters.deepest = std::max(counters.deepest, sequence.first_position + sequence.rows);
    }
    adapters.insert(sequence.adapter);
  }
  if (decodes) counters.covered.widths.insert(plan.Rows());
  if (adapters.contains(-1) && adapters.size() > 2) ++counters.mixed_steps;
  // As the model decides.
  const auto wanted = static_cast<int32_t>(plan.logit_rows.size());
  const auto top = std::count(plan.logit_needs.begin(), plan.logit_needs.end(), LogitNeed::kTop);
  if (wanted > 0 && wanted <= CertifiedHead::kMostRows && top == wanted) {
    counters.covered.certified.insert(wanted);
  }
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
  const Sequence* sequence = nullptr;  // the scheduler's, until the sink is told of the end
  bool preempted = false;
  bool cancelled = false;
};

// With the model's own adapter of that digest.
RequestHandle Submit(Scheduler& scheduler, Model& model, Asked& asked) {
  asked.sink = std::make_shared<RecordingSink>();
  auto sequence = scheduler.Prepare(asked.request, asked.sink);
  EXPECT_TRUE(sequence.ok()) << sequence.status();
  if (!asked.request.adapter.empty()) {
    (*sequence)->adapter = model.adapters()->Find(asked.request.adapter);
    EXPECT_NE((*sequence)->adapter, nullptr);
  }
  asked.sequence = sequence->get();
  const auto submitted = scheduler.Submit(*std::move(sequence), 0);
  EXPECT_TRUE(submitted.ok()) << submitted.status();
  return *submitted;
}

std::vector<TokenInfo> AnswerAlone(Machine& machine, const GenerationRequest& request) {
  auto cache = *KvCache::Create(machine.alone->kv_shape(), 64 << 20);
  SchedulerOptions options = OptionsOf(machine, 1, kLargestChunk);
  options.prefix_cache = false;
  Scheduler scheduler(options, cache.get(), machine.tokenizer.get());
  Asked asked;
  asked.request = request;
  Submit(scheduler, *machine.alone, asked);
  while (Step(scheduler, *machine.alone, *cache, kLargestChunk, nullptr)) {
  }
  EXPECT_TRUE(asked.sink->status().ok()) << asked.sink->status();
  return asked.sink->infos();
}

// What every tier must see is dealt out by a mix's number there: in 24 mixes each width comes with
// each chunk.
struct Setting {
  explicit Setting(int number) {
    const int turn = number / 6;  // mixes of that width before
    running = kWidths[number % 6];
    chunk = kChunks[(number + turn / 2) % 4];
    crowd = (2 * number + turn) % 3 == 2;
    drafts = turn % 2 != 0;
    if (running != kWidest) return;
    // So many are sure to decode together only in a crowd whose prompts end soon, without drafts.
    crowd = turn % 2 == 0;
    if (crowd) chunk = kLargestChunk;
    drafts = (turn / 2 + (crowd ? 0 : turn / 8)) % 2 != 0;
  }

  int32_t running = 0;  // places
  int32_t chunk = 0;
  bool crowd = false;  // everybody at once and for long, so that all places decode together
  bool drafts = false;
};

class Mix {
 public:
  // `number`: which of its tier's mixes it is.
  Mix(Machine& machine, uint64_t seed, int number)
      : machine_(machine), random_(seed), setting_(number) {}

  // How many answers differ from those alone.
  int Differences(CountersByConfiguration& by_configuration) {
    Model& model = *machine_.model;
    Counters& counters = by_configuration[model.kernel_configuration()];
    const auto [running, chunk, crowd, drafts] = setting_;
    only_top_ = Below(3) == 0;
    auto cache = *KvCache::Create(model.kv_shape(), Budget(model.kv_shape(), crowd));
    SchedulerOptions options = OptionsOf(machine_, running, chunk);
    options.context_length =
        static_cast<int32_t>(std::min<int64_t>(kContext, cache->LongestSequence()));
    // Time stands still: drafts cost nothing and are verified whenever there are any.
    const FakeClock clock;
    Speculator speculator(std::make_unique<NgramDrafter>(), nullptr, &clock);
    if (drafts) options.speculation = Speculation::kNgram;
    Scheduler scheduler(options, cache.get(), machine_.tokenizer.get(), &speculator);

    std::vector<Asked> asked;
    const int wanted = running + Below(running == kWidest ? 6 : 8);
    // A crowd fills its places whoever leaves.
    int leavers = crowd ? wanted - running : wanted;
    // Few tokens a step: few long prompts.
    int long_ones = chunk == 1 || crowd ? 0 : 1 + Below(2);
    bool busy = true;
    while (busy || static_cast<int>(asked.size()) < wanted) {
      // The largest chunk is filled by a long prompt that has it for itself.
      const bool opens = asked.empty() && chunk == kLargestChunk && !crowd;
      int arrivals = 0;
      if (crowd) {
        arrivals = wanted;
      } else if (opens) {
        arrivals = 1;
      } else if (!busy || Below(3) == 0) {
        arrivals = 1 + Below(running);
      }
      for (int i = 0; i < arrivals && static_cast<int>(asked.size()) < wanted; ++i) {
        const bool last = static_cast<int>(asked.size()) + 1 == wanted;
        const bool deep = opens || (long_ones > 0 && (last || Below(4) == 0));
        if (deep && !opens) --long_ones;
        Asked next;
        next.request = Request(asked, deep, options.context_length);
        if (crowd) next.request.sampling.max_tokens = 40 + Below(10);
        const RequestHandle handle = Submit(scheduler, model, next);
        if (!deep && leavers > 0 && Below(12) == 0) {
          scheduler.Cancel(handle);
          next.cancelled = true;
          --leavers;
        }
        asked.push_back(std::move(next));
      }
      busy = Step(scheduler, model, *cache, chunk, &counters) || !scheduler.Idle();
      for (Asked& one : asked) {
        if (one.sink->ends() == 0 && one.sequence->preempted) one.preempted = true;
      }
    }
    const EngineStats stats = scheduler.Stats();
    EXPECT_EQ(stats.kv_bytes_used, 0);
    EXPECT_EQ(stats.running + stats.queued, 0);
    counters.preemptions += stats.preemptions;
    counters.prefix_hits += stats.prefix_hits;
    counters.evictions += stats.prefix_evictions;
    counters.drafted += stats.drafted_tokens;
    counters.accepted += stats.accepted_tokens;
    for (const Asked& one : asked) {
      if (one.request.adapter.empty()) continue;
      if (one.preempted) ++counters.covered.adapters_preempted;
      counters.adapters_prefix_hits +=
          static_cast<uint64_t>(one.sink->completion().usage.cached_tokens);
    }

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
  // something of its own. Who goes on where another was has its adapter mostly.
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
    request.sampling.temperature = only_top_ || Below(2) == 0 ? 0.0f : 0.8f;
    request.sampling.seed = random_();
    request.sampling.logprobs = !only_top_ && Below(4) != 0;
    request.sampling.top_logprobs = request.sampling.logprobs ? 20 : 0;
    if (kind < 2 && earlier != nullptr && Below(4) != 0) {
      request.adapter = earlier->request.adapter;
    } else if (Below(2) == 0) {
      request.adapter = kAdapters[Below(2)];
    }
    return request;
  }

  Machine& machine_;
  std::mt19937_64 random_;
  const Setting setting_;
  bool only_top_ = false;  // all rows are greedy and without log-probabilities
};

std::vector<std::string> Tiers() {
  std::vector<std::string> tiers;
  for (const KernelTable* table : SupportedKernels()) {
    if (std::string(table->name) != "reference") tiers.push_back(table->name);
  }
  if (tiers.empty()) tiers.push_back("reference");
  return tiers;
}

void ExpectAllOf(const Counters& counters) {
  EXPECT_GT(counters.preemptions, 0u);
  EXPECT_GT(counters.prefix_hits, 0u);
  EXPECT_GT(counters.evictions, 0u);
  EXPECT_GT(counters.deepest, 1024);
  EXPECT_GT(counters.accepted, 0u);
  EXPECT_GT(counters.drafted, counters.accepted);
  EXPECT_GT(counters.mixed_steps, 0u);
  EXPECT_GT(counters.adapters_prefix_hits, 0u);
}

void ExpectChunks(const Coverage& covered) {
  for (const int32_t chunk : kChunks) EXPECT_TRUE(covered.chunks.contains(chunk)) << chunk;
}

void ExpectAllOf(const Coverage& covered) {
  ExpectChunks(covered);
  for (const int32_t width : kWidths) EXPECT_TRUE(covered.widths.contains(width)) << width;
  for (int32_t rows = 1; rows <= CertifiedHead::kMostRows; ++rows) {
    EXPECT_TRUE(covered.certified.contains(rows)) << rows;
  }
  EXPECT_GT(covered.adapters_preempted, 0);
}

std::string Words(const Counters& counters) {
  const Coverage& covered = counters.covered;
  return absl::StrCat(
      covered.widths.size(), " widths, ", covered.chunks.size(), " chunks, certified heads of ",
      absl::StrJoin(covered.certified, " "), " rows, deepest ", counters.deepest, ", ",
      counters.preemptions, " preemptions, ", counters.prefix_hits,
      " tokens from the prefix cache, ", counters.evictions, " evictions, ", counters.accepted,
      " of ", counters.drafted, " drafts; adapters: ", counters.mixed_steps,
      " steps with two and none, ", covered.adapters_preempted, " requests preempted, ",
      counters.adapters_prefix_hits, " tokens from the prefix cache");
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
  const int count = static_cast<int>(machines.size());
  const int formats = static_cast<int>(std::size(kKvFormats));
  CountersByConfiguration seen;
  for (int i = 0; i < wanted && !HasFailure(); ++i) {
    SCOPED_TRACE(::testing::Message() << "mix " << i);
    Machine& machine = *machines[static_cast<size_t>(i % count)];
    Mix mix(machine, static_cast<uint64_t>(i) + 1, i / count * formats + i % formats);
    EXPECT_EQ(mix.Differences(seen), 0) << machine.model->kernel_configuration();
  }
  EXPECT_EQ(seen.size(), configurations.size());
  std::map<std::string, Coverage> tiers;
  for (const auto& [name, counters] : seen) {
    SCOPED_TRACE(name);
    if (!testing::kSanitized) ExpectAllOf(counters);
    tiers[name.substr(0, name.find('/'))].Add(counters.covered);
    std::printf("%s: %s\n", name.c_str(), Words(counters).c_str());
  }
  Coverage all;
  for (const auto& [tier, covered] : tiers) {
    SCOPED_TRACE(tier);
    if (!testing::kSanitized) ExpectAllOf(covered);
    all.Add(covered);
  }
  ExpectChunks(all);
  std::printf("%d mixes on %s\n", wanted, absl::StrJoin(Tiers(), ", ").c_str());
}

TEST(Mixes, ASplitThatDependsOnTheBatchIsSeen) {
  const KernelTable& tier = **SelectKernels(Tiers().front());
  Machine machine(Tiers().front(), KvFormat::kF16, &SplitByBatch::Over(tier));
  CountersByConfiguration seen;
  int different = 0;
  for (int i = 0; i < 12; ++i) {
    different += Mix(machine, static_cast<uint64_t>(i) + 1, i).Differences(seen);
  }
  EXPECT_GT(different, 0);
}

}  // namespace
}  // namespace cogumi
