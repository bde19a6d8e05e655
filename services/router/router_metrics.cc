#include "services/router/router_metrics.h"

#include <string>

#include "router/domain.h"

namespace cogumi::services {
namespace {

prometheus::Family<prometheus::Counter>& MakeCounter(prometheus::Registry& registry,
                                                     const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}

}  // namespace

RouterMetrics::RouterMetrics(prometheus::Registry& registry)
    : decisions(MakeCounter(registry, "cogumi_routing_decisions_total",
                            "Routing decisions by domain and tier.")),
      feedback(MakeCounter(registry, "cogumi_feedback_total",
                           "What the detector heard in new messages.")),
      escalations(MakeCounter(registry, "cogumi_escalations_total", "Escalations by reason.")),
      latency(prometheus::BuildHistogram()
                  .Name("cogumi_router_latency_seconds")
                  .Help("Time in the classifier by call.")
                  .Register(registry)),
      confidence(prometheus::BuildHistogram()
                     .Name("cogumi_confidence_ratio")
                     .Help("Confidence of answers.")
                     .Register(registry)
                     .Add({{"model", std::string(router::kModelName)}, {"calibrated", "false"}},
                          prometheus::Histogram::BucketBoundaries{
                              .05, .1, .2, .3, .4, .5, .6, .7, .75, .8, .85, .9, .95, .99})) {}

void RouterMetrics::Decided(std::string_view domain, std::string_view tier, bool abstained) {
  decisions
      .Add({{"domain", std::string(domain)},
            {"tier", std::string(tier)},
            {"abstained", abstained ? "true" : "false"}})
      .Increment();
}

void RouterMetrics::Detected(std::string_view heard) {
  feedback.Add({{"feedback", std::string(heard)}}).Increment();
}

void RouterMetrics::Escalated(std::string_view reason) {
  escalations.Add({{"reason", std::string(reason)}}).Increment();
}

void RouterMetrics::Took(std::string_view call, double seconds) {
  static const prometheus::Histogram::BucketBoundaries buckets = {
      1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 1e-1};
  latency.Add({{"call", std::string(call)}}, buckets).Observe(seconds);
}

}  // namespace cogumi::services
