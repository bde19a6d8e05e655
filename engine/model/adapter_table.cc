#include "engine/model/adapter_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"

namespace cogumi {

ResidentAdapter::~ResidentAdapter() {
  adapter.reset();
  if (used_bytes != nullptr) used_bytes->fetch_sub(bytes);
}

AdapterTable::AdapterTable(const ModelConfig& config, LoraFormat format, int64_t budget_bytes)
    : config_(config),
      format_(format),
      budget_(budget_bytes),
      used_bytes_(std::make_shared<std::atomic<int64_t>>(0)) {}

AdapterRef AdapterTable::Find(const std::string& digest) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = entries_.find(digest);
  if (found == entries_.end()) return nullptr;
  found->second.used = ++uses_;
  return found->second.resident;
}

bool AdapterTable::Evict(int64_t bytes, std::vector<std::shared_ptr<ResidentAdapter>>* victims) {
  int64_t free = budget_ - used_bytes_->load();
  int64_t unused = 0;
  for (const auto& [digest, entry] : entries_) {
    if (entry.resident.use_count() == 1) unused += entry.resident->bytes;
  }
  if (free + unused < bytes) return false;
  while (free < bytes) {
    auto oldest = entries_.end();
    for (auto it = entries_.begin(); it != entries_.end(); ++it) {
      if (it->second.resident.use_count() > 1) continue;
      if (oldest == entries_.end() || it->second.used < oldest->second.used) oldest = it;
    }
    free += oldest->second.resident->bytes;
    victims->push_back(std::move(oldest->second.resident));
    entries_.erase(oldest);
  }
  return true;
}

absl::StatusOr<AdapterRef> AdapterTable::Load(const std::string& digest,
                                              const AdapterFiles& files) {
  if (AdapterRef resident = Find(digest)) return resident;
  ASSIGN_OR_RETURN(const int64_t bytes, Adapter::PackedBytes(files, config_, format_));
  auto loaded = std::make_shared<ResidentAdapter>();
  loaded->digest = digest;
  {
    std::vector<std::shared_ptr<ResidentAdapter>> victims;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!Evict(bytes, &victims)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("adapter ", digest, " takes ", bytes, " bytes; of adapter_bytes ", budget_,
                       ", adapters in use hold ", used_bytes_->load()));
    }
    evictions_ += victims.size();
    // Freed before the new one is counted: the sum stays within the budget.
    victims.clear();
    used_bytes_->fetch_add(bytes);
    loaded->used_bytes = used_bytes_;
    loaded->bytes = bytes;
  }
  ASSIGN_OR_RETURN(loaded->adapter, Adapter::Create(files, config_, format_));
  const std::lock_guard<std::mutex> lock(mutex_);
  Entry& entry = entries_[digest];
  entry.used = ++uses_;
  if (entry.resident != nullptr) return AdapterRef(entry.resident);  // another caller was faster
  auto slot =
      std::find_if(slots_.begin(), slots_.end(), [](const auto& taken) { return taken.expired(); });
  if (slot == slots_.end()) slot = slots_.insert(slot, std::weak_ptr<const ResidentAdapter>());
  loaded->index = static_cast<int32_t>(slot - slots_.begin());
  *slot = loaded;
  entry.resident = loaded;
  ++loads_;
  return AdapterRef(loaded);
}

void AdapterTable::Unload(const std::string& digest) {
  std::shared_ptr<ResidentAdapter> last;  // freed outside the lock
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = entries_.find(digest);
  if (found == entries_.end()) return;
  last = std::move(found->second.resident);
  entries_.erase(found);
}

bool AdapterTable::Holds(const AdapterRef& adapter) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto index = static_cast<size_t>(adapter->index);
  return index < slots_.size() && slots_[index].lock() == adapter;
}

const Adapter* AdapterTable::At(int32_t index) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (index < 0 || static_cast<size_t>(index) >= slots_.size()) return nullptr;
  // The caller's plan holds a reference, so the adapter outlives this one.
  const AdapterRef resident = slots_[static_cast<size_t>(index)].lock();
  return resident == nullptr ? nullptr : resident->adapter.get();
}

std::vector<AdapterInfo> AdapterTable::List() const {
  std::vector<AdapterInfo> list;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [digest, entry] : entries_) {
      list.push_back({digest, entry.resident->adapter->rank(), entry.resident->bytes});
    }
  }
  std::sort(list.begin(), list.end(),
            [](const AdapterInfo& a, const AdapterInfo& b) { return a.digest < b.digest; });
  return list;
}

AdapterStats AdapterTable::Stats() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  AdapterStats stats;
  stats.resident = static_cast<int32_t>(entries_.size());
  stats.bytes = used_bytes_->load();
  stats.budget_bytes = budget_;
  stats.loads = loads_;
  stats.evictions = evictions_;
  return stats;
}

}  // namespace cogumi
