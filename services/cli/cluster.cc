#include "services/cli/cluster.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "engine/core/clock.h"
#include "engine/core/status_macros.h"
#include "services/cli/paths.h"
#include "services/cli/verb.h"
#include "services/common/logging.h"

namespace cogumi::cli {
namespace {

namespace fs = std::filesystem;

constexpr double kFirstPause = 0.1, kLongestPause = 5;
// What a service without running calls gets to end by itself.
constexpr double kStopSeconds = 10;
// A service that has run so long starts again with the first pause.
constexpr double kStableSeconds = 10;

// What a cluster leaves behind when its supervisor is killed: the folder of its sockets.
void RemoveSockets(const ClusterRecord& record) {
  for (const auto& service : record.services) {
    if (!absl::StartsWith(service.address, "unix:")) continue;
    const fs::path folder = fs::path(service.address.substr(5)).parent_path();
    std::error_code error;
    if (absl::StartsWith(folder.filename().string(), kSocketFolderPrefix)) {
      fs::remove_all(folder, error);
    }
  }
}

double Now() { return Clock::Real()->Now(); }

// The value of "key=value" when the word is that.
bool TakeValue(const std::string& word, const std::string& key, std::string* value) {
  if (!absl::StartsWith(word, key + "=")) return false;
  *value = word.substr(key.size() + 1);
  return true;
}

}  // namespace

const services::ReadyLine* ClusterRecord::Service(const std::string& name) const {
  for (const auto& service : services) {
    if (service.service == name) return &service;
  }
  return nullptr;
}

std::string FormatClusterRecord(const ClusterRecord& record) {
  // The path comes last: it may hold spaces.
  std::string text = absl::StrCat("cluster supervisor=", record.supervisor, " mode=", record.mode,
                                  " started=", record.started, " model=", record.model, "\n");
  for (const auto& service : record.services) {
    absl::StrAppend(&text, services::FormatReadyLine(service), "\n");
  }
  return text;
}

absl::StatusOr<ClusterRecord> ParseClusterRecord(const std::string& text) {
  const std::vector<std::string> lines = absl::StrSplit(text, '\n', absl::SkipEmpty());
  ClusterRecord record;
  std::string supervisor, started;
  const std::vector<std::string> words = lines.empty()
                                             ? std::vector<std::string>()
                                             : absl::StrSplit(lines[0], absl::MaxSplits(' ', 4));
  if (words.size() != 5 || words[0] != "cluster" ||
      !TakeValue(words[1], "supervisor", &supervisor) ||
      !TakeValue(words[2], "mode", &record.mode) || !TakeValue(words[3], "started", &started) ||
      !TakeValue(words[4], "model", &record.model) ||
      !absl::SimpleAtoi(supervisor, &record.supervisor) ||
      !absl::SimpleAtoi(started, &record.started)) {
    return absl::InvalidArgumentError("this is no cluster record");
  }
  for (size_t i = 1; i < lines.size(); ++i) {
    ASSIGN_OR_RETURN(auto service, services::ParseReadyLine(lines[i]));
    record.services.push_back(std::move(service));
  }
  return record;
}

absl::Status WriteClusterRecord(ClusterRecord* record) {
  ASSIGN_OR_RETURN(const std::string folder, StateFolder("clusters"));
  record->path = absl::StrCat(folder, "/", record->supervisor);
  return WriteFileAtomically(record->path, FormatClusterRecord(*record));
}

std::vector<ClusterRecord> FindClusters() {
  std::vector<ClusterRecord> clusters;
  auto folder = StateFolder("clusters");
  if (!folder.ok()) return clusters;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(*folder, error)) {
    int64_t pid = 0;
    if (!absl::SimpleAtoi(entry.path().filename().string(), &pid)) continue;
    auto text = ReadFile(entry.path().string());
    if (!text.ok()) continue;
    auto record = ParseClusterRecord(*text);
    if (!IsAlive(pid)) {
      if (record.ok()) RemoveSockets(*record);
      fs::remove(entry.path(), error);
      continue;
    }
    if (!record.ok()) continue;
    record->path = entry.path().string();
    clusters.push_back(*std::move(record));
  }
  std::sort(clusters.begin(), clusters.end(), [](const auto& a, const auto& b) {
    return std::pair(a.started, a.supervisor) < std::pair(b.started, b.supervisor);
  });
  return clusters;
}

std::optional<ClusterRecord> FindServingCluster(const std::string& model_path) {
  for (ClusterRecord& record : FindClusters()) {
    const bool serves = record.mode == "serve" || record.mode == "split";
    if (serves && (model_path.empty() || record.model == model_path)) return std::move(record);
  }
  return std::nullopt;
}

absl::StatusOr<std::unique_ptr<Cluster>> Cluster::Start(const ClusterOptions& options) {
  std::unique_ptr<Cluster> cluster(new Cluster(options));
  RETURN_IF_ERROR(cluster->Prepare());
  // The gateway last: it finds the others on its first attempt instead of after a pause.
  for (const bool gateway : {false, true}) {
    for (Member& member : cluster->members_) {
      if ((member.name == "gateway") == gateway) RETURN_IF_ERROR(cluster->Launch(member));
    }
    RETURN_IF_ERROR(cluster->AwaitReady());
  }
  RETURN_IF_ERROR(cluster->Record());
  return cluster;
}

Cluster::~Cluster() { Stop(); }

absl::Status Cluster::Prepare() {
  ASSIGN_OR_RETURN(socket_folder_, MakeSocketFolder());
  RETURN_IF_ERROR(ShareStateFolder());
  auto socket = [&](const std::string& name) {
    return absl::StrCat("unix:", socket_folder_, "/", name);
  };
  auto add = [&](const std::string& name, std::vector<std::string> flags) {
    if (!options_.only.empty() && options_.only != name) return;
    Member member;
    member.name = name;
    member.flags = {"--parent-pid", absl::StrCat(::getpid())};
    member.flags.insert(member.flags.end(), flags.begin(), flags.end());
    if (options_.is_private) member.flags.insert(member.flags.end(), {"--metrics", ""});
    if (auto more = options_.flags.find(name); more != options_.flags.end()) {
      member.flags.insert(member.flags.end(), more->second.begin(), more->second.end());
    }
    if (options_.is_private) member.log_path = absl::StrCat(socket_folder_, "/", name, ".log");
    members_.push_back(std::move(member));
  };
  add("decoder", {"--listen", socket("decoder"), "--model", options_.model});
  add("router", {"--listen", socket("router")});
  std::vector<std::string> modifiers = {"--listen", socket("modifiers")};
  if (options_.is_private && options_.only.empty()) {
    // The catalogue has one owner, which this cluster must not become.
    modifiers.insert(modifiers.end(), {"--state-dir", absl::StrCat(socket_folder_, "/adapters")});
  }
  add("modifiers", std::move(modifiers));
  std::vector<std::string> gateway = {"--decoder", socket("decoder"), "--router", socket("router")};
  if (options_.is_private) {
    // Nobody else can reach the socket: no tokens, and sessions that end with the cluster.
    gateway.insert(gateway.end(), {"--listen", socket("gateway"), "--http", "", "--tokens", "",
                                   "--sessions", absl::StrCat(socket_folder_, "/sessions.db")});
  }
  add("gateway", std::move(gateway));
  record_.supervisor = ::getpid();
  record_.mode = options_.is_private ? "run" : "split";
  record_.model = options_.model;
  record_.started = static_cast<int64_t>(Clock::Real()->UnixNow());
  return absl::OkStatus();
}

absl::Status Cluster::Launch(Member& member) {
  ASSIGN_OR_RETURN(const std::string binary, SiblingBinary(absl::StrCat("cogumi-", member.name)));
  ASSIGN_OR_RETURN(member.child, Spawn(binary, member.flags, member.log_path));
  member.ready = false;
  member.output.clear();
  member.started = Now();
  return absl::OkStatus();
}

absl::StatusOr<bool> Cluster::ReadReady(Member& member) {
  char buffer[4096];
  while (true) {
    const ssize_t count = ::read(member.child.output.get(), buffer, sizeof(buffer));
    if (count < 0) return false;  // nothing more now
    if (count == 0) {
      member.child.output.Close();
      return absl::UnavailableError("it closed its output before it was ready");
    }
    member.output.append(buffer, static_cast<size_t>(count));
    size_t end;
    while ((end = member.output.find('\n')) != std::string::npos) {
      const std::string line = member.output.substr(0, end);
      member.output.erase(0, end + 1);
      auto ready = services::ParseReadyLine(line);
      if (!ready.ok()) continue;
      auto known = std::find_if(record_.services.begin(), record_.services.end(),
                                [&](const auto& s) { return s.service == member.name; });
      if (known == record_.services.end()) {
        record_.services.push_back(*std::move(ready));
      } else {
        *known = *std::move(ready);
      }
      member.ready = true;
      // Nothing else is expected there; a full pipe must not hold the service up.
      member.child.output.Close();
      return true;
    }
  }
}

absl::Status Cluster::Failure(const Member& member, const std::string& what) const {
  std::string text = absl::StrCat("cogumi-", member.name, " did not start: ", what);
  if (!member.log_path.empty()) {
    if (const std::string tail = TailOf(member.log_path, 12, "    "); !tail.empty()) {
      absl::StrAppend(&text, "; its last lines:\n", absl::StripSuffix(tail, "\n"));
    }
  }
  return WithAdvice(absl::UnavailableError(text), "`cogumi doctor` looks for what is wrong");
}

absl::Status Cluster::AwaitReady() {
  const double deadline = Now() + options_.ready_seconds;
  while (true) {
    std::vector<pollfd> waiting;
    std::vector<Member*> members;
    for (Member& member : members_) {
      if (member.ready || member.child.pid < 0) continue;
      waiting.push_back({member.child.output.get(), POLLIN, 0});
      members.push_back(&member);
    }
    if (waiting.empty()) break;
    const double left = deadline - Now();
    if (left <= 0) {
      return Failure(*members[0],
                     absl::StrCat("it was not ready within ", options_.ready_seconds, " s"));
    }
    const int ready =
        ::poll(waiting.data(), waiting.size(), static_cast<int>(std::max(1.0, left * 1000)));
    if (ready < 0 && errno != EINTR) {
      return absl::InternalError(absl::StrCat("poll: ", std::strerror(errno)));
    }
    for (size_t i = 0; i < waiting.size(); ++i) {
      if (waiting[i].revents == 0) continue;
      Member& member = *members[i];
      if (auto read = ReadReady(member); !read.ok()) {
        const auto status = WaitForExit(member.child.pid, 5);
        if (status.has_value()) member.child.pid = -1;
        return Failure(member, status.has_value() ? DescribeExit(*status)
                                                  : std::string(read.status().message()));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Cluster::Record() {
  std::sort(record_.services.begin(), record_.services.end(),
            [](const auto& a, const auto& b) { return a.service < b.service; });
  return WriteClusterRecord(&record_);
}

void Cluster::BlockSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGCHLD, SIGPIPE}) sigaddset(&set, signal);
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

void Cluster::Reap(double now) {
  for (Member& member : members_) {
    if (member.child.pid < 0) continue;
    int status = 0;
    if (::waitpid(member.child.pid, &status, WNOHANG) != member.child.pid) continue;
    member.child.pid = -1;
    member.child.output.Close();
    member.pause = now - member.started > kStableSeconds || member.pause == 0
                       ? kFirstPause
                       : std::min(kLongestPause, member.pause * 2);
    member.restart_at = now + member.pause;
    services::LogLine("supervisor",
                      absl::StrCat("cogumi-", member.name, " ended (", DescribeExit(status),
                                   "); it starts again in ", member.pause, " s"));
  }
}

absl::Status Cluster::Supervise() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&set, signal);
  const Descriptor signals(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals.valid()) {
    return absl::InternalError(absl::StrCat("signalfd: ", std::strerror(errno)));
  }
  bool stopping = false;
  Reap(Now());  // what ended before the descriptor existed
  while (!stopping) {
    double wake = -1;  // seconds until the next restart; negative: none
    std::vector<pollfd> waiting = {{signals.get(), POLLIN, 0}};
    std::vector<Member*> starting;
    for (Member& member : members_) {
      if (member.child.pid < 0) {
        const double left = std::max(0.0, member.restart_at - Now());
        wake = wake < 0 ? left : std::min(wake, left);
      } else if (!member.ready && member.child.output.valid()) {
        waiting.push_back({member.child.output.get(), POLLIN, 0});
        starting.push_back(&member);
      }
    }
    ::poll(waiting.data(), waiting.size(), wake < 0 ? -1 : static_cast<int>(wake * 1000) + 1);

    signalfd_siginfo info;
    while (::read(signals.get(), &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
      if (info.ssi_signo != SIGCHLD) stopping = true;
    }
    for (Member* member : starting) {
      if (auto ready = ReadReady(*member); ready.ok() && *ready) {
        services::LogLine("supervisor", absl::StrCat("cogumi-", member->name, " is ready again"));
        RETURN_IF_ERROR(Record());
      }
    }
    const double now = Now();
    Reap(now);
    for (Member& member : members_) {
      if (stopping || member.child.pid >= 0 || member.restart_at > now) continue;
      RETURN_IF_ERROR(Launch(member));
    }
  }
  services::LogLine("supervisor", "draining: running streams finish, new ones are refused");
  Drain(signals.get());
  Stop();
  return absl::OkStatus();
}

void Cluster::Drain(int signals) {
  for (Member& member : members_) {
    if (member.name != "gateway" || member.child.pid <= 0) continue;
    // How long its streams may take is the gateway's own option; a second signal cuts them off.
    ::kill(member.child.pid, SIGTERM);
    while (::waitpid(member.child.pid, nullptr, WNOHANG) == 0) {
      pollfd waiting = {signals, POLLIN, 0};
      ::poll(&waiting, 1, -1);
      signalfd_siginfo info;
      while (::read(signals, &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
        if (info.ssi_signo != SIGCHLD) ::kill(member.child.pid, SIGTERM);
      }
    }
    member.child.pid = -1;
  }
}

void Cluster::Stop() {
  if (stopped_) return;
  stopped_ = true;
  const double deadline = Now() + kStopSeconds;
  auto end = [&](bool gateway) {
    for (Member& member : members_) {
      if ((member.name == "gateway") == gateway && member.child.pid > 0) {
        ::kill(member.child.pid, SIGTERM);
      }
    }
    for (Member& member : members_) {
      if ((member.name == "gateway") != gateway || member.child.pid <= 0) continue;
      if (!WaitForExit(member.child.pid, std::max(0.0, deadline - Now())).has_value()) {
        ::kill(member.child.pid, SIGKILL);
        WaitForExit(member.child.pid, 5);
      }
      member.child.pid = -1;
    }
  };
  end(true);
  end(false);
  std::error_code error;
  if (!record_.path.empty()) fs::remove(record_.path, error);
  if (!socket_folder_.empty()) fs::remove_all(socket_folder_, error);
}

}  // namespace cogumi::cli
