#include "services/decoder/decoder_metrics.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "engine/core/clock.h"
#include "prometheus/metric_family.h"
#include "services/decoder/adapter_store.h"

namespace cogumi::services {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;

const Buckets& FirstTokenBuckets() {
  static const Buckets buckets = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                  1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
  return buckets;
}

const Buckets& PerTokenBuckets() {
  static const Buckets buckets = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                  .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
  return buckets;
}

const Buckets& EndToEndBuckets() {
  static const Buckets buckets = {.01, .05, .1, .2, .3, .5, .8,  1,   1.5, 2,   2.5,  5,   10,
                                  15,  20,  30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
  return buckets;
}

prometheus::Histogram& MakeHistogram(prometheus::Registry& registry, const char* name,
                                     const char* help, const std::string& model_name,
                                     const Buckets& buckets) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add(
      {{"model_name", model_name}}, buckets);
}

// One scrape's families, written as a table.
class FamilyList {
 public:
  explicit FamilyList(const std::string& model_name) : model_name_(model_name) {}

  void Gauge(const char* name, const char* help, double value,
             std::vector<prometheus::ClientMetric::Label> labels = {}) {
    Add(name, help, prometheus::MetricType::Gauge, value, std::move(labels));
  }
  void Counter(const char* name, const char* help, double value,
               std::vector<prometheus::ClientMetric::Label> labels = {}) {
    Add(name, help, prometheus::MetricType::Counter, value, std::move(labels));
  }
  std::vector<prometheus::MetricFamily> Take() { return std::move(families_); }

 private:
  void Add(const char* name, const char* help, prometheus::MetricType type, double value,
           std::vector<prometheus::ClientMetric::Label> labels) {
    // Samples of one name follow each other.
    if (families_.empty() || families_.back().name != name) {
      families_.emplace_back();
      families_.back().name = name;
      families_.back().help = help;
      families_.back().type = type;
    }
    prometheus::ClientMetric& metric = families_.back().metric.emplace_back();
    metric.label = std::move(labels);
    metric.label.push_back({"model_name", model_name_});
    if (type == prometheus::MetricType::Gauge) {
      metric.gauge.value = value;
    } else {
      metric.counter.value = value;
    }
  }

  const std::string& model_name_;
  std::vector<prometheus::MetricFamily> families_;
};

class EngineCollectable : public prometheus::Collectable {
 public:
  explicit EngineCollectable(const Engine& engine) : engine_(engine) {
    const std::string& configuration = engine.Configuration().kernel_configuration;
    const size_t at = configuration.rfind("kv-");
    precision_ = at == std::string::npos ? "unknown" : configuration.substr(at + 3);
  }

  std::vector<prometheus::MetricFamily> Collect() const override {
    const EngineStats stats = engine_.Stats();
    FamilyList list(engine_.ModelId());
    const auto number = [](auto value) { return static_cast<double>(value); };
    list.Gauge("vllm:num_requests_running", "Sequences in the step.", stats.running);
    list.Gauge("vllm:num_requests_waiting", "Requests in the queue.", stats.queued);
    list.Gauge("vllm:kv_cache_usage_perc",
               "Share of the KV cache's bytes that sequences use, 0 to 1.",
               stats.kv_bytes > 0 ? number(stats.kv_bytes_used) / number(stats.kv_bytes) : 0);
    list.Counter("vllm:prompt_tokens_total",
                 "Prompt tokens, computed or found in the prefix cache.",
                 number(stats.prompt_tokens));
    list.Counter("vllm:generation_tokens_total", "Tokens generated.",
                 number(stats.generated_tokens));
    list.Counter("vllm:num_preemptions_total", "Sequences whose pages were taken away.",
                 number(stats.preemptions));
    list.Counter("vllm:spec_decode_num_drafts_total", "Drafts that were verified.",
                 number(stats.drafts));
    list.Counter("vllm:spec_decode_num_draft_tokens_total", "Tokens of verified drafts.",
                 number(stats.drafted_tokens));
    list.Counter("vllm:spec_decode_num_accepted_tokens_total", "Drafted tokens that were accepted.",
                 number(stats.accepted_tokens));
    for (size_t i = 0; i < stats.accepted_per_position.size(); ++i) {
      list.Counter("vllm:spec_decode_num_accepted_tokens_per_pos_total",
                   "Accepted tokens by position in the draft, from 0.",
                   number(stats.accepted_per_position[i]), {{"position", std::to_string(i)}});
    }
    const char* const kPages = "cogumi_kv_pages";
    const char* const kPagesHelp = "The KV cache by state and format, in pages as new tokens fill.";
    list.Gauge(kPages, kPagesHelp, stats.kv_pages_used,
               {{"state", "used"}, {"precision", precision_}});
    list.Gauge(kPages, kPagesHelp, stats.kv_pages_cached,
               {{"state", "cached"}, {"precision", precision_}});
    list.Gauge(kPages, kPagesHelp, stats.kv_pages_free,
               {{"state", "free"}, {"precision", precision_}});
    list.Gauge("cogumi_kv_bytes", "Budget of the KV cache in bytes.", number(stats.kv_bytes));
    for (const KvUsage& held : stats.kv_blocks) {
      list.Gauge("cogumi_kv_bytes_used", "Bytes of the KV cache's blocks by precision.",
                 number(held.bytes), {{"precision", held.precision}});
      list.Gauge("cogumi_kv_blocks_used", "Blocks of 64 tokens by precision.", held.blocks,
                 {{"precision", held.precision}});
    }
    list.Counter("vllm:prefix_cache_queries_total",
                 "Prompt tokens that were looked for in the prefix cache.",
                 number(stats.prefix_queries));
    list.Counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.",
                 number(stats.prefix_hits));
    list.Counter("cogumi_prefix_cache_evictions_total",
                 "Pages that the prefix cache forgot because others needed them.",
                 number(stats.prefix_evictions));
    list.Counter("cogumi_engine_steps_total", "Steps of the engine.", number(stats.steps));
    list.Counter("cogumi_engine_step_rows_total", "Rows (tokens) in all steps.",
                 number(stats.step_rows));
    list.Counter("cogumi_engine_step_seconds_total", "Time spent in steps.", stats.step_seconds);
    list.Counter("cogumi_engine_requests_rejected_total", "Requests refused by a full queue.",
                 number(stats.rejected));
    list.Counter("cogumi_engine_requests_cancelled_total", "Requests ended by their caller.",
                 number(stats.cancelled));
    list.Counter("cogumi_engine_requests_deadline_exceeded_total",
                 "Requests ended by their deadline.", number(stats.deadline_exceeded));
    list.Counter("cogumi_engine_requests_failed_total", "Requests ended by a fault of the engine.",
                 number(stats.failed));
    list.Gauge("cogumi_engine_healthy", "1 while steps make progress.", engine_.Healthy() ? 1 : 0);
    return list.Take();
  }

 private:
  const Engine& engine_;
  std::string precision_;
};

class AdapterCollectable : public prometheus::Collectable {
 public:
  AdapterCollectable(const Engine& engine, const AdapterStore& adapters, int32_t max_running)
      : engine_(engine), adapters_(adapters), max_running_(max_running) {}

  std::vector<prometheus::MetricFamily> Collect() const override {
    const AdapterStoreFigures figures = adapters_.Figures();
    FamilyList list(engine_.ModelId());
    const auto number = [](auto value) { return static_cast<double>(value); };
    // As other servers have it: the labels are what it says, the value is when.
    list.Gauge("vllm:lora_requests_info", "Adapters that requests run with or wait for.",
               Clock::Real()->UnixNow(),
               {{"max_lora", std::to_string(max_running_)},
                {"running_lora_adapters", absl::StrJoin(figures.running, ",")},
                {"waiting_lora_adapters", absl::StrJoin(figures.waiting, ",")}});
    list.Gauge("cogumi_adapters_resident", "Adapters in memory.", figures.engine.resident);
    list.Gauge("cogumi_adapter_resident_bytes", "Memory that adapters take.",
               number(figures.engine.bytes));
    list.Gauge("cogumi_adapter_budget_bytes", "Memory that adapters may take.",
               number(figures.engine.budget_bytes));
    list.Counter("cogumi_adapter_swaps_total", "Adapters that became resident.",
                 number(figures.engine.loads));
    list.Counter("cogumi_adapter_evictions_total", "Adapters that went for others.",
                 number(figures.engine.evictions));
    list.Counter("cogumi_adapter_fetch_errors_total",
                 "Adapters that could not be fetched, verified or loaded.",
                 number(figures.fetch_errors));
    list.Gauge("cogumi_adapter_catalogue_size", "Adapters in the catalogue as last told.",
               number(figures.known));
    list.Gauge("cogumi_adapter_catalogue_current",
               "1 while the catalogue tells of its changes; 0: only what was known is served.",
               figures.current ? 1 : 0);
    list.Gauge("cogumi_adapter_catalogue_age_seconds", "Time since the catalogue was current.",
               figures.age);
    return list.Take();
  }

 private:
  const Engine& engine_;
  const AdapterStore& adapters_;
  const int32_t max_running_;
};

}  // namespace

std::shared_ptr<prometheus::Collectable> AdapterCollector(const Engine& engine,
                                                          const AdapterStore& adapters,
                                                          int32_t max_running) {
  return std::make_shared<AdapterCollectable>(engine, adapters, max_running);
}

DecoderMetrics::DecoderMetrics(prometheus::Registry& registry, const std::string& model_name)
    : DecoderMetrics(prometheus::BuildCounter()
                         .Name("vllm:request_success_total")
                         .Help("Finished requests by reason.")
                         .Register(registry),
                     registry, model_name) {}

DecoderMetrics::DecoderMetrics(prometheus::Family<prometheus::Counter>& finished,
                               prometheus::Registry& registry, const std::string& model_name)
    : finished_stop(finished.Add({{"model_name", model_name}, {"finished_reason", "stop"}})),
      finished_length(finished.Add({{"model_name", model_name}, {"finished_reason", "length"}})),
      finished_abort(finished.Add({{"model_name", model_name}, {"finished_reason", "abort"}})),
      finished_error(finished.Add({{"model_name", model_name}, {"finished_reason", "error"}})),
      time_to_first_token(MakeHistogram(registry, "vllm:time_to_first_token_seconds",
                                        "From the request to its first token.", model_name,
                                        FirstTokenBuckets())),
      inter_token_latency(MakeHistogram(registry, "vllm:inter_token_latency_seconds",
                                        "Between two tokens of a stream.", model_name,
                                        PerTokenBuckets())),
      time_per_output_token(MakeHistogram(registry, "vllm:request_time_per_output_token_seconds",
                                          "Mean time per token behind the first.", model_name,
                                          PerTokenBuckets())),
      e2e_latency(MakeHistogram(registry, "vllm:e2e_request_latency_seconds",
                                "From the request to its end.", model_name, EndToEndBuckets())),
      queue_wait(MakeHistogram(registry, "cogumi_queue_wait_seconds", "Time in the queue.",
                               model_name, FirstTokenBuckets())),
      slow_readers(prometheus::BuildCounter()
                       .Name("cogumi_slow_readers_total")
                       .Help("Streams ended because the reader fell behind.")
                       .Register(registry)
                       .Add({{"model_name", model_name}})) {}

std::shared_ptr<prometheus::Collectable> EngineCollector(const Engine& engine) {
  return std::make_shared<EngineCollectable>(engine);
}

}  // namespace cogumi::services
