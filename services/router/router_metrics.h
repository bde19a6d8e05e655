// Instruments of the router.
#pragma once

#include <string_view>

#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace cogumi::services {

struct RouterMetrics {
  explicit RouterMetrics(prometheus::Registry& registry);

  // cogumi_routing_decisions_total{domain,tier,abstained}
  void Decided(std::string_view domain, std::string_view tier, bool abstained);
  // cogumi_feedback_total{feedback} and, when escalated, cogumi_escalations_total{reason}
  void Detected(std::string_view feedback);
  void Escalated(std::string_view reason);
  // cogumi_router_latency_seconds{call}: time in the classifier itself
  void Took(std::string_view call, double seconds);

  prometheus::Family<prometheus::Counter>& decisions;
  prometheus::Family<prometheus::Counter>& feedback;
  prometheus::Family<prometheus::Counter>& escalations;
  prometheus::Family<prometheus::Histogram>& latency;
  prometheus::Histogram& confidence;  // cogumi_confidence_ratio{model,calibrated}
};

}  // namespace cogumi::services
