// Prometheus instruments that every service has.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace cogumi::services {

// cogumi_rpc_calls_total{service,method,code} and cogumi_rpc_duration_seconds{service,method,code}.
class RpcMetrics {
 public:
  RpcMetrics(prometheus::Registry& registry, std::string service);
  // `code` is the name of the status code.
  void Observe(std::string_view method, std::string_view code, double seconds);

 private:
  std::string service_;
  prometheus::Family<prometheus::Counter>& calls_;
  prometheus::Family<prometheus::Histogram>& durations_;
};

// A label value out of a bounded set: the first `cap` values as they are, then "other".
class BoundedLabel {
 public:
  explicit BoundedLabel(size_t cap);
  ~BoundedLabel();
  std::string operator()(std::string_view value);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Everything one service shows: its registry and what is read at the moment of the scrape.
class MetricsHub : public prometheus::Collectable {
 public:
  explicit MetricsHub(std::shared_ptr<prometheus::Registry> registry);
  ~MetricsHub() override;
  // Asked at each scrape from now on; it must outlive the hub's last Collect.
  void Add(std::shared_ptr<prometheus::Collectable> source);
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// cogumi_build_info{version} = 1, and at collection process_resident_memory_bytes,
// process_cpu_seconds_total, process_open_fds, process_threads, process_start_time_seconds.
std::shared_ptr<prometheus::Collectable> ProcessCollector();

// Registry and ProcessCollector in Prometheus' text format, for a service with its own HTTP door.
std::string RenderMetrics(const prometheus::Collectable& registry);

}  // namespace cogumi::services
