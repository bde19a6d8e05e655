#include "services/modifiers/adapter.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <utility>

#include "engine/core/sha256.h"
#include "engine/core/status_macros.h"
#include "engine/io/json.h"
#include "engine/io/lora_tensors.h"
#include "services/common/config.h"
#include "services/common/text.h"
#include "services/modifiers/files.h"

namespace cogumi::services {
namespace {

constexpr size_t kBlock = 1 << 20;
constexpr size_t kMaxDescriptionBytes = 2048;
constexpr size_t kMaxLicenseBytes = 128;

absl::Status InFile(const char* file, const absl::Status& status) {
  return absl::Status(status.code(), Cat(file, ": ", status.message()));
}

// --- card.json -----------------------------------------------------------------------------------

struct Card {
  std::string domain;
  std::string base_digest;
  std::string license;
  std::string description;
};

absl::StatusOr<Card> ParseCard(std::string_view text) {
  const auto bad = [](const std::string& what) {
    return absl::InvalidArgumentError(Cat(kCardFile, ": ", what));
  };
  auto root = ParseJson(text, {});
  if (!root.ok()) return InFile(kCardFile, root.status());
  if (root->object() == nullptr) return bad("no object");
  Card card;
  const std::vector<std::pair<std::string, std::string*>> fields = {
      {"domain", &card.domain},
      {"base_digest", &card.base_digest},
      {"license", &card.license},
      {"description", &card.description}};
  std::vector<std::string> known;
  known.reserve(fields.size());
  for (const auto& [name, target] : fields) known.push_back(name);
  for (const auto& [name, value] : *root->object()) {
    const auto field = std::find_if(fields.begin(), fields.end(),
                                    [&key = name](const auto& f) { return f.first == key; });
    if (field == fields.end()) {
      const std::string suggestion = Suggest(name, known);
      return bad(Cat("unknown key ", ToValidUtf8(TruncateUtf8(name, 60)),
                     suggestion.empty() ? "" : Cat("; did you mean ", suggestion, "?")));
    }
    if (value.string() == nullptr) return bad(Cat(name, ": a text is wanted"));
    *field->second = ToValidUtf8(*value.string());
  }
  static constexpr std::string_view kDomains[] = {"code", "reasoning", "automation", "general"};
  if (std::find(std::begin(kDomains), std::end(kDomains), card.domain) == std::end(kDomains)) {
    return bad("domain: one of code, reasoning, automation, general is wanted");
  }
  if (!IsValidDigest(card.base_digest)) {
    return bad("base_digest: the SHA-256 of the base model's file in lower-case hex is wanted");
  }
  if (card.license.empty() || card.license.size() > kMaxLicenseBytes) {
    return bad(Cat("license: 1 to ", kMaxLicenseBytes, " bytes are wanted"));
  }
  if (card.description.size() > kMaxDescriptionBytes) {
    return bad(Cat("description: ", card.description.size(), " bytes, at most ",
                   kMaxDescriptionBytes, " are taken"));
  }
  return card;
}

// --- weights -------------------------------------------------------------------------------------

// True when every exponent is below all ones.
bool AllFinite(TensorType type, const char* data, size_t bytes) {
  if (type == TensorType::kF32) {
    for (size_t i = 0; i + 4 <= bytes; i += 4) {
      uint32_t bits = 0;
      std::memcpy(&bits, data + i, sizeof(bits));
      if ((bits & 0x7F800000u) == 0x7F800000u) return false;
    }
    return true;
  }
  const uint16_t mask = type == TensorType::kF16 ? 0x7C00 : 0x7F80;
  for (size_t i = 0; i + 2 <= bytes; i += 2) {
    uint16_t bits = 0;
    std::memcpy(&bits, data + i, sizeof(bits));
    if ((bits & mask) == mask) return false;
  }
  return true;
}

// Reads the whole file once: checks, and returns its digest and the number of weights.
absl::StatusOr<std::pair<std::string, int64_t>> InspectWeights(const File& file,
                                                               const PeftConfig& config,
                                                               const BaseModel& base) {
  static_assert(std::endian::native == std::endian::little, "safetensors are little-endian");
  std::string first(std::min<uint64_t>(8, file.bytes()), '\0');
  RETURN_IF_ERROR(file.Read(0, first.size(), first.data()));
  const auto length = SafetensorsHeaderLength(first, file.bytes());
  if (!length.ok()) return InFile(kWeightsFile, length.status());
  std::string json(*length, '\0');
  RETURN_IF_ERROR(file.Read(first.size(), json.size(), json.data()));
  const auto header = ParseSafetensorsHeader(json, file.bytes());
  if (!header.ok()) return InFile(kWeightsFile, header.status());
  const auto tensors = FindLoraTensors(*header, config, base.shape());
  if (!tensors.ok()) return InFile(kWeightsFile, tensors.status());

  Sha256 digest;
  digest.Update(std::string_view(first));
  digest.Update(std::string_view(json));
  int64_t weights = 0;
  std::vector<char> block(kBlock);
  for (const TensorEntry& tensor : header->tensors) {
    for (uint64_t at = tensor.begin; at < tensor.end;) {
      const auto size = static_cast<size_t>(std::min<uint64_t>(kBlock, tensor.end - at));
      RETURN_IF_ERROR(file.Read(at, size, block.data()));
      if (!AllFinite(tensor.type, block.data(), size)) {
        return absl::InvalidArgumentError(
            Cat(kWeightsFile, ": tensor ", tensor.name, " holds a value that is not finite"));
      }
      digest.Update(std::string_view(block.data(), size));
      at += size;
    }
    weights += static_cast<int64_t>(tensor.end - tensor.begin) / BytesOf(tensor.type);
  }
  return std::make_pair(digest.Finish(), weights);
}

void AddFile(const char* name, uint64_t bytes, std::string digest, v1::Adapter* adapter) {
  v1::AdapterFile* file = adapter->add_files();
  file->set_name(name);
  file->set_bytes(static_cast<int64_t>(bytes));
  file->set_digest(std::move(digest));
  adapter->set_bytes(adapter->bytes() + static_cast<int64_t>(bytes));
}

}  // namespace

bool IsValidAdapterName(std::string_view name) {
  const auto is_first = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  return !name.empty() && name.size() <= 64 && is_first(name[0]) &&
         std::all_of(name.begin(), name.end(),
                     [&](char c) { return is_first(c) || c == '.' || c == '_' || c == '-'; });
}

bool IsValidDigest(std::string_view digest) {
  return digest.size() == 64 && std::all_of(digest.begin(), digest.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

std::string AdapterDigest(const std::vector<v1::AdapterFile>& files) {
  std::map<std::string, std::string> sorted;
  for (const v1::AdapterFile& file : files) sorted[file.name()] = file.digest();
  std::string lines;
  for (const auto& [name, digest] : sorted) lines += Cat(digest, "  ", name, "\n");
  return Sha256::Hex(lines);
}

absl::StatusOr<v1::Adapter> InspectAdapter(const std::string& folder, const BaseModel& base) {
  ASSIGN_OR_RETURN(const File config_file,
                   File::Open(Cat(folder, "/", kConfigFile), kMaxJsonBytes));
  ASSIGN_OR_RETURN(const File card_file, File::Open(Cat(folder, "/", kCardFile), kMaxJsonBytes));
  ASSIGN_OR_RETURN(const File weights_file,
                   File::Open(Cat(folder, "/", kWeightsFile), kMaxWeightsBytes));
  ASSIGN_OR_RETURN(const std::string config_text, config_file.ReadAll());
  ASSIGN_OR_RETURN(const std::string card_text, card_file.ReadAll());
  ASSIGN_OR_RETURN(const Card card, ParseCard(card_text));
  if (card.base_digest != base.digest) {
    return absl::FailedPreconditionError(Cat(kCardFile, ": base_digest ", card.base_digest,
                                             " is not the base ", base.name, " (", base.digest,
                                             ")"));
  }
  ASSIGN_OR_RETURN(const PeftConfig config, ParsePeftConfig(config_text));
  ASSIGN_OR_RETURN(auto weights, InspectWeights(weights_file, config, base));

  v1::Adapter adapter;
  adapter.set_domain(card.domain);
  adapter.set_base_model(card.base_digest);
  adapter.set_rank(config.rank);
  adapter.set_alpha(config.alpha);
  for (const std::string& module : config.target_modules) adapter.add_target_modules(module);
  adapter.set_license(card.license);
  adapter.set_description(card.description);
  adapter.set_parameters(weights.second);
  AddFile(kConfigFile, config_text.size(), Sha256::Hex(config_text), &adapter);
  AddFile(kWeightsFile, weights_file.bytes(), std::move(weights.first), &adapter);
  AddFile(kCardFile, card_text.size(), Sha256::Hex(card_text), &adapter);
  adapter.set_digest(AdapterDigest({adapter.files().begin(), adapter.files().end()}));
  return adapter;
}

}  // namespace cogumi::services
