// What operators may ask about recent requests: a bounded ring of ExplainResponse, without text.
#pragma once

#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "cogumi/v1/gateway.pb.h"

namespace cogumi::gateway {

class ExplainLog {
 public:
  explicit ExplainLog(size_t capacity) : capacity_(capacity) {}

  // The oldest record goes when the log is full.
  void Add(cogumi::v1::ExplainResponse record) {
    std::lock_guard lock(mutex_);
    if (records_.size() >= capacity_) records_.pop_front();
    records_.push_back(std::move(record));
  }

  // The assessment comes after the answer; it finds its record by id and time of creation.
  void SetConfidence(const std::string& request_id, int64_t created_ms,
                     cogumi::v1::AssessResponse confidence) {
    std::lock_guard lock(mutex_);
    for (auto it = records_.rbegin(); it != records_.rend(); ++it) {
      if (it->request_id() != request_id || it->created_ms() != created_ms) continue;
      *it->mutable_confidence() = std::move(confidence);
      return;
    }
  }

  // The newest of that id: callers choose request ids and may repeat them.
  std::optional<cogumi::v1::ExplainResponse> Find(const std::string& request_id) const {
    std::lock_guard lock(mutex_);
    for (auto it = records_.rbegin(); it != records_.rend(); ++it) {
      if (it->request_id() == request_id) return *it;
    }
    return std::nullopt;
  }

 private:
  const size_t capacity_;
  mutable std::mutex mutex_;
  std::deque<cogumi::v1::ExplainResponse> records_;
};

}  // namespace cogumi::gateway
