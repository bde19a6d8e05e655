// One adapter's folder: its files, checked against the base model.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cogumi/v1/modifiers.pb.h"
#include "services/modifiers/base_model.h"

namespace cogumi::services {

inline constexpr char kConfigFile[] = "adapter_config.json";
inline constexpr char kCardFile[] = "card.json";
inline constexpr char kWeightsFile[] = "adapter_model.safetensors";
// Sorted: the order of the adapter's digest.
inline constexpr const char* kAdapterFiles[] = {kConfigFile, kWeightsFile, kCardFile};
inline constexpr uint64_t kMaxJsonBytes = 64 * 1024;
inline constexpr uint64_t kMaxWeightsBytes = 1ULL << 30;

bool IsValidAdapterName(std::string_view name);  // ^[a-z0-9][a-z0-9._-]{0,63}$
bool IsValidDigest(std::string_view digest);     // ^[0-9a-f]{64}$

// SHA-256 over "<digest>  <name>\n" of the sorted files.
std::string AdapterDigest(const std::vector<v1::AdapterFile>& files);

// Reads and checks the folder's three files: digests, PEFT options, card, tensor names, shapes and
// that every weight is finite. Fills all of the adapter but name and registered_ms.
// Errors name the file and what is wrong in it; FAILED_PRECONDITION when the card names another
// base.
absl::StatusOr<v1::Adapter> InspectAdapter(const std::string& folder, const BaseModel& base);

}  // namespace cogumi::services
