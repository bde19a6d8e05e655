#include "services/decoder/adapter_catalogue.h"

#include <algorithm>
#include <utility>

namespace cogumi::services {

void AdapterCatalogue::StreamBegan() {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++stream_;
}

std::vector<std::string> AdapterCatalogue::Apply(const v1::WatchResponse& change) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::string> dropped;
  const std::string& name = change.adapter().name();
  switch (change.type()) {
    case v1::CHANGE_TYPE_ADDED: {
      v1::Adapter& place = by_name_[name];
      if (!place.digest().empty() && place.digest() != change.adapter().digest()) {
        dropped.push_back(place.digest());
      }
      place = change.adapter();
      told_by_[name] = stream_;
      break;
    }
    case v1::CHANGE_TYPE_REMOVED:
      if (const auto it = by_name_.find(name); it != by_name_.end()) {
        dropped.push_back(it->second.digest());
        by_name_.erase(it);
        told_by_.erase(name);
      }
      break;
    case v1::CHANGE_TYPE_SYNCED:
      // What this stream did not tell went while nobody listened.
      for (auto it = by_name_.begin(); it != by_name_.end();) {
        if (told_by_[it->first] == stream_) {
          ++it;
          continue;
        }
        dropped.push_back(it->second.digest());
        told_by_.erase(it->first);
        it = by_name_.erase(it);
      }
      current_ = true;
      break;
    default:
      break;
  }
  std::erase_if(dropped, [this](const std::string& digest) { return Named(digest); });
  return dropped;
}

void AdapterCatalogue::StreamEnded() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (current_) last_current_ = clock_.Now();
  current_ = false;
}

bool AdapterCatalogue::Named(const std::string& digest) const {
  return std::any_of(by_name_.begin(), by_name_.end(),
                     [&digest](const auto& entry) { return entry.second.digest() == digest; });
}

std::optional<v1::Adapter> AdapterCatalogue::Find(const std::string& name_or_digest) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const auto it = by_name_.find(name_or_digest); it != by_name_.end()) return it->second;
  for (const auto& [name, adapter] : by_name_) {
    if (adapter.digest() == name_or_digest) return adapter;
  }
  return std::nullopt;
}

bool AdapterCatalogue::Gone(const std::string& digest) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return current_ && !Named(digest);
}

std::vector<v1::Adapter> AdapterCatalogue::List() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<v1::Adapter> list;
  for (const auto& [name, adapter] : by_name_) list.push_back(adapter);
  return list;
}

bool AdapterCatalogue::current() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return current_;
}

double AdapterCatalogue::Age() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return current_ ? 0 : clock_.Now() - last_current_;
}

}  // namespace cogumi::services
