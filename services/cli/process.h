// Child processes.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace cogumi::cli {

// A pipe's end or another descriptor, closed with its owner.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept : fd_(other.Release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int Release();
  void Close();

 private:
  int fd_ = -1;
};

struct ChildProcess {
  pid_t pid = -1;
  Descriptor output;  // its standard output, not blocking
};

// Starts `path` with `arguments` (without argv[0]) in a process group of its own, so that Ctrl-C on
// the terminal reaches us only, with an empty signal mask. Standard error goes to `log_path`
// (appended) or, when empty, to ours; standard input is /dev/null.
absl::StatusOr<ChildProcess> Spawn(const std::string& path,
                                   const std::vector<std::string>& arguments,
                                   const std::string& log_path);

// Waits at most `seconds` for the end of a child; its wait status, or nothing when it still runs.
std::optional<int> WaitForExit(pid_t pid, double seconds);
// "exit code 1", "killed by SIGKILL".
std::string DescribeExit(int wait_status);

// True while a process with this id runs.
bool IsAlive(int64_t pid);
// When it started, in clock ticks since the boot; nothing when there is no such process. With its
// id it names one process.
std::optional<int64_t> StartTicks(int64_t pid);

struct ProcessUsage {
  int64_t resident_bytes = 0;
  double cpu_seconds = 0;
  double uptime_seconds = 0;
};
// From /proc; nothing when there is no such process.
std::optional<ProcessUsage> ReadUsage(int64_t pid);

// The last `lines` lines of a file, each with `indent` before it.
std::string TailOf(const std::string& path, int lines, const std::string& indent);

}  // namespace cogumi::cli
