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
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "services/cli/paths.h"

extern char** environ;

namespace cogumi::cli {

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
  auto stat = ReadFile(absl::StrCat("/proc/", pid, "/stat"));
  if (!stat.ok()) return false;
  const size_t name_end = stat->rfind(')');
  return name_end != std::string::npos && stat->compare(name_end, 3, ") Z") != 0;
}

std::optional<ProcessUsage> ReadUsage(int64_t pid) {
  auto stat = ReadFile(absl::StrCat("/proc/", pid, "/stat"));
  auto uptime = ReadFile("/proc/uptime");
  if (!stat.ok() || !uptime.ok()) return std::nullopt;
  // The command's name may hold spaces and brackets; what follows the last one is numbers.
  const size_t name_end = stat->rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  const std::vector<std::string> fields =
      absl::StrSplit(stat->substr(name_end + 2), ' ', absl::SkipEmpty());
  if (fields.size() < 22) return std::nullopt;
  const double ticks = static_cast<double>(::sysconf(_SC_CLK_TCK));
  ProcessUsage usage;
  usage.cpu_seconds =
      (std::strtod(fields[11].c_str(), nullptr) + std::strtod(fields[12].c_str(), nullptr)) / ticks;
  usage.uptime_seconds =
      std::strtod(uptime->c_str(), nullptr) - std::strtod(fields[19].c_str(), nullptr) / ticks;
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
