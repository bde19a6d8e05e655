// Instruments of the decoder: the de-facto names of serving engines, so that existing dashboards
// and autoscaling rules work unchanged, and our own.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "cogumi/engine.h"
#include "prometheus/collectable.h"
#include "prometheus/counter.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace cogumi::services {

class AdapterStore;

struct DecoderMetrics {
  DecoderMetrics(prometheus::Registry& registry, const std::string& model_name);

  prometheus::Counter& finished_stop;
  prometheus::Counter& finished_length;
  prometheus::Counter& finished_abort;
  prometheus::Counter& finished_error;
  prometheus::Histogram& time_to_first_token;
  prometheus::Histogram& inter_token_latency;
  prometheus::Histogram& time_per_output_token;
  prometheus::Histogram& e2e_latency;
  prometheus::Histogram& queue_wait;
  prometheus::Counter& slow_readers;

 private:
  DecoderMetrics(prometheus::Family<prometheus::Counter>& finished, prometheus::Registry& registry,
                 const std::string& model_name);
};

// Adapters in memory and in use, read at each scrape. Both must outlive it.
std::shared_ptr<prometheus::Collectable> AdapterCollector(const Engine& engine,
                                                          const AdapterStore& adapters,
                                                          int32_t max_running);

// Gauges and counters of Engine::Stats, read at each scrape. The engine must outlive it.
std::shared_ptr<prometheus::Collectable> EngineCollector(const Engine& engine);

}  // namespace cogumi::services
