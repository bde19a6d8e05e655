// Runs tasks one at a time, in order, on the threads that post them.
//
// A task posted while another runs (from any thread, also from inside that task) waits in the queue
// and is run by the thread that is at it: no lock is held while a task runs, so a task may call
// code that calls back at once, as gRPC's TryCancel may.
#pragma once

#include <deque>
#include <mutex>
#include <utility>

#include "absl/functional/any_invocable.h"

namespace cogumi::gateway {

class SerialQueue {
 public:
  using Task = absl::AnyInvocable<void()>;

  // The caller keeps the queue alive until Post returns.
  void Post(Task task) {
    {
      std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
      if (running_) return;
      running_ = true;
    }
    while (true) {
      Task next;
      {
        std::lock_guard lock(mutex_);
        if (tasks_.empty()) {
          running_ = false;
          return;
        }
        next = std::move(tasks_.front());
        tasks_.pop_front();
      }
      next();
    }
  }

 private:
  std::mutex mutex_;
  std::deque<Task> tasks_;
  bool running_ = false;
};

}  // namespace cogumi::gateway
