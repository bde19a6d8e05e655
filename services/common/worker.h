// One thread for work that is too long for a gRPC callback (a large prompt, a file), behind a
// bounded queue.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace cogumi::services {

class Worker {
 public:
  explicit Worker(size_t max_waiting);
  // Runs what waits, then ends.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // False when the queue is full: answer RESOURCE_EXHAUSTED.
  bool Post(std::function<void()> work);

 private:
  void Loop();

  const size_t max_waiting_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace cogumi::services
