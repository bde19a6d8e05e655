// Memory that lives and dies as a whole.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace cogumi {

// Anonymous memory with huge pages where the system has them (+3-5 % of bandwidth).
class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  // RESOURCE_EXHAUSTED. Once.
  absl::Status Reserve(size_t bytes);
  // 64-byte aligned, within what was reserved.
  uint8_t* Take(size_t bytes);
  size_t bytes() const { return bytes_; }
  static size_t Rounded(size_t bytes) { return (bytes + 63) & ~static_cast<size_t>(63); }
  // What Reserve takes from the system.
  static size_t Reserved(size_t bytes);

 private:
  uint8_t* base_ = nullptr;
  size_t bytes_ = 0;
  size_t used_ = 0;
};

}  // namespace cogumi
