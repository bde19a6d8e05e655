#include "services/gateway/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <string>
#include <utility>
#include <vector>

#include "services/common/metrics.h"
#include "services/common/status.h"

namespace cogumi::gateway {
namespace {

namespace v1 = cogumi::v1;
using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using Buckets = prometheus::Histogram::BucketBoundaries;

constexpr size_t kMaxTenants = 64;

const Buckets& FirstTokenBuckets() {
  static const Buckets* const kBuckets =
      new Buckets{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                  1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
  return *kBuckets;
}

const Buckets& LongBuckets() {
  static const Buckets* const kBuckets =
      new Buckets{.001, .005, .01, .05, .1, .3, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600};
  return *kBuckets;
}

const Buckets& ShortBuckets() {
  static const Buckets* const kBuckets =
      new Buckets{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .5, 2};
  return *kBuckets;
}

const Buckets& ConfidenceBuckets() {
  static const Buckets* const kBuckets = new Buckets{.1, .2, .3, .4, .5, .6, .7, .8, .9, .95, 1};
  return *kBuckets;
}

const char* DomainName(v1::Domain domain) {
  switch (domain) {
    case v1::DOMAIN_GENERAL:
      return "general";
    case v1::DOMAIN_CODE:
      return "code";
    case v1::DOMAIN_REASONING:
      return "reasoning";
    case v1::DOMAIN_AUTOMATION:
      return "automation";
    default:
      return "unspecified";
  }
}

const char* FeedbackName(v1::Feedback feedback) {
  switch (feedback) {
    case v1::FEEDBACK_NONE:
      return "none";
    case v1::FEEDBACK_SATISFIED:
      return "satisfied";
    case v1::FEEDBACK_CONFUSED:
      return "confused";
    case v1::FEEDBACK_FRUSTRATED:
      return "frustrated";
    case v1::FEEDBACK_ASKS_FOR_MORE:
      return "asks_for_more";
    default:
      return "unspecified";
  }
}

class ReachabilityCollector : public prometheus::Collectable {
 public:
  explicit ReachabilityCollector(std::shared_ptr<Backends> backends)
      : backends_(std::move(backends)) {}

  std::vector<prometheus::MetricFamily> Collect() const override {
    prometheus::MetricFamily family;
    family.name = "cogumi_gateway_backend_up";
    family.help = "1 when the service behind the gateway can be reached";
    family.type = prometheus::MetricType::Gauge;
    for (const auto& [service, up] : backends_->Reachable()) {
      prometheus::ClientMetric metric;
      metric.label.push_back({"service", service});
      metric.gauge.value = up ? 1 : 0;
      family.metric.push_back(std::move(metric));
    }
    return {family};
  }

 private:
  const std::shared_ptr<Backends> backends_;
};

std::string Code(const absl::Status& status) {
  return std::string(services::CodeName(status.code()));
}

}  // namespace

struct GatewayMetrics::Impl {
  Impl(prometheus::Registry& registry, Prices token_prices)
      : prices(token_prices),
        tenants(kMaxTenants),
        tiers(8),
        http_requests(BuildCounter()
                          .Name("cogumi_http_requests_total")
                          .Help("HTTP requests by route, method and status")
                          .Register(registry)),
        http_seconds(BuildHistogram()
                         .Name("cogumi_http_request_duration_seconds")
                         .Help("From the request's header to the last byte of the answer")
                         .Register(registry)),
        http_connections(BuildGauge()
                             .Name("cogumi_http_connections")
                             .Help("Open HTTP connections")
                             .Register(registry)
                             .Add({})),
        quota_refusals(BuildCounter()
                           .Name("cogumi_quota_refusals_total")
                           .Help("Requests refused by a quota")
                           .Register(registry)),
        streams(BuildGauge()
                    .Name("cogumi_gateway_streams")
                    .Help("Answers that are being generated")
                    .Register(registry)
                    .Add({})),
        tokens(BuildCounter()
                   .Name("cogumi_gateway_tokens_total")
                   .Help("Tokens by tenant and kind (prompt, completion, cached)")
                   .Register(registry)),
        cost(BuildCounter()
                 .Name("cogumi_query_cost_dollars_total")
                 .Help("Cost of queries at the configured prices")
                 .Register(registry)),
        first_token(BuildHistogram()
                        .Name("cogumi_gateway_time_to_first_token_seconds")
                        .Help("From the request's arrival to its first chunk")
                        .Register(registry)
                        .Add({}, FirstTokenBuckets())),
        decoder_retries(BuildCounter()
                            .Name("cogumi_gateway_decoder_retries_total")
                            .Help("Generate calls repeated after UNAVAILABLE")
                            .Register(registry)
                            .Add({})),
        slow_readers(BuildCounter()
                         .Name("cogumi_gateway_slow_readers_total")
                         .Help("Streams ended because their reader did not keep up")
                         .Register(registry)
                         .Add({})),
        router_degraded(BuildCounter()
                            .Name("cogumi_gateway_router_degraded_total")
                            .Help("Requests that went on without a router's call")
                            .Register(registry)),
        routes(BuildCounter()
                   .Name("cogumi_gateway_routing_decisions_total")
                   .Help("Routing decisions by domain and tier")
                   .Register(registry)),
        escalations(BuildCounter()
                        .Name("cogumi_gateway_escalations_total")
                        .Help("Escalations by the feedback that caused them")
                        .Register(registry)),
        confidence(BuildHistogram()
                       .Name("cogumi_gateway_confidence_ratio")
                       .Help("Confidence of answers, by whether it is calibrated")
                       .Register(registry)),
        router_seconds(BuildHistogram()
                           .Name("cogumi_gateway_router_duration_seconds")
                           .Help("Wait for the router's calls before generation")
                           .Register(registry)
                           .Add({}, ShortBuckets())),
        session_commits(BuildCounter()
                            .Name("cogumi_session_commits_total")
                            .Help("Committed turns")
                            .Register(registry)
                            .Add({})),
        session_commit_seconds(BuildHistogram()
                                   .Name("cogumi_session_commit_duration_seconds")
                                   .Help("Queue and transaction of a turn's commit")
                                   .Register(registry)
                                   .Add({}, ShortBuckets())),
        session_errors(BuildCounter()
                           .Name("cogumi_session_errors_total")
                           .Help("Session store errors by operation and code")
                           .Register(registry)),
        turns_dropped(BuildCounter()
                          .Name("cogumi_session_turns_dropped_total")
                          .Help("Stored turns left out of a prompt that did not fit the context")
                          .Register(registry)
                          .Add({})) {}

  const Prices prices;
  services::BoundedLabel tenants;
  services::BoundedLabel tiers;
  prometheus::Family<prometheus::Counter>& http_requests;
  prometheus::Family<prometheus::Histogram>& http_seconds;
  prometheus::Gauge& http_connections;
  prometheus::Family<prometheus::Counter>& quota_refusals;
  prometheus::Gauge& streams;
  prometheus::Family<prometheus::Counter>& tokens;
  prometheus::Family<prometheus::Counter>& cost;
  prometheus::Histogram& first_token;
  prometheus::Counter& decoder_retries;
  prometheus::Counter& slow_readers;
  prometheus::Family<prometheus::Counter>& router_degraded;
  prometheus::Family<prometheus::Counter>& routes;
  prometheus::Family<prometheus::Counter>& escalations;
  prometheus::Family<prometheus::Histogram>& confidence;
  prometheus::Histogram& router_seconds;
  prometheus::Counter& session_commits;
  prometheus::Histogram& session_commit_seconds;
  prometheus::Family<prometheus::Counter>& session_errors;
  prometheus::Counter& turns_dropped;
};

GatewayMetrics::GatewayMetrics(prometheus::Registry& registry, Prices prices)
    : impl_(std::make_unique<Impl>(registry, prices)) {}

GatewayMetrics::~GatewayMetrics() = default;

void GatewayMetrics::ObserveHttp(std::string_view route, std::string_view method, int status,
                                 double seconds) {
  impl_->http_requests
      .Add({{"route", std::string(route)},
            {"method", std::string(method)},
            {"status", std::to_string(status)}})
      .Increment();
  impl_->http_seconds.Add({{"route", std::string(route)}}, LongBuckets()).Observe(seconds);
}

void GatewayMetrics::HttpConnections(int change) { impl_->http_connections.Increment(change); }

void GatewayMetrics::CountQuotaRefusal(std::string_view tenant, std::string_view reason) {
  impl_->quota_refusals.Add({{"tenant", impl_->tenants(tenant)}, {"reason", std::string(reason)}})
      .Increment();
}

void GatewayMetrics::Streams(int change) { impl_->streams.Increment(change); }

void GatewayMetrics::CountUsage(std::string_view tenant, const v1::Usage& usage) {
  const std::string label = impl_->tenants(tenant);
  impl_->tokens.Add({{"tenant", label}, {"kind", "prompt"}}).Increment(usage.prompt_tokens());
  impl_->tokens.Add({{"tenant", label}, {"kind", "completion"}})
      .Increment(usage.completion_tokens());
  impl_->tokens.Add({{"tenant", label}, {"kind", "cached"}}).Increment(usage.cached_tokens());
  impl_->cost.Add({{"tenant", label}})
      .Increment((impl_->prices.prompt * usage.prompt_tokens() +
                  impl_->prices.completion * usage.completion_tokens()) /
                 1e6);
}

void GatewayMetrics::ObserveFirstToken(double seconds) { impl_->first_token.Observe(seconds); }

void GatewayMetrics::CountDecoderRetry() { impl_->decoder_retries.Increment(); }

void GatewayMetrics::CountSlowReader() { impl_->slow_readers.Increment(); }

void GatewayMetrics::CountRouterDegraded(std::string_view call) {
  impl_->router_degraded.Add({{"call", std::string(call)}}).Increment();
}

void GatewayMetrics::CountRoute(const v1::RouteResponse& route) {
  impl_->routes.Add({{"domain", DomainName(route.domain())}, {"tier", impl_->tiers(route.tier())}})
      .Increment();
}

void GatewayMetrics::CountEscalation(const v1::DetectResponse& detection) {
  if (!detection.escalate()) return;
  impl_->escalations.Add({{"reason", FeedbackName(detection.feedback())}}).Increment();
}

void GatewayMetrics::ObserveConfidence(const v1::AssessResponse& assessment) {
  impl_->confidence
      .Add({{"calibrated", assessment.calibrated() ? "true" : "false"}}, ConfidenceBuckets())
      .Observe(assessment.confidence());
}

void GatewayMetrics::ObserveRouterLatency(double seconds) {
  impl_->router_seconds.Observe(seconds);
}

void GatewayMetrics::CountSessionCommit(const absl::Status& status, double seconds) {
  if (!status.ok()) {
    CountSessionError("commit", status);
    return;
  }
  impl_->session_commits.Increment();
  impl_->session_commit_seconds.Observe(seconds);
}

void GatewayMetrics::CountSessionError(std::string_view operation, const absl::Status& status) {
  impl_->session_errors.Add({{"operation", std::string(operation)}, {"code", Code(status)}})
      .Increment();
}

void GatewayMetrics::CountTurnsDropped(int turns) { impl_->turns_dropped.Increment(turns); }

std::shared_ptr<prometheus::Collectable> MakeReachabilityCollector(
    std::shared_ptr<Backends> backends) {
  return std::make_shared<ReachabilityCollector>(std::move(backends));
}

}  // namespace cogumi::gateway
