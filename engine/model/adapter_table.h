// The adapters that are in memory: by digest for requests, by index for steps.
//
// Whoever holds an AdapterRef keeps the adapter and its index, whatever happens to the name it came
// by: a request finishes on the version that it began with. What nobody holds stays resident until
// its bytes are needed, least recently used first. The budget counts every adapter in memory, those
// that were unloaded and are still held too, and is never exceeded. Thread-safe; an adapter
// is packed outside the lock.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "cogumi/types.h"
#include "engine/model/adapter.h"
#include "engine/model/config.h"

namespace cogumi {

struct ResidentAdapter {
  ~ResidentAdapter();

  std::string digest;
  std::unique_ptr<Adapter> adapter;
  int32_t index = -1;  // of StepSequence::adapter
  // Of the table that it was loaded into; given back at the end.
  std::shared_ptr<std::atomic<int64_t>> used_bytes;
  int64_t bytes = 0;
};
using AdapterRef = std::shared_ptr<const ResidentAdapter>;  // an AdapterLease

class AdapterTable {
 public:
  // The configuration must outlive the table.
  AdapterTable(const ModelConfig& config, LoraFormat format, int64_t budget_bytes);
  AdapterTable(const AdapterTable&) = delete;
  AdapterTable& operator=(const AdapterTable&) = delete;

  // Null when it is not resident.
  AdapterRef Find(const std::string& digest);
  // Makes it resident, or finds it so. Errors of Adapter::Create; RESOURCE_EXHAUSTED when the
  // budget does not hold it beside those that are in use, naming the numbers.
  absl::StatusOr<AdapterRef> Load(const std::string& digest, const AdapterFiles& files);
  // Requests that use it finish; others no longer find it. Unknown digests are ignored.
  void Unload(const std::string& digest);

  // Whether the reference is to an adapter of this table.
  bool Holds(const AdapterRef& adapter) const;
  // What a step with that index computes with: null when nobody holds it.
  const Adapter* At(int32_t index) const;

  // Of all its adapters.
  LoraFormat format() const { return format_; }
  // By digest.
  std::vector<AdapterInfo> List() const;
  AdapterStats Stats() const;

 private:
  struct Entry {
    std::shared_ptr<ResidentAdapter> resident;
    uint64_t used = 0;  // grows with every use
  };

  // Under the lock: takes out what must go so that `bytes` fit; false, and nothing goes, when they
  // cannot.
  bool Evict(int64_t bytes, std::vector<std::shared_ptr<ResidentAdapter>>* victims);

  const ModelConfig& config_;
  const LoraFormat format_;
  const int64_t budget_;
  const std::shared_ptr<std::atomic<int64_t>> used_bytes_;

  mutable std::mutex mutex_;
  std::unordered_map<std::string, Entry> entries_;
  std::vector<std::weak_ptr<const ResidentAdapter>> slots_;
  uint64_t uses_ = 0;
  uint64_t loads_ = 0;
  uint64_t evictions_ = 0;
};

}  // namespace cogumi
