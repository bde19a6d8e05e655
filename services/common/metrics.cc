#include "services/common/metrics.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <system_error>
#include <utility>
#include <vector>

#include "prometheus/text_serializer.h"
#include "services/common/config.h"

namespace cogumi::services {
namespace {

const prometheus::Histogram::BucketBoundaries& DurationBuckets() {
  static const prometheus::Histogram::BucketBoundaries buckets = {
      .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1,
      .25,   .5,     1,     2.5,  5,     10,   30,  60,   120, 600};
  return buckets;
}

// What the kernel says about this process.
struct ProcessFigures {
  double resident_bytes = 0;
  double cpu_seconds = 0;
  double open_fds = 0;
  double threads = 0;
  double start_unix_seconds = 0;
};

ProcessFigures ReadProcess() {
  ProcessFigures figures;
  const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  std::ifstream stat("/proc/self/stat");
  std::string line;
  std::getline(stat, line);
  // The command name in parentheses may hold spaces; fields are counted behind it, from state = 3.
  const size_t behind = line.rfind(')');
  if (behind != std::string::npos) {
    std::istringstream fields(line.substr(behind + 1));
    std::vector<std::string> values{std::istream_iterator<std::string>(fields), {}};
    const auto field = [&values](size_t number) {
      return number - 3 < values.size() ? std::strtod(values[number - 3].c_str(), nullptr) : 0.0;
    };
    figures.cpu_seconds = (field(14) + field(15)) / ticks;
    figures.threads = field(20);
    figures.resident_bytes = field(24) * static_cast<double>(sysconf(_SC_PAGESIZE));
    std::ifstream uptime("/proc/stat");
    std::string word;
    while (uptime >> word) {
      if (word != "btime") continue;
      double boot = 0;
      uptime >> boot;
      figures.start_unix_seconds = boot + field(22) / ticks;
      break;
    }
  }
  std::error_code error;
  for (auto it = std::filesystem::directory_iterator("/proc/self/fd", error);
       !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    ++figures.open_fds;
  }
  return figures;
}

class ProcessCollectable : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override {
    const ProcessFigures figures = ReadProcess();
    std::vector<prometheus::MetricFamily> families;
    families.push_back(Gauge("cogumi_build_info", "Always 1; the label says the version.", 1,
                             {{"version", std::string(Version())}}));
    families.push_back(
        Gauge("process_resident_memory_bytes", "Resident memory.", figures.resident_bytes));
    families.push_back(Gauge("process_open_fds", "Open file descriptors.", figures.open_fds));
    families.push_back(Gauge("process_threads", "Threads.", figures.threads));
    families.push_back(Gauge("process_start_time_seconds", "Start, Unix time.",
                             figures.start_unix_seconds));
    prometheus::MetricFamily cpu;
    cpu.name = "process_cpu_seconds_total";
    cpu.help = "User and system time.";
    cpu.type = prometheus::MetricType::Counter;
    cpu.metric.emplace_back();
    cpu.metric.back().counter.value = figures.cpu_seconds;
    families.push_back(std::move(cpu));
    return families;
  }

 private:
  static prometheus::MetricFamily Gauge(std::string name, std::string help, double value,
                                        const std::map<std::string, std::string>& labels = {}) {
    prometheus::MetricFamily family;
    family.name = std::move(name);
    family.help = std::move(help);
    family.type = prometheus::MetricType::Gauge;
    family.metric.emplace_back();
    family.metric.back().gauge.value = value;
    for (const auto& [key, label] : labels) family.metric.back().label.push_back({key, label});
    return family;
  }
};

}  // namespace

RpcMetrics::RpcMetrics(prometheus::Registry& registry, std::string service)
    : service_(std::move(service)),
      calls_(prometheus::BuildCounter()
                 .Name("cogumi_rpc_calls_total")
                 .Help("Finished gRPC calls by method and status.")
                 .Register(registry)),
      durations_(prometheus::BuildHistogram()
                     .Name("cogumi_rpc_duration_seconds")
                     .Help("Duration of gRPC calls by method and status.")
                     .Register(registry)) {}

void RpcMetrics::Observe(std::string_view method, std::string_view code, double seconds) {
  const prometheus::Labels labels = {{"service", service_},
                                     {"method", std::string(method)},
                                     {"code", std::string(code)}};
  calls_.Add(labels).Increment();
  durations_.Add(labels, DurationBuckets()).Observe(seconds);
}

struct BoundedLabel::State {
  size_t cap;
  std::mutex mutex;
  std::set<std::string, std::less<>> seen;
};

BoundedLabel::BoundedLabel(size_t cap) : state_(std::make_unique<State>()) { state_->cap = cap; }
BoundedLabel::~BoundedLabel() = default;

std::string BoundedLabel::operator()(std::string_view value) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->seen.contains(value)) return std::string(value);
  if (state_->seen.size() >= state_->cap) return "other";
  return *state_->seen.emplace(value).first;
}

struct MetricsHub::State {
  mutable std::mutex mutex;
  std::vector<std::shared_ptr<prometheus::Collectable>> sources;
};

MetricsHub::MetricsHub(std::shared_ptr<prometheus::Registry> registry)
    : state_(std::make_unique<State>()) {
  Add(std::move(registry));
}
MetricsHub::~MetricsHub() = default;

void MetricsHub::Add(std::shared_ptr<prometheus::Collectable> source) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->sources.push_back(std::move(source));
}

std::vector<prometheus::MetricFamily> MetricsHub::Collect() const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  std::vector<prometheus::MetricFamily> families;
  for (const auto& source : state_->sources) {
    for (auto& family : source->Collect()) families.push_back(std::move(family));
  }
  return families;
}

std::shared_ptr<prometheus::Collectable> ProcessCollector() {
  static const auto collector = std::make_shared<ProcessCollectable>();
  return collector;
}

std::string RenderMetrics(const prometheus::Collectable& registry) {
  std::vector<prometheus::MetricFamily> families = registry.Collect();
  for (auto& family : ProcessCollector()->Collect()) families.push_back(std::move(family));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace cogumi::services
