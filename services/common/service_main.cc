// The process around a service: signals, configuration, the ready line, drain.
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "services/common/logging.h"
#include "services/common/server.h"
#include "services/common/text.h"

namespace cogumi::services {
namespace {

sigset_t StopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

// Ends this process with its supervisor. The signal would be missed when the parent died before
// the call, hence the look at who the parent is now.
absl::Status FollowParent(int32_t parent_pid) {
  if (parent_pid == 0) return absl::OkStatus();
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent_pid) {
    return absl::FailedPreconditionError(
        Cat("parent_pid: process ", parent_pid, " is not the parent"));
  }
  return absl::OkStatus();
}

absl::Status WriteReadyFile(const std::string& path, const std::string& line) {
  const std::string temporary = Cat(path, ".", getpid(), ".tmp");
  {
    std::ofstream file(temporary, std::ios::trunc);
    file << line << "\n";
    file.close();
    if (!file) return absl::UnavailableError(Cat("ready_file: cannot write ", temporary));
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    std::remove(temporary.c_str());
    return absl::UnavailableError(Cat("ready_file: cannot write ", path));
  }
  return absl::OkStatus();
}

int Fail(const std::string& program, const absl::Status& status, int code) {
  FlushLog();
  std::fprintf(stderr, "%s: %s\n", program.c_str(), std::string(status.message()).c_str());
  return code;
}

}  // namespace

std::string FormatReadyLine(const ReadyLine& line) {
  std::string text = Cat("ready service=", line.service, " address=", line.address);
  if (!line.metrics.empty()) text += Cat(" metrics=", line.metrics);
  for (const auto& [key, value] : line.extra) text += Cat(" ", key, "=", value);
  text += Cat(" pid=", line.pid);
  return text;
}

absl::StatusOr<ReadyLine> ParseReadyLine(std::string_view text) {
  const std::vector<std::string> words = absl::StrSplit(
      absl::string_view(text.data(), text.size()), absl::ByAnyChar(" \r\n"), absl::SkipEmpty());
  if (words.empty() || words[0] != "ready") {
    return absl::InvalidArgumentError("not a ready line");
  }
  ReadyLine line;
  for (size_t i = 1; i < words.size(); ++i) {
    const size_t equals = words[i].find('=');
    if (equals == std::string::npos) {
      return absl::InvalidArgumentError(Cat("ready line: \"", words[i], "\" has no ="));
    }
    const std::string key = words[i].substr(0, equals);
    std::string value = words[i].substr(equals + 1);
    if (key == "service") {
      line.service = std::move(value);
    } else if (key == "address") {
      line.address = std::move(value);
    } else if (key == "metrics") {
      line.metrics = std::move(value);
    } else if (key == "pid") {
      if (!absl::SimpleAtoi(value, &line.pid)) {
        return absl::InvalidArgumentError(Cat("ready line: pid ", value));
      }
    } else {
      line.extra.emplace_back(key, std::move(value));
    }
  }
  if (line.service.empty() || line.pid <= 0) {
    return absl::InvalidArgumentError("ready line without service or pid");
  }
  return line;
}

void WaitForCalls(ServiceRuntime& runtime, SignalWaiter& signals, double grace) {
  constexpr double kSlice = 0.02;
  const int64_t slices = std::llround(grace / kSlice);
  for (int64_t i = 0; i < slices; ++i) {
    if (runtime.calls.WaitIdle(kSlice)) return;
    if (signals.Wait(0) != 0) {
      LogLine(runtime.name, "second signal: cutting off running calls");
      return;
    }
  }
}

SignalWaiter::SignalWaiter() {
  const sigset_t set = StopSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

int SignalWaiter::Wait(double seconds) {
  const sigset_t set = StopSignals();
  if (seconds < 0) {
    int number = 0;
    sigwait(&set, &number);
    return number;
  }
  timespec wait{};
  wait.tv_sec = static_cast<time_t>(seconds);
  wait.tv_nsec = static_cast<long>((seconds - std::floor(seconds)) * 1e9);
  int number = 0;
  do {
    number = sigtimedwait(&set, nullptr, &wait);
  } while (number < 0 && errno == EINTR);
  return number > 0 ? number : 0;
}

int ServiceMain(int argc, char** argv, const ServiceMainOptions& options) {
  SignalWaiter signals;
  const ConfigRequest request{options.program, options.description, {options.options}, argc, argv,
                              nullptr};
  const absl::StatusOr<ConfigOutcome> outcome = LoadConfig(request);
  if (!outcome.ok()) return Fail(options.program, outcome.status(), 2);
  if (*outcome == ConfigOutcome::kExit) return 0;
  const absl::Status followed = FollowParent(options.server->parent_pid);
  if (!followed.ok()) return Fail(options.program, followed, 2);

  absl::StatusOr<std::unique_ptr<RunningService>> service = options.start();
  if (!service.ok()) {
    return Fail(options.program, service.status(),
                absl::IsInvalidArgument(service.status()) ? 2 : 1);
  }
  ServiceHost& host = (*service)->host();
  const std::string& name = host.runtime().name;
  ReadyLine ready{name, host.address(), host.metrics_address(), {}, getpid()};
  if (options.ready) options.ready(**service, &ready);
  const std::string line = FormatReadyLine(ready);
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
  if (!options.server->ready_file.empty()) {
    const absl::Status written = WriteReadyFile(options.server->ready_file, line);
    if (!written.ok()) return Fail(options.program, written, 1);
  }
  LogLine(name, Cat("started, version ", Version(), ", ", line));

  const int number = signals.Wait();
  LogLine(name, Cat("signal ", number, ": draining"));
  host.StartDraining();
  (*service)->OnDrain();
  WaitForCalls((*service)->host().runtime(), signals, options.server->drain_grace);
  const absl::Status drained = host.Drain(0);
  if (!options.server->ready_file.empty()) std::remove(options.server->ready_file.c_str());
  LogLine(name, drained.ok() ? "stopped" : Cat("stopped: ", drained.message()));
  service->reset();
  FlushLog();
  return drained.ok() ? 0 : 1;
}

}  // namespace cogumi::services
