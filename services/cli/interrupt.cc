#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <mutex>
#include <thread>
#include <utility>

#include "services/cli/client.h"

namespace cogumi::cli {
namespace {

// A handler may only write to a pipe; a thread does the rest.
std::atomic<int> g_pipe{-1};

void Handle(int) {
  const int saved = errno;
  const char byte = 'i';
  if (const int fd = g_pipe.load(); fd >= 0) {
    [[maybe_unused]] const ssize_t written = ::write(fd, &byte, 1);
  }
  errno = saved;
}

}  // namespace

struct InterruptGuard::Impl {
  int ends[2] = {-1, -1};
  struct sigaction before = {};
  std::thread watcher;
  std::mutex mutex;
  bool interrupted = false;
  std::function<void()> callback;
};

InterruptGuard::InterruptGuard() : impl_(std::make_unique<Impl>()) {
  if (::pipe2(impl_->ends, O_CLOEXEC) != 0) return;  // Ctrl-C then ends the program, as ever
  g_pipe = impl_->ends[1];
  impl_->watcher = std::thread([impl = impl_.get()] {
    char byte = 0;
    while (::read(impl->ends[0], &byte, 1) == 1 && byte == 'i') {
      // Under the lock: whoever takes the callback back may then destroy what it uses.
      std::lock_guard<std::mutex> lock(impl->mutex);
      impl->interrupted = true;
      if (const auto call = std::exchange(impl->callback, nullptr)) call();
    }
  });
  struct sigaction action = {};
  action.sa_handler = Handle;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, &impl_->before);
}

InterruptGuard::~InterruptGuard() {
  if (!impl_->watcher.joinable()) return;
  ::sigaction(SIGINT, &impl_->before, nullptr);
  g_pipe = -1;
  const char stop = 's';
  [[maybe_unused]] const ssize_t written = ::write(impl_->ends[1], &stop, 1);
  impl_->watcher.join();
  ::close(impl_->ends[0]);
  ::close(impl_->ends[1]);
}

bool InterruptGuard::interrupted() const {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  return impl_->interrupted;
}

void InterruptGuard::OnInterrupt(std::function<void()> callback) {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  if (impl_->interrupted && callback) {
    callback();
  } else {
    impl_->callback = std::move(callback);
  }
}

}  // namespace cogumi::cli
