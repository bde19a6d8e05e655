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
#include "services/common/config.h"
#include "services/common/logging.h"

namespace cogumi::cli {
namespace {

namespace fs = std::filesystem;

constexpr double kFirstPause = 0.1, kLongestPause = 5;
// What a service without running calls gets to end by itself.
constexpr double kStopSeconds = 10;
// What the gateway gets to cut its streams off after a second signal.
constexpr double kCutSeconds = 5;
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

// The program of a process, or "". A file that was replaced since has another name here.
std::string ProgramOf(const std::string& pid) {
  std::error_code error;
  return fs::read_symlink(absl::StrCat("/proc/", pid, "/exe"), error).string();
}

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
  // Paths end their lines: they may hold spaces.
  std::string text = absl::StrCat("cluster supervisor=", record.supervisor, " mode=", record.mode,
                                  " started=", record.started, " ticks=", record.start_ticks,
                                  " version=", record.version, " model=", record.model,
                                  "\nbinary=", record.binary, "\n");
  for (const auto& service : record.services) {
    absl::StrAppend(&text, services::FormatReadyLine(service), "\n");
  }
  return text;
}

absl::StatusOr<ClusterRecord> ParseClusterRecord(const std::string& text) {
  const std::vector<std::string> lines = absl::StrSplit(text, '\n', absl::SkipEmpty());
  ClusterRecord record;
  std::string supervisor, started, ticks;
  const std::vector<std::string> words = lines.size() < 2
                                             ? std::vector<std::string>()
                                             : absl::StrSplit(lines[0], absl::MaxSplits(' ', 6));
  if (words.size() != 7 || words[0] != "cluster" ||
      !TakeValue(words[1], "supervisor", &supervisor) ||
      !TakeValue(words[2], "mode", &record.mode) || !TakeValue(words[3], "started", &started) ||
      !TakeValue(words[4], "ticks", &ticks) || !TakeValue(words[5], "version", &record.version) ||
      !TakeValue(words[6], "model", &record.model) ||
      !TakeValue(lines[1], "binary", &record.binary) ||
      !absl::SimpleAtoi(supervisor, &record.supervisor) ||
      !absl::SimpleAtoi(started, &record.started) ||
      !absl::SimpleAtoi(ticks, &record.start_ticks)) {
    return absl::InvalidArgumentError("this is no cluster record");
  }
  for (size_t i = 2; i < lines.size(); ++i) {
    ASSIGN_OR_RETURN(auto service, services::ParseReadyLine(lines[i]));
    record.services.push_back(std::move(service));
  }
  return record;
}

ClusterRecord RecordOfThisProcess(const std::string& mode, const std::string& model) {
  ClusterRecord record;
  record.supervisor = ::getpid();
  record.mode = mode;
  record.started = static_cast<int64_t>(Clock::Real()->UnixNow());
  record.start_ticks = StartTicks(record.supervisor).value_or(0);
  record.version = services::Version();
  record.binary = ProgramOf("self");
  record.model = model;
  return record;
}

bool IsRunning(const ClusterRecord& record) {
  return IsAlive(record.supervisor) && StartTicks(record.supervisor) == record.start_ticks;
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
    if (record.ok() ? !IsRunning(*record) : !IsAlive(pid)) {
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

std::optional<ClusterRecord> FindServingCluster(const std::string& model_path, bool this_build) {
  const std::string own = ProgramOf("self");
  for (ClusterRecord& record : FindClusters()) {
    if (record.mode != "serve" && record.mode != "split") continue;
    if (!model_path.empty() && record.model != model_path) continue;
    // The link of a program that was built anew no longer names a file.
    const bool same = record.version == services::Version() && record.binary == own &&
                      ProgramOf(absl::StrCat(record.supervisor)) == own;
    if (same || !this_build) return std::move(record);
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
  auto add = [&](const std::string& name, const std::vector<std::string>& flags) {
    if (!options_.only.empty() && options_.only != name) return;
    Member member;
    member.name = name;
    const auto given = options_.addresses.find(name);
    member.address = given != options_.addresses.end()
                         ? given->second
                         : absl::StrCat("unix:", socket_folder_, "/", name);
    member.flags = {"--parent-pid", absl::StrCat(::getpid())};
    if (options_.is_private) {
      member.flags.insert(member.flags.end(), {"--metrics", ""});
      member.log_path = absl::StrCat(socket_folder_, "/", name, ".log");
    }
    if (auto more = options_.flags.find(name); more != options_.flags.end()) {
      member.flags.insert(member.flags.end(), more->second.begin(), more->second.end());
    }
    member.flags.insert(member.flags.end(), flags.begin(), flags.end());
    members_.push_back(std::move(member));
  };
  add("decoder", {"--model", options_.model});
  add("router", {});
  std::vector<std::string> modifiers;
  if (!options_.adapter_base.empty()) modifiers = {"--base.model", options_.adapter_base};
  if (options_.is_private && options_.only.empty()) {
    // The catalogue has one owner, which this cluster must not become.
    modifiers.insert(modifiers.end(), {"--state-dir", absl::StrCat(socket_folder_, "/adapters")});
  }
  add("modifiers", modifiers);
  std::vector<std::string> gateway;
  if (options_.is_private) {
    // Nobody else can reach the socket: no tokens.
    gateway = {"--http", "", "--tokens", ""};
    if (!options_.keep_sessions) {
      gateway.insert(gateway.end(), {"--sessions", absl::StrCat(socket_folder_, "/sessions.db")});
    }
  }
  add("gateway", gateway);
  record_ = RecordOfThisProcess(options_.is_private ? "run" : "split", options_.model);
  return absl::OkStatus();
}

// Addresses come last, so that they are those that the rest of the cluster uses.
std::vector<std::string> Cluster::FlagsOf(const Member& member) const {
  std::vector<std::string> flags = member.flags;
  if (member.name != "gateway") {
    flags.insert(flags.end(), {"--listen", member.address});
    if (member.name == "decoder") {
      // A cluster of the decoder alone has no catalogue to follow.
      const auto catalogue =
          std::find_if(members_.begin(), members_.end(),
                       [](const Member& other) { return other.name == "modifiers"; });
      flags.insert(flags.end(),
                   {"--modifiers", catalogue != members_.end() ? catalogue->address : ""});
    }
    return flags;
  }
  if (options_.is_private) flags.insert(flags.end(), {"--listen", member.address});
  for (const Member& other : members_) {
    if (other.name == "gateway") continue;
    const auto elsewhere = options_.backends.find(other.name);
    flags.insert(flags.end(),
                 {absl::StrCat("--", other.name),
                  elsewhere != options_.backends.end() ? elsewhere->second : other.address});
  }
  return flags;
}

absl::Status Cluster::Launch(Member& member) {
  ASSIGN_OR_RETURN(const std::string binary, SiblingBinary(absl::StrCat("cogumi-", member.name)));
  ASSIGN_OR_RETURN(member.child, Spawn(binary, FlagsOf(member), member.log_path));
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
      // The gateway knows this address: the next start must not choose another port.
      if (member.name != "gateway" && !ready->address.empty()) member.address = ready->address;
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
    if (now - member.started > kStableSeconds) member.pause = 0;
    Delay(member, now);
    services::LogLine("supervisor",
                      absl::StrCat("cogumi-", member.name, " ended (", DescribeExit(status),
                                   "); it starts again in ", member.pause, " s"));
  }
}

void Cluster::Delay(Member& member, double now) {
  member.pause = member.pause == 0 ? kFirstPause : std::min(kLongestPause, member.pause * 2);
  member.restart_at = now + member.pause;
}

void Cluster::Relaunch(Member& member, double now) {
  const absl::Status launched = Launch(member);
  if (launched.ok()) return;
  Delay(member, now);
  services::LogLine("supervisor",
                    absl::StrCat("cogumi-", member.name, " cannot start: ", launched.message(),
                                 "; it is tried again in ", member.pause, " s"));
}

void Cluster::TryRecord(double now) {
  const absl::Status recorded = Record();
  record_at_ = recorded.ok() ? 0 : now + kLongestPause;
  if (recorded.ok()) return;
  services::LogLine("supervisor", absl::StrCat("the cluster's record: ", recorded.message(),
                                               "; it is tried again in ", kLongestPause, " s"));
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
    double wake = -1;  // seconds until there is something to do; negative: nothing
    if (record_at_ > 0) wake = std::max(0.0, record_at_ - Now());
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
        TryRecord(Now());
      }
    }
    const double now = Now();
    if (record_at_ > 0 && record_at_ <= now) TryRecord(now);
    Reap(now);
    for (Member& member : members_) {
      if (stopping || member.child.pid >= 0 || member.restart_at > now) continue;
      Relaunch(member, now);
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
    double deadline = 0;  // set by the second signal
    while (::waitpid(member.child.pid, nullptr, WNOHANG) == 0) {
      const double left = deadline - Now();
      if (deadline > 0 && left <= 0) {
        services::LogLine("supervisor", "cogumi-gateway does not end; it is killed");
        ::kill(member.child.pid, SIGKILL);
        WaitForExit(member.child.pid, kCutSeconds);
        break;
      }
      pollfd waiting = {signals, POLLIN, 0};
      ::poll(&waiting, 1, deadline > 0 ? static_cast<int>(left * 1000) + 1 : -1);
      signalfd_siginfo info;
      while (::read(signals, &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
        if (info.ssi_signo == SIGCHLD) continue;
        ::kill(member.child.pid, SIGTERM);
        if (deadline == 0) deadline = Now() + kCutSeconds;
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
