// Makes small adapter folders, right ones and broken ones.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "services/modifiers/adapter.h"

namespace cogumi::services::test {

// A base of two layers, small enough for thousands of adapters.
BaseModel TinyBase();

struct AdapterParts {
  std::string config;  // adapter_config.json
  std::string card;    // card.json
  // Header entries by tensor name; data follows in this order.
  std::vector<std::pair<std::string, std::vector<int64_t>>> tensors;
  float value = 0.5f;  // of every weight
};

// A right adapter of rank 2 on q_proj and down_proj.
AdapterParts RightParts(const BaseModel& base);

// safetensors bytes: F32 tensors filled with `value`.
std::string MakeSafetensors(
    const std::vector<std::pair<std::string, std::vector<int64_t>>>& tensors, float value);
// Any header text in front of `data_bytes` zeros.
std::string WithHeader(const std::string& header, size_t data_bytes);

void WriteFile(const std::string& path, const std::string& content);
std::string ReadFile(const std::string& path);
// Writes the three files into a new folder.
void WriteAdapter(const std::string& folder, const AdapterParts& parts);

// An empty folder that is deleted at the end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace cogumi::services::test
