// `cogumi doctor`: what is wrong here, and what to do.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "cogumi/engine.h"
#include "services/cli/client.h"
#include "services/cli/cluster.h"
#include "services/cli/human.h"
#include "services/cli/json.h"
#include "services/cli/machine.h"
#include "services/cli/paths.h"
#include "services/cli/process.h"
#include "services/cli/settings.h"
#include "services/cli/verbs.h"

namespace cogumi::cli {
namespace {

struct Finding {
  enum class State { kOk, kWarning, kError };
  std::string name;
  State state = State::kOk;
  std::string found;
  std::string advice;  // empty when nothing is to be done
};

const char* NameOf(Finding::State state) {
  switch (state) {
    case Finding::State::kOk:
      return "ok";
    case Finding::State::kWarning:
      return "warning";
    case Finding::State::kError:
      break;
  }
  return "error";
}

Finding CheckProcessor(const Machine& machine) {
  Finding finding{"processor", Finding::State::kOk, "", ""};
  std::vector<std::string> there;
  bool avx2 = false, vnni = false;
  for (const auto& [name, present] : machine.features) {
    if (present) there.push_back(name);
    avx2 |= name == "avx2" && present;
    vnni |= name == "avx512vnni" && present;
  }
  finding.found = absl::StrCat(machine.processor.empty() ? "unknown" : machine.processor, ", ",
                               machine.cores, " cores, ", absl::StrJoin(there, " "));
  if (!avx2) {
    finding.state = Finding::State::kWarning;
    finding.advice = "without AVX2 and FMA the reference kernels run: right, but slow";
  } else if (!vnni) {
    finding.advice = "the AVX2 kernels are used; AVX-512 VNNI would be faster";
  }
  return finding;
}

Finding CheckMemory(const Machine& machine, int64_t model_bytes) {
  // The model stays in the page cache beside its repacked copy; caches and buffers on top.
  const int64_t needed = 2 * model_bytes + (int64_t{120} << 20);
  Finding finding{"memory", Finding::State::kOk, "", ""};
  finding.found = absl::StrCat(HumanBytes(machine.memory_available_bytes), " available of ",
                               HumanBytes(machine.memory_bytes));
  if (machine.memory_available_bytes < needed) {
    finding.state = Finding::State::kError;
    finding.advice = absl::StrCat("the model needs about ", HumanBytes(needed),
                                  ": end other programs, or use a smaller model");
  }
  return finding;
}

Finding CheckBandwidth(const Machine& machine, int64_t model_bytes) {
  const double bandwidth = MeasureReadBandwidth(machine.cores, 3);
  Finding finding{"bandwidth", Finding::State::kOk, "", ""};
  if (bandwidth <= 0) {
    return {"bandwidth", Finding::State::kWarning, "not measured: no memory for the buffer",
            "end other programs"};
  }
  finding.found = absl::StrFormat("%.1f GB/s read", bandwidth / 1e9);
  if (model_bytes > 0) {
    absl::StrAppend(&finding.found,
                    absl::StrFormat(", at most %.0f tokens/s from one stream of this model",
                                    bandwidth / static_cast<double>(model_bytes)));
  }
  return finding;
}

// What `cogumi serve` would listen on: the option and its address.
std::vector<std::pair<std::string, std::string>> Listeners(const Settings& settings) {
  std::vector<std::pair<std::string, std::string>> listeners = {
      {"gateway.http", settings.gateway.http}};
  const auto add = [&](const std::string& service, const services::ServerOptions& server) {
    listeners.emplace_back(service + ".listen", server.address);
    listeners.emplace_back(service + ".metrics", server.metrics_address);
  };
  add("gateway", settings.gateway.server);
  add("router", settings.router.server);
  add("decoder", settings.decoder.server);
  add("modifiers", settings.modifiers.server);
  return listeners;
}

bool IsUsedBy(const ClusterRecord& cluster, const std::string& address) {
  return std::any_of(cluster.services.begin(), cluster.services.end(), [&](const auto& service) {
    return service.address == address || service.metrics == address ||
           std::any_of(service.extra.begin(), service.extra.end(),
                       [&](const auto& pair) { return pair.second == address; });
  });
}

// Whether the port can be listened on; nothing for a socket, a free port, and what is switched off.
std::optional<Finding> CheckPort(const std::string& option, const std::string& address,
                                 const std::vector<ClusterRecord>& clusters) {
  const std::vector<std::string> parts = absl::StrSplit(address, absl::MaxSplits(':', 1));
  int port = 0;
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[1], &port) || port <= 0 || port > 65535) {
    return std::nullopt;
  }
  Finding finding{absl::StrCat("port ", port), Finding::State::kOk,
                  absl::StrCat("free, for ", option), ""};
  const Descriptor probe(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  ::setsockopt(probe.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_in wanted = {};
  wanted.sin_family = AF_INET;
  wanted.sin_port = htons(static_cast<uint16_t>(port));
  if (::inet_pton(AF_INET, parts[0].c_str(), &wanted.sin_addr) != 1) {
    wanted.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  }
  if (::bind(probe.get(), reinterpret_cast<const sockaddr*>(&wanted), sizeof(wanted)) == 0) {
    return finding;
  }
  const std::string why = std::strerror(errno);
  for (const ClusterRecord& cluster : clusters) {
    if (!IsUsedBy(cluster, address)) continue;
    finding.found = absl::StrCat("in use by cluster ", cluster.supervisor);
    return finding;
  }
  finding.state = Finding::State::kWarning;
  finding.found = absl::StrCat("taken: ", why);
  finding.advice = absl::StrCat(
      "`cogumi serve` needs it; end the other program, or choose another port with --", option);
  return finding;
}

std::vector<Finding> CheckPorts(const std::vector<ClusterRecord>& clusters) {
  const auto settings = LoadSettings({});
  if (!settings.ok()) {
    return {{"configuration", Finding::State::kError, std::string(settings.status().message()),
             "correct the file that COGUMI_CONFIG names, or the variable"}};
  }
  std::vector<Finding> findings;
  for (const auto& [option, address] : Listeners(*settings)) {
    if (auto finding = CheckPort(option, address, clusters)) findings.push_back(*finding);
  }
  return findings;
}

Finding CheckModel(const std::string& name, int64_t* bytes) {
  Finding finding{"model", Finding::State::kOk, "", ""};
  auto file = FindModel(name);
  if (!file.ok()) {
    return {"model", Finding::State::kError, std::string(file.status().message()),
            AdviceOf(file.status())};
  }
  *bytes = file->bytes;
  EngineOptions options;
  options.model_path = file->path;
  auto engine = Engine::Create(options);
  if (!engine.ok()) {
    return {"model", Finding::State::kError,
            absl::StrCat(file->path, ": ", std::string(engine.status().message())),
            "use another file, or remove this one and let ./run fetch it again"};
  }
  const ModelDescription& model = (*engine)->Model();
  finding.found = absl::StrCat(file->path, ", ", HumanBytes(file->bytes), ", ", model.quantization,
                               ", kernels ", (*engine)->Configuration().kernel_configuration);
  const bool is_default = file->name + ".gguf" == kDefaultModelFile;
  if (is_default && model.digest != kDefaultModelDigest) {
    finding.state = Finding::State::kError;
    absl::StrAppend(&finding.found, ", SHA-256 ", model.digest);
    finding.advice = "the file is damaged: remove it, and ./run fetches it again";
  } else if (model.chat_template.empty()) {
    finding.state = Finding::State::kWarning;
    finding.advice = "its chat template is unknown: choose one with --decoder.chat-template";
  }
  return finding;
}

Finding CheckState() {
  auto folder = StateFolder();
  if (!folder.ok()) {
    return {"state folder", Finding::State::kError, std::string(folder.status().message()),
            AdviceOf(folder.status())};
  }
  struct statvfs space = {};
  if (::access(folder->c_str(), W_OK) != 0 || ::statvfs(folder->c_str(), &space) != 0) {
    return {"state folder", Finding::State::kError,
            absl::StrCat(*folder, ": ", std::strerror(errno)),
            "set COGUMI_STATE_DIR to a folder that can be written"};
  }
  const int64_t free = static_cast<int64_t>(space.f_bavail) * static_cast<int64_t>(space.f_frsize);
  Finding finding{"state folder", Finding::State::kOk,
                  absl::StrCat(*folder, ", ", HumanBytes(free), " free"), ""};
  if (free < (int64_t{64} << 20)) {
    finding.state = Finding::State::kWarning;
    finding.advice = "make room: sessions cannot be stored on a full disk";
  }
  return finding;
}

std::vector<Finding> CheckClusters(const std::vector<ClusterRecord>& clusters) {
  std::vector<Finding> findings;
  for (const ClusterRecord& cluster : clusters) {
    for (const auto& service : cluster.services) {
      Finding finding{absl::StrCat(service.service, " of cluster ", cluster.supervisor),
                      Finding::State::kOk, service.address, ""};
      if (!service.address.empty()) {
        if (absl::Status status = CheckHealth(service.address, 2); !status.ok()) {
          finding.state = Finding::State::kError;
          absl::StrAppend(&finding.found, ": ", std::string(status.message()));
          finding.advice = "look at its log; `cogumi stop` ends the cluster";
        }
      }
      findings.push_back(std::move(finding));
    }
  }
  return findings;
}

Finding CheckBinaries() {
  for (const char* name :
       {"cogumi-gateway", "cogumi-router", "cogumi-decoder", "cogumi-modifiers"}) {
    if (auto path = SiblingBinary(name); !path.ok()) {
      return {"binaries", Finding::State::kError, std::string(path.status().message()),
              AdviceOf(path.status())};
    }
  }
  return {"binaries", Finding::State::kOk, "all four services are here", ""};
}

class DoctorVerb : public Verb {
 public:
  DoctorVerb()
      : Verb("doctor", "[MODEL]", "Looks for what is wrong on this machine, and says what to do.",
             0, 1) {}

  absl::StatusOr<int> Run() override {
    const Machine machine = DescribeMachine();
    const auto clusters = FindClusters();
    int64_t model_bytes = 0;
    std::vector<Finding> findings;
    findings.push_back(CheckProcessor(machine));
    findings.push_back(CheckModel(positionals_.empty() ? "" : positionals_[0], &model_bytes));
    findings.push_back(CheckMemory(machine, model_bytes));
    findings.push_back(CheckBandwidth(machine, model_bytes));
    findings.push_back(CheckBinaries());
    findings.push_back(CheckState());
    for (Finding& finding : CheckPorts(clusters)) findings.push_back(std::move(finding));
    for (Finding& finding : CheckClusters(clusters)) findings.push_back(std::move(finding));

    JsonArray array;
    int errors = 0;
    for (const Finding& finding : findings) {
      errors += finding.state == Finding::State::kError ? 1 : 0;
      array.Add(JsonObject()
                    .Add("name", finding.name)
                    .Add("state", NameOf(finding.state))
                    .Add("found", finding.found)
                    .Add("advice", finding.advice));
      if (json()) continue;
      std::printf("%-8s %-14s %s\n", NameOf(finding.state), finding.name.c_str(),
                  finding.found.c_str());
      if (!finding.advice.empty())
        std::printf("%-8s %-14s then: %s\n", "", "", finding.advice.c_str());
    }
    if (json()) {
      std::puts(JsonObject().Add("ok", errors == 0).Add("findings", array).str().c_str());
    }
    return errors == 0 ? kExitOk : kExitFailure;
  }
};

}  // namespace

std::unique_ptr<Verb> MakeDoctorVerb() { return std::make_unique<DoctorVerb>(); }

}  // namespace cogumi::cli
