#include "services/cli/process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "services/cli/paths.h"

extern char** environ;

namespace cogumi::cli {
namespace {

// Of StatFields.
constexpr size_t kStartField = 19;

// /proc/PID/stat behind the command's name, which may hold spaces and brackets: the state, then
// numbers. Empty when there is no such process.
std::vector<std::string> StatFields(int64_t pid) {
  auto stat = ReadFile(absl::StrCat("/proc/", pid, "/stat"));
  const size_t name_end = stat.ok() ? stat->rfind(')') : std::string::npos;
  if (name_end == std::string::npos) return {};
  std::vector<std::string> fields =
      absl::StrSplit(stat->substr(name_end + 1), ' ', absl::SkipEmpty());
  return fields.size() < 22 ? std::vector<std::string>() : fields;
}

}  // namespace

Descriptor::~Descriptor() { Close(); }

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this != &other) {
    Close();
    fd_ = other.Release();
  }
  return *this;
}

int Descriptor::Release() {
  const int fd = fd_;
  fd_ = -1;
  return fd;
}

void Descriptor::Close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

absl::StatusOr<ChildProcess> Spawn(const std::string& path,
                                   const std::vector<std::string>& arguments,
                                   const std::string& log_path) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("pipe: ", std::strerror(errno)));
  }
  Descriptor read_end(ends[0]), write_end(ends[1]);
  ::fcntl(read_end.get(), F_SETFL, O_NONBLOCK);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), STDOUT_FILENO);
  if (!log_path.empty()) {
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, log_path.c_str(),
                                     O_WRONLY | O_CREAT | O_APPEND, 0600);
  }
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);

  std::vector<char*> argv;
  argv.push_back(const_cast<char*>(path.c_str()));
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);

  ChildProcess child;
  const int error =
      ::posix_spawn(&child.pid, path.c_str(), &actions, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    return absl::InternalError(absl::StrCat("starting ", path, ": ", std::strerror(error)));
  }
  child.output = std::move(read_end);
  return child;
}

std::optional<int> WaitForExit(pid_t pid, double seconds) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (true) {
    int status = 0;
    const pid_t ended = ::waitpid(pid, &status, WNOHANG);
    if (ended == pid) return status;
    if (ended < 0 && errno != EINTR) return 0;  // not ours, or waited for already
    if (std::chrono::steady_clock::now() >= deadline) return std::nullopt;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

std::string DescribeExit(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    const char* name = ::sigabbrev_np(WTERMSIG(wait_status));
    return absl::StrCat("killed by SIG", name == nullptr ? "?" : name);
  }
  return absl::StrCat("exit code ", WEXITSTATUS(wait_status));
}

bool IsAlive(int64_t pid) {
  // What has ended stays in the table until its parent looks; it is not alive.
  const auto fields = StatFields(pid);
  return !fields.empty() && fields[0] != "Z";
}

std::optional<int64_t> StartTicks(int64_t pid) {
  const auto fields = StatFields(pid);
  int64_t ticks = 0;
  if (fields.empty() || !absl::SimpleAtoi(fields[kStartField], &ticks)) return std::nullopt;
  return ticks;
}

std::optional<ProcessUsage> ReadUsage(int64_t pid) {
  const auto fields = StatFields(pid);
  auto uptime = ReadFile("/proc/uptime");
  if (fields.empty() || !uptime.ok()) return std::nullopt;
  const double ticks = static_cast<double>(::sysconf(_SC_CLK_TCK));
  ProcessUsage usage;
  usage.cpu_seconds =
      (std::strtod(fields[11].c_str(), nullptr) + std::strtod(fields[12].c_str(), nullptr)) / ticks;
  usage.uptime_seconds = std::strtod(uptime->c_str(), nullptr) -
                         std::strtod(fields[kStartField].c_str(), nullptr) / ticks;
  usage.resident_bytes = std::strtoll(fields[21].c_str(), nullptr, 10) * ::sysconf(_SC_PAGESIZE);
  return usage;
}

std::string TailOf(const std::string& path, int lines, const std::string& indent) {
  auto content = ReadFile(path);
  if (!content.ok()) return "";
  const std::vector<std::string> all = absl::StrSplit(absl::StripSuffix(*content, "\n"), '\n');
  const size_t wanted = static_cast<size_t>(lines);
  std::string text;
  for (size_t i = all.size() > wanted ? all.size() - wanted : 0; i < all.size(); ++i) {
    absl::StrAppend(&text, indent, all[i], "\n");
  }
  return text;
}

}  // namespace cogumi::cli
