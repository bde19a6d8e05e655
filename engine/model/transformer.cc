// The llama forward pass, written down plainly. See engine/kernels/ops.h for the operations.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/core/clock.h"
#include "engine/core/status_macros.h"
#include "engine/core/team_sizer.h"
#include "engine/io/gguf.h"
#include "engine/kernels/registry.h"
#include "engine/model/activation_buffer.h"
#include "engine/model/adapter_table.h"
#include "engine/model/certified_head.h"
#include "engine/model/lora_ahead.h"
#include "engine/model/model.h"
#include "engine/model/weights.h"

namespace cogumi {
namespace {

// With up to this many rows every thread normalises and quantises them for itself: cheaper than a
// barrier. The result is the same either way.
constexpr int kPrivateRows = 8;
static_assert(CertifiedHead::kMostRows <= kPrivateRows);
// Queries of one attention item: they share each read of the cache, and prompts still balance.
constexpr int kAttentionQueries = 48;
// Attention is divided into pieces of at most this share of a thread's work, if chunks allow it...
constexpr double kAttentionPieces = 8;
// ...and their partial results stay below this many floats.
constexpr size_t kMaxPartialFloats = size_t{1} << 20;

// What a matrix product needs of its input.
struct InputForms {
  bool quantised = false;
  bool f32 = false;
  void Add(const PackedMatrix& w, ActivationFormat format) {
    const bool codes = w.format.kind == WeightKind::kQuantised && format != ActivationFormat::kF32;
    (codes ? quantised : f32) = true;
  }
};

// Exact arithmetic takes adapters as they come; elsewhere half the bytes cost less than the
// activations' own rounding (engine/kernels/README.md, "Adapters").
LoraFormat FormatOfAdapters(ActivationFormat activations) {
  switch (activations) {
    case ActivationFormat::kMixed:
    case ActivationFormat::kFast:
      return LoraFormat::kInt8;
    case ActivationFormat::kExact:
    case ActivationFormat::kF32:
      break;
  }
  return LoraFormat::kF16;
}

// Of a step's rows: how many slots are wide, and which row stands in each (null: the same).
struct Slots {
  int wide = 0;
  const int32_t* row_of = nullptr;
};

class Transformer final : public Model {
 public:
  Transformer(ModelConfig config, const ModelOptions& options, const KernelTable* kernels,
              std::unique_ptr<Weights> weights, ThreadPool* pool)
      : config_(std::move(config)),
        options_(options),
        kernels_(*kernels),
        weights_(std::move(weights)),
        pool_(*pool),
        team_(pool->size()),
        adapters_(config_, FormatOfAdapters(options.activations), options.adapter_bytes) {
    kernel_configuration_ = absl::StrCat(kernels_.name, "/", NameOf(options.activations), "/kv-",
                                         NameOf(options.kv_format));
    const size_t rows = static_cast<size_t>(options.max_rows);
    const size_t width = static_cast<size_t>(config_.embedding_length);
    const size_t q_width = static_cast<size_t>(config_.heads * config_.head_dim);
    x_.resize(rows * width);
    q_.resize(rows * q_width);
    attention_.resize(rows * q_width);
    if (kv_shape().Layout(0).NeedsStore()) {
      kv_rows_.resize(rows * static_cast<size_t>(2 * config_.kv_heads * config_.head_dim));
    }
    context_.resize(rows);
    lora_of_row_.resize(rows);
    lora_of_slot_.resize(rows);
    cosine_.resize(rows * static_cast<size_t>(config_.rope_dim / 2));
    sine_.resize(cosine_.size());
    rope_frequencies_.resize(static_cast<size_t>(config_.rope_dim / 2));
    for (size_t i = 0; i < rope_frequencies_.size(); ++i) {
      rope_frequencies_[i] =
          std::pow(static_cast<double>(config_.rope_base),
                   -2.0 * static_cast<double>(i) / static_cast<double>(config_.rope_dim)) /
          static_cast<double>(weights_->rope_factors[i]);
    }
    logits_.resize(static_cast<size_t>(options.max_logit_rows) *
                   static_cast<size_t>(config_.vocabulary_size));
    if (weights_->head.format.split) {
      certified_ = std::make_unique<CertifiedHead>(kernels_, weights_->head);
    }
    summaries_.resize(static_cast<size_t>(options.max_logit_rows));
    const int chunks = (config_.vocabulary_size + kSummaryChunk - 1) / kSummaryChunk;
    partials_.resize(static_cast<size_t>(options.max_logit_rows) * static_cast<size_t>(chunks));

    const int inputs = std::max({config_.embedding_length, config_.heads * config_.head_dim});
    shared_.Allocate(inputs, options.max_rows);
    ffn_.Allocate(config_.feed_forward_length, options.max_rows);
    shared_views_.assign(static_cast<size_t>(pool_.size()), shared_.view);
    private_.resize(static_cast<size_t>(pool_.size()));
    // A block more: CertifiedHead::Gather.
    for (ActivationBuffer& buffer : private_) {
      buffer.Allocate(inputs + kHeavyInputs, kPrivateRows);
    }
  }

  const ModelConfig& config() const override { return config_; }
  const std::string& kernel_configuration() const override { return kernel_configuration_; }
  const KernelTable& kernels() const override { return kernels_; }
  KvShape kv_shape() const override {
    return {config_.layers, config_.kv_heads, config_.head_dim, options_.kv_format};
  }
  const float* Logits(int32_t index) const override {
    return logits_.data() +
           static_cast<size_t>(index) * static_cast<size_t>(config_.vocabulary_size);
  }
  const LogitSummary& Summary(int32_t index) const override {
    return summaries_[static_cast<size_t>(index)];
  }

  AdapterTable* adapters() override { return &adapters_; }

  absl::Status Forward(const StepPlan& plan, KvCache& cache) override {
    RETURN_IF_ERROR(Check(plan, cache));
    PlaceRows(plan);
    Prepare(plan, cache);
    PrepareAdapters(plan);
    RunTeam(plan, cache.shape());
    MergeSummaries(static_cast<int>(plan.logit_rows.size()));
    return absl::OkStatus();
  }

 private:
  absl::Status Check(const StepPlan& plan, const KvCache& cache) const {
    const auto bad = [](auto&&... parts) {
      return absl::InvalidArgumentError(absl::StrCat("step plan: ", parts...));
    };
    const int rows = plan.Rows();
    if (rows < 1 || rows > options_.max_rows) {
      return bad(rows, " rows, limit [1, ", options_.max_rows, "]");
    }
    if (static_cast<int>(plan.roles.size()) != rows) return bad(plan.roles.size(), " roles");
    if (plan.logit_rows.size() > static_cast<size_t>(options_.max_logit_rows)) {
      return bad(plan.logit_rows.size(), " logit rows, limit ", options_.max_logit_rows);
    }
    if (!plan.logit_needs.empty() && plan.logit_needs.size() != plan.logit_rows.size()) {
      return bad(plan.logit_needs.size(), " needs of ", plan.logit_rows.size(), " logit rows");
    }
    int32_t previous = -1;
    for (const int32_t row : plan.logit_rows) {
      if (row <= previous || row >= rows) return bad("logit row ", row, " after ", previous);
      previous = row;
    }
    for (const TokenId token : plan.tokens) {
      if (token < 0 || token >= config_.vocabulary_size) {
        return bad("token ", token, ", vocabulary ", config_.vocabulary_size);
      }
    }
    int next = 0;
    for (const StepSequence& sequence : plan.sequences) {
      if (sequence.first_row != next || sequence.rows < 1) {
        return bad("sequence rows begin at ", sequence.first_row, ", expected ", next);
      }
      if (sequence.adapter != -1 && adapters_.At(sequence.adapter) == nullptr) {
        return bad("adapter ", sequence.adapter, " is not resident");
      }
      if (sequence.first_position < 0 ||
          sequence.first_position > config_.context_length - sequence.rows) {
        return bad("positions from ", sequence.first_position, ", context ",
                   config_.context_length);
      }
      const int32_t end = sequence.first_position + sequence.rows;
      if (sequence.pages == nullptr ||
          static_cast<int>(sequence.pages->size()) < KvCache::PagesFor(end)) {
        return bad("no pages for position ", end - 1);
      }
      RETURN_IF_ERROR(CheckPages(sequence, cache));
      next += sequence.rows;
    }
    if (next != rows) return bad("sequences cover ", next, " of ", rows, " rows");
    return absl::OkStatus();
  }

  // Whether a row's inputs have 16 bits: by role and absolute position only.
  bool Wide(TokenRole role, int32_t position) const {
    switch (options_.activations) {
      case ActivationFormat::kMixed:
        return role == TokenRole::kGenerated || position < kWidePositions;
      case ActivationFormat::kFast:
        return false;
      case ActivationFormat::kExact:
      case ActivationFormat::kF32:
        break;
    }
    return true;
  }

  // Slots of the step's rows (see Activations): wide ones first, each kind in order of the rows.
  void PlaceRows(const StepPlan& plan) {
    slots_ = {};
    row_of_.clear();
    narrow_rows_.clear();
    for (const StepSequence& s : plan.sequences) {
      for (int32_t row = s.first_row; row < s.first_row + s.rows; ++row) {
        const bool wide =
            Wide(plan.roles[static_cast<size_t>(row)], s.first_position + row - s.first_row);
        (wide ? row_of_ : narrow_rows_).push_back(row);
      }
    }
    slots_.wide = static_cast<int>(row_of_.size());
    row_of_.insert(row_of_.end(), narrow_rows_.begin(), narrow_rows_.end());
    if (!std::is_sorted(row_of_.begin(), row_of_.end())) slots_.row_of = row_of_.data();
  }

  // Per slot: its adapter; per step: the runs of slots that share one, and which inputs they need.
  void PrepareAdapters(const StepPlan& plan) {
    lora_runs_.clear();
    lora_groups_.fill(false);
    shrunk_.Reset();
    for (const StepSequence& s : plan.sequences) {
      const Adapter* adapter = s.adapter >= 0 ? adapters_.At(s.adapter) : nullptr;
      const LoraLayer* layers = adapter != nullptr ? adapter->layers() : nullptr;
      std::fill_n(lora_of_row_.begin() + s.first_row, s.rows, layers);
      for (int g = 0; g < kLoraGroups && adapter != nullptr; ++g) {
        lora_groups_[static_cast<size_t>(g)] |= adapter->Changes(static_cast<LoraGroup>(g));
      }
    }
    for (int slot = 0; slot < plan.Rows(); ++slot) {
      const size_t row = static_cast<size_t>(row_of_[static_cast<size_t>(slot)]);
      const LoraLayer* layers = lora_of_row_[row];
      lora_of_slot_[static_cast<size_t>(slot)] = layers;
      if (layers == nullptr) continue;
      LoraRun* last = lora_runs_.empty() ? nullptr : &lora_runs_.back();
      if (last != nullptr && last->layers == layers && last->first + last->count == slot) {
        ++last->count;
      } else {
        lora_runs_.push_back({slot, 1, layers});
      }
    }
    if (!lora_runs_.empty() && lora_values_.empty()) {
      lora_values_.resize(static_cast<size_t>(options_.max_rows) * kLoraValues);
    }
  }

  bool Adapts(LoraGroup group) const { return lora_groups_[static_cast<size_t>(group)]; }

  // A thread's share of the short vectors of a group's adapters, from the float32 form of their
  // input: of the ranks when there are few rows, which every thread has then, else of the rows.
  // Nothing when no slot's adapter changes the group. Who adds them waits for the others' shares.
  void Shrink(LoraSlots* lora, LoraGroup group, const Activations& in, int rows, int thread) {
    if (!Adapts(group)) return;
    LoraShrinkArgs args;
    args.lora = lora;
    args.group = group;
    args.x = in.f32;
    args.inputs = in.inputs;
    if (rows <= kPrivateRows) {
      args.part = thread;
      args.parts = team_.size();
      kernels_.lora_shrink(args, 0, rows);
    } else {
      const auto [begin, end] = pool_.Share(rows, thread);
      kernels_.lora_shrink(args, begin, end);
    }
    shrunk_.Arrive();
    lora->awaited += team_.size();
  }

  // Runs a product over panels; meanwhile, when rows are few, fetches the thread's share of the A
  // that the layer's next group of linears will read.
  template <class Product>
  void ForEachPanel(int panels, int thread, int rows, const LoraSlots& lora, int layer,
                    LoraGroup next, int inputs, const Product& product) {
    if (lora.run_count == 0 || rows > kPrivateRows || layer == config_.layers) {
      return pool_.ForEach(panels, thread, product);
    }
    LoraAhead ahead(lora, layer, next, inputs, thread, team_.size(), panels / team_.size() - 1);
    pool_.ForEach(panels, thread, [&](int begin, int end) {
      ahead.Fetch();
      product(begin, end);
    });
  }

  // Every form in which a row sees a page is there, or can be made.
  static absl::Status CheckPages(const StepSequence& sequence, const KvCache& cache) {
    const bool narrows = cache.shape().NarrowBytes() > 0;
    const int32_t last = sequence.first_position + sequence.rows - 1;
    for (int i = 0; i <= last / kKvPageTokens; ++i) {
      const KvPage& page = (*sequence.pages)[static_cast<size_t>(i)];
      const bool narrow = narrows && SeesNarrow(last, i);
      if (narrow && !cache.narrow().Valid(page.narrow)) {
        return absl::InvalidArgumentError(
            absl::StrCat("step plan: narrow block ", page.narrow, " of page ", i));
      }
      const bool wide =
          !narrows || !SeesNarrow(sequence.first_position, i) || !cache.NarrowMade(page);
      if (wide && !cache.wide().Valid(page.wide)) {
        return absl::InvalidArgumentError(
            absl::StrCat("step plan: block ", page.wide, " of page ", i));
      }
    }
    return absl::OkStatus();
  }

  // Per row: position, pages and rotation; per thread: its share of the attention.
  void Prepare(const StepPlan& plan, KvCache& cache) {
    pages_.clear();
    for (const StepSequence& s : plan.sequences) {
      for (int i = 0; i < KvCache::PagesFor(s.first_position + s.rows); ++i) {
        pages_.push_back(cache.View((*s.pages)[static_cast<size_t>(i)]));
      }
    }
    size_t base = 0;
    const size_t half = rope_frequencies_.size();
    for (const StepSequence& s : plan.sequences) {
      for (int r = 0; r < s.rows; ++r) {
        const size_t row = static_cast<size_t>(s.first_row + r);
        const int position = s.first_position + r;
        context_[row] = {pages_.data() + base, position};
        for (size_t i = 0; i < half; ++i) {
          const double angle = static_cast<double>(position) * rope_frequencies_[i];
          cosine_[row * half + i] = static_cast<float>(std::cos(angle));
          sine_[row * half + i] = static_cast<float>(std::sin(angle));
        }
      }
      base += static_cast<size_t>(KvCache::PagesFor(s.first_position + s.rows));
    }
    PlanStores(plan, cache);
    PlanAttention(plan);
  }

  // Which rows and narrow blocks are to be written, page by page.
  void PlanStores(const StepPlan& plan, KvCache& cache) {
    stores_.clear();
    const bool rows_too = cache.shape().Layout(0).NeedsStore();
    const bool narrows = cache.shape().NarrowBytes() > 0;
    if (!rows_too && !narrows) return;
    for (const StepSequence& s : plan.sequences) {
      const int end = s.first_position + s.rows;
      for (int i = 0; i < KvCache::PagesFor(end); ++i) {
        const KvPage& page = (*s.pages)[static_cast<size_t>(i)];
        StoreKvItem item;
        item.page = cache.View(page);
        const int first = std::max(s.first_position, i * kKvPageTokens);
        item.rows = rows_too ? std::max(0, std::min(end, (i + 1) * kKvPageTokens) - first) : 0;
        item.first_row = s.first_row + first - s.first_position;
        item.first_slot = first % kKvPageTokens;
        // Marked at once: another sequence that shares the block need not make it again.
        item.make_narrow = narrows && SeesNarrow(end - 1, i) && !cache.NarrowMade(page);
        if (item.make_narrow) cache.SetNarrowMade(page);
        if (item.rows > 0 || item.make_narrow) stores_.push_back(item);
      }
    }
  }

  // Divides attention into items of about equal cost. A result does not depend on the division.
  void PlanAttention(const StepPlan& plan) {
    items_.clear();
    merges_.clear();
    const int group = config_.heads / config_.kv_heads;
    const int run = std::max(1, kAttentionQueries / group);
    const auto cost_of = [](int queries, int keys) {
      return static_cast<double>(queries) * (keys + kKvPageTokens);
    };
    double total = 0;
    for (const StepSequence& s : plan.sequences) {
      total += cost_of(s.rows * config_.heads, s.first_position + s.rows / 2);
    }
    const double piece = total / (kAttentionPieces * team_.size());
    const size_t partial_floats = static_cast<size_t>(AttentionPartialFloats(config_.head_dim));
    size_t slots = 0;
    item_cost_.assign(1, 0.0);
    const auto add = [&](const AttentionItem& item, int keys) {
      items_.push_back(item);
      item_cost_.push_back(item_cost_.back() + cost_of(item.rows * item.heads, keys));
    };
    for (const StepSequence& s : plan.sequences) {
      for (int r = 0, rows = 0; r < s.rows; r += rows) {
        const int position = s.first_position + r;
        // All rows of an item lie in one page: they see the same pages narrow.
        rows = std::min({run, s.rows - r, kKvPageTokens - position % kKvPageTokens});
        const int keys = position + rows;
        const int chunks = (keys + kAttentionChunk - 1) / kAttentionChunk;
        const size_t wanted = static_cast<size_t>(rows * group * chunks);
        for (int head = 0; head < config_.heads; head += group) {
          AttentionItem item{s.first_row + r, rows, head, group, 0, chunks, -1};
          if (chunks == 1 || cost_of(rows * group, keys) <= piece ||
              (slots + wanted) * partial_floats > kMaxPartialFloats) {
            add(item, keys);
            continue;
          }
          item.partial = static_cast<int32_t>(slots);
          slots += wanted;
          merges_.push_back(item);
          for (int chunk = 0; chunk < chunks; ++chunk) {
            item.chunk_begin = chunk;
            item.chunk_end = chunk + 1;
            add(item, std::min(kAttentionChunk, keys - chunk * kAttentionChunk));
          }
        }
      }
    }
    if (partials_of_chunks_.size() < slots * partial_floats) {
      partials_of_chunks_.resize(slots * partial_floats);
    }
    share_.assign(static_cast<size_t>(team_.size()) + 1, static_cast<int>(items_.size()));
    share_[0] = 0;
    for (int t = 1; t < team_.size(); ++t) {
      const double until = item_cost_.back() * t / team_.size();
      // The boundary nearest to the thread's share.
      const auto at = std::lower_bound(item_cost_.begin(), item_cost_.end(), until);
      const bool before = at != item_cost_.begin() && until - *(at - 1) < *at - until;
      share_[static_cast<size_t>(t)] = static_cast<int>(at - item_cost_.begin()) - (before ? 1 : 0);
    }
  }

  // Nothing computed depends on how many threads there are.
  void RunTeam(const StepPlan& plan, const KvShape& kv) {
    const double start = Clock::Real()->Now();
    pool_.TakeWaited();
    pool_.Run(team_.size(), [&](int thread) { RunThread(plan, kv, thread); });
    team_.Observe(Clock::Real()->Now() - start, pool_.TakeWaited());
  }

  // Normalises (or only quantises) rows for the next product, and shrinks them for its adapters:
  // privately when there are few.
  const Activations& Normalise(const float* x, const float* weight, int inputs, int rows,
                               const Slots& slots, InputForms forms, int thread,
                               LoraSlots* lora = nullptr, LoraGroup group = LoraGroup::kQkv) {
    const bool few = rows <= kPrivateRows;
    // Each thread has its own view; the shared ones point to the same memory.
    Activations& out = few ? private_[static_cast<size_t>(thread)].view
                           : shared_views_[static_cast<size_t>(thread)];
    out.inputs = inputs;
    out.wide_slots = slots.wide;
    out.row_of = slots.row_of;
    out.want_quantised = forms.quantised;
    out.want_f32 = forms.f32 || (lora != nullptr && Adapts(group));
    NormQuantiseArgs args;
    args.x = x;
    args.stride = static_cast<size_t>(inputs);
    args.weight = weight;
    args.epsilon = config_.rms_epsilon;
    args.out = &out;
    const auto [begin, end] = few ? ThreadPool::Range{0, rows} : pool_.Share(rows, thread);
    kernels_.norm_quantise(args, begin, end);
    if (lora != nullptr) Shrink(lora, group, out, rows, thread);
    if (!few) pool_.Barrier();
    return out;
  }

  void RunThread(const StepPlan& plan, const KvShape& kv, int thread) {
    const int rows = plan.Rows();
    const int width = config_.embedding_length;
    const int q_width = config_.heads * config_.head_dim;
    const ActivationFormat format = options_.activations;
    {
      const auto [begin, end] = pool_.Share(rows, thread);
      for (int row = begin; row < end; ++row) {
        UnpackRow(weights_->embedding, plan.tokens[static_cast<size_t>(row)],
                  x_.data() + static_cast<size_t>(row) * static_cast<size_t>(width));
      }
      pool_.Barrier();
    }
    LoraSlots lora;
    lora.adapters = lora_of_slot_.data();
    lora.runs = lora_runs_.data();
    lora.run_count = static_cast<int>(lora_runs_.size());
    lora.values = lora_values_.data();
    lora.shrunk = &shrunk_;
    lora.format = adapters_.format();
    for (size_t l = 0; l < weights_->layers.size(); ++l) {
      const LayerWeights& layer = weights_->layers[l];
      lora.layer = static_cast<int>(l);
      const KvLayout layout = kv.Layout(static_cast<int>(l));

      const int qkv_panels = layer.q.Panels() + layer.k.Panels() + layer.v.Panels();
      const int first = pool_.Share(qkv_panels, thread).begin;
      if (first < layer.q.Panels()) FetchLoraPanel(lora, LlamaLinear::kQ, first);
      FetchLoraPanel(lora, LlamaLinear::kK, 0);
      FetchLoraPanel(lora, LlamaLinear::kV, 0);
      InputForms forms;
      for (const PackedMatrix* w : {&layer.q, &layer.k, &layer.v}) forms.Add(*w, format);
      QkvRopeAppendArgs qkv;
      qkv.in = &Normalise(x_.data(), layer.attention_norm, width, rows, slots_, forms, thread,
                          &lora, LoraGroup::kQkv);
      qkv.lora = Adapts(LoraGroup::kQkv) ? &lora : nullptr;
      qkv.wq = &layer.q;
      qkv.wk = &layer.k;
      qkv.wv = &layer.v;
      qkv.rows = rows;
      qkv.q = q_.data();
      qkv.context = context_.data();
      qkv.cosine = cosine_.data();
      qkv.sine = sine_.data();
      qkv.rope_dim = config_.rope_dim;
      qkv.kv_rows = kv_rows_.data();
      qkv.kv = layout;
      ForEachPanel(qkv_panels, thread, rows, lora, lora.layer, LoraGroup::kO, q_width,
                   [&](int begin, int end) { kernels_.qkv_rope_append(qkv, begin, end); });

      if (!stores_.empty()) {
        const StoreKvArgs store{kv_rows_.data(), stores_.data(), layout};
        pool_.ForEach(static_cast<int>(stores_.size()) * config_.kv_heads, thread,
                      [&](int begin, int end) { kernels_.store_kv(store, begin, end); });
      }

      PagedAttentionArgs attention;
      attention.q = q_.data();
      attention.out = attention_.data();
      attention.context = context_.data();
      attention.items = items_.data();
      attention.partials = partials_of_chunks_.data();
      attention.heads = config_.heads;
      attention.kv = layout;
      kernels_.paged_attention(attention, share_[static_cast<size_t>(thread)],
                               share_[static_cast<size_t>(thread) + 1]);
      pool_.Barrier();
      if (!merges_.empty()) {
        attention.items = merges_.data();
        pool_.ForEach(static_cast<int>(merges_.size()), thread,
                      [&](int begin, int end) { kernels_.merge_attention(attention, begin, end); });
      }

      FetchLoraPanel(lora, LlamaLinear::kO, pool_.Share(layer.o.Panels(), thread).begin);
      forms = {};
      forms.Add(layer.o, format);
      ProjectResidualArgs project;
      project.in = &Normalise(attention_.data(), nullptr, q_width, rows, slots_, forms, thread,
                              &lora, LoraGroup::kO);
      project.lora = Adapts(LoraGroup::kO) ? &lora : nullptr;
      project.w = &layer.o;
      project.rows = rows;
      project.x = x_.data();
      ForEachPanel(layer.o.Panels(), thread, rows, lora, lora.layer, LoraGroup::kGateUp, width,
                   [&](int begin, int end) { kernels_.project_residual(project, begin, end); });

      for (const LlamaLinear linear : {LlamaLinear::kGate, LlamaLinear::kUp}) {
        FetchLoraPanel(lora, linear, pool_.Share(layer.gate.Panels(), thread).begin);
      }
      forms = {};
      for (const PackedMatrix* w : {&layer.gate, &layer.up}) forms.Add(*w, format);
      GateUpSwigluArgs swiglu;
      swiglu.in = &Normalise(x_.data(), layer.ffn_norm, width, rows, slots_, forms, thread, &lora,
                             LoraGroup::kGateUp);
      swiglu.lora = Adapts(LoraGroup::kGateUp) ? &lora : nullptr;
      swiglu.gate = &layer.gate;
      swiglu.up = &layer.up;
      swiglu.rows = rows;
      forms = {};
      forms.Add(layer.down, format);
      forms.f32 |= Adapts(LoraGroup::kDown);
      Activations ffn = ffn_.view;  // pointers into the shared buffer
      ffn.inputs = config_.feed_forward_length;
      ffn.wide_slots = slots_.wide;
      ffn.row_of = slots_.row_of;
      ffn.want_quantised = forms.quantised;
      ffn.want_f32 = forms.f32;
      swiglu.out = &ffn;
      ForEachPanel(layer.gate.Panels(), thread, rows, lora, lora.layer, LoraGroup::kDown,
                   config_.feed_forward_length,
                   [&](int begin, int end) { kernels_.gate_up_swiglu(swiglu, begin, end); });

      project.in = &ffn;
      project.lora = Adapts(LoraGroup::kDown) ? &lora : nullptr;
      FetchLoraPanel(lora, LlamaLinear::kDown, pool_.Share(layer.down.Panels(), thread).begin);
      Shrink(&lora, LoraGroup::kDown, ffn, rows, thread);
      project.w = &layer.down;
      project.linear = LlamaLinear::kDown;
      ForEachPanel(layer.down.Panels(), thread, rows, lora, lora.layer + 1, LoraGroup::kQkv, width,
                   [&](int begin, int end) { kernels_.project_residual(project, begin, end); });
    }
    const int wanted = static_cast<int>(plan.logit_rows.size());
    if (wanted == 0) return;
    InputForms forms;
    forms.Add(weights_->head, format);
    HeadArgs head;
    // The head's inputs are wide whatever the row's: few rows ask for logits.
    const bool wide_head = options_.activations != ActivationFormat::kFast;
    head.in = &Normalise(x_.data(), weights_->output_norm, width, wanted,
                         {wide_head ? wanted : 0, plan.logit_rows.data()}, forms, thread);
    head.w = &weights_->head;
    head.rows = wanted;
    head.logits = logits_.data();
    if (Certifies(plan)) {
      certified_->Gather(&private_[static_cast<size_t>(thread)].view, wanted);
      certified_->Run(pool_, thread, *head.in, wanted, logits_.data());
    } else {
      pool_.ForEach(weights_->head.Panels(), thread,
                    [&](int begin, int end) { kernels_.head(head, begin, end); });
    }
    const int chunks = (config_.vocabulary_size + kSummaryChunk - 1) / kSummaryChunk;
    const auto [begin, end] = pool_.Share(wanted * chunks, thread);
    for (int i = begin; i < end; ++i) {
      const int first = i % chunks * kSummaryChunk;
      partials_[static_cast<size_t>(i)] = kernels_.summarise(
          Logits(i / chunks), first, std::min(kSummaryChunk, config_.vocabulary_size - first));
    }
  }

  // A row that needs all logits reads the whole head for the others too.
  bool Certifies(const StepPlan& plan) const {
    return certified_ != nullptr && plan.logit_rows.size() <= CertifiedHead::kMostRows &&
           std::count(plan.logit_needs.begin(), plan.logit_needs.end(), LogitNeed::kTop) ==
               static_cast<std::ptrdiff_t>(plan.logit_rows.size());
  }

  void MergeSummaries(int wanted) {
    const int chunks = (config_.vocabulary_size + kSummaryChunk - 1) / kSummaryChunk;
    for (int row = 0; row < wanted; ++row) {
      const LogitPartial* parts = partials_.data() + static_cast<size_t>(row * chunks);
      LogitSummary& s = summaries_[static_cast<size_t>(row)];
      s = {};
      s.max = -INFINITY;
      s.second = -INFINITY;
      for (int i = 0; i < chunks; ++i) {
        s.finite = s.finite && parts[i].finite;
        if (parts[i].max > s.max) {
          s.second = std::max(s.max, parts[i].second);
          s.max = parts[i].max;
          s.argmax = parts[i].argmax;
        } else {
          s.second = std::max(s.second, parts[i].max);
        }
      }
      double sum = 0;
      double sum_x = 0;
      for (int i = 0; i < chunks; ++i) {
        const double shift = static_cast<double>(parts[i].max) - static_cast<double>(s.max);
        const double e = std::exp(shift);
        sum += static_cast<double>(parts[i].sum_exp) * e;
        sum_x += e * (static_cast<double>(parts[i].sum_exp_x) +
                      static_cast<double>(parts[i].sum_exp) * shift);
      }
      s.log_sum_exp = static_cast<double>(s.max) + std::log(sum);
      s.entropy = std::log(sum) - sum_x / sum;
    }
  }

  const ModelConfig config_;
  const ModelOptions options_;
  const KernelTable& kernels_;
  const std::unique_ptr<Weights> weights_;
  ThreadPool& pool_;
  TeamSizer team_;
  AdapterTable adapters_;
  std::string kernel_configuration_;
  std::vector<double> rope_frequencies_;  // [rope_dim / 2], radians per position

  // Scratch of a step.
  Slots slots_;
  std::vector<int32_t> row_of_, narrow_rows_;
  std::vector<float> x_, q_, attention_;
  std::vector<float> cosine_, sine_;
  std::vector<float> kv_rows_;     // K and V of a step that go through StoreKv
  std::vector<KvPageView> pages_;  // of all sequences
  std::vector<RowContext> context_;
  std::vector<StoreKvItem> stores_;
  std::vector<const LoraLayer*> lora_of_row_, lora_of_slot_;
  std::vector<LoraRun> lora_runs_;
  std::array<bool, kLoraGroups> lora_groups_{};  // that some row's adapter changes
  std::vector<float> lora_values_;               // [slots][kLoraValues]; with the first adapter
  Arrivals shrunk_;                              // in lora_values_
  std::vector<AttentionItem> items_;
  std::vector<AttentionItem> merges_;      // whose partial results are to be merged
  std::vector<float> partials_of_chunks_;  // of attention
  std::vector<double> item_cost_;
  std::vector<int> share_;  // of items_, by thread
  ActivationBuffer shared_, ffn_;
  std::vector<Activations> shared_views_;  // of shared_, one a thread
  std::vector<ActivationBuffer> private_;
  std::unique_ptr<CertifiedHead> certified_;  // null: the head is not split
  std::vector<float> logits_;
  std::vector<LogitPartial> partials_;
  std::vector<LogitSummary> summaries_;
};

// The numbers come from a file: what a step needs is known before any of it is taken.
absl::Status CheckScratch(const ModelConfig& config, const ModelOptions& options, int threads) {
  const double rows = options.max_rows;
  const double width = config.embedding_length;
  const double q_width = static_cast<double>(config.heads) * config.head_dim;
  const double inputs = std::max(width, q_width);
  // Residual, queries and attention in float32; a quantised input also in its codes, with four
  // numbers a block: at most 8 bytes a value.
  const double bytes = rows * 4 * (width + 2 * q_width + config.rope_dim) +
                       8 * rows * (inputs + config.feed_forward_length) +
                       8.0 * kPrivateRows * threads * inputs +
                       4.0 * options.max_logit_rows * config.vocabulary_size;
  if (bytes <= static_cast<double>(options.max_scratch_bytes)) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "scratch: ", options.max_rows, " rows a step of ", config.embedding_length, " values, ",
      config.heads, " heads of ", config.head_dim, " and ", options.max_logit_rows,
      " rows of logits of a vocabulary of ", config.vocabulary_size, " need ",
      static_cast<int64_t>(std::ceil(bytes)), " bytes, limit ", options.max_scratch_bytes));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const GgufFile& file,
                                                   const ModelOptions& options, ThreadPool* pool) {
  // Float32 activations are the ruler's arithmetic, which only the reference kernels do.
  const bool exact = options.activations == ActivationFormat::kF32;
  if (exact && !options.kernels.empty() && options.kernels != "reference") {
    return absl::InvalidArgumentError(
        absl::StrCat("kernels: '", options.kernels,
                     "' cannot be combined with f32 activations; only reference"));
  }
  ASSIGN_OR_RETURN(const KernelTable* kernels,
                   SelectKernels(exact ? std::string_view("reference") : options.kernels));
  if (options.table != nullptr) kernels = options.table;
  ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::FromGguf(file));
  RETURN_IF_ERROR(CheckScratch(config, options, pool->size()));
  ASSIGN_OR_RETURN(std::unique_ptr<Weights> weights, Weights::Load(file, config, !exact, pool));
  return std::unique_ptr<Model>(
      new Transformer(std::move(config), options, kernels, std::move(weights), pool));
}

}  // namespace cogumi
