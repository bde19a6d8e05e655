// What the catalogue of adapters says, as it is told by Watch. No gRPC.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cogumi/v1/modifiers.pb.h"
#include "engine/core/clock.h"

namespace cogumi::services {

// Thread-safe. A stream of changes begins with the whole catalogue and goes on with what changes;
// when it breaks, what was known stays, and the next one corrects it at its SYNCED.
class AdapterCatalogue {
 public:
  explicit AdapterCatalogue(const Clock& clock) : clock_(clock) {}

  void StreamBegan();
  // Digests that no name stands for any more.
  std::vector<std::string> Apply(const v1::WatchResponse& change);
  void StreamEnded();

  // By name, or by digest.
  std::optional<v1::Adapter> Find(const std::string& name_or_digest) const;
  // It is known that no name stands for these bytes.
  bool Gone(const std::string& digest) const;
  std::vector<v1::Adapter> List() const;
  // The stream runs and has told the whole catalogue: what is not here does not exist.
  bool current() const;
  // Seconds since it was current; 0 while it is, and since the start when it never was.
  double Age() const;

 private:
  // Under the lock.
  bool Named(const std::string& digest) const;

  const Clock& clock_;
  mutable std::mutex mutex_;
  std::map<std::string, v1::Adapter> by_name_;
  std::map<std::string, uint64_t> told_by_;  // name -> the stream that told of it last
  uint64_t stream_ = 0;
  bool current_ = false;
  double last_current_ = clock_.Now();
};

}  // namespace cogumi::services
