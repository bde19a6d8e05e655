#include "services/decoder/adapter_bytes.h"

#include <algorithm>
#include <utility>

#include "engine/core/sha256.h"
#include "services/common/status.h"
#include "services/common/text.h"

namespace cogumi::services {
namespace {

constexpr char kConfigFile[] = "adapter_config.json";
constexpr char kWeightsFile[] = "adapter_model.safetensors";
constexpr char kCardFile[] = "card.json";

absl::Status Wrong(const std::string& what) {
  return WithReason(absl::FailedPreconditionError(what), "ADAPTER_MISMATCH");
}

}  // namespace

bool IsAdapterDigest(const std::string& text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

absl::StatusOr<AdapterBytes> AdapterBytes::Expect(const v1::Adapter& described) {
  AdapterBytes bytes;
  bytes.digest_ = described.digest();
  for (const v1::AdapterFile& file : described.files()) {
    const bool is_weights = file.name() == kWeightsFile;
    if (!is_weights && file.name() != kConfigFile && file.name() != kCardFile) {
      return Wrong(Cat("adapter ", described.digest(), ": file ",
                       ToValidUtf8(TruncateUtf8(file.name(), 60)), " is not known"));
    }
    const int64_t limit = is_weights ? kMaxAdapterWeightBytes : kMaxAdapterConfigBytes;
    if (file.bytes() < 0 || file.bytes() > limit) {
      return Wrong(Cat("adapter ", described.digest(), ": ", file.name(), " has ", file.bytes(),
                       " bytes, at most ", limit, " are taken"));
    }
    bytes.files_[file.name()] = {file.bytes(), file.digest(), {}};
  }
  for (const char* name : {kConfigFile, kWeightsFile, kCardFile}) {
    if (bytes.files_.count(name) == 0) {
      return Wrong(Cat("adapter ", described.digest(), ": ", name, " is missing"));
    }
  }
  std::string listing;
  for (const auto& [name, file] : bytes.files_) listing += Cat(file.digest, "  ", name, "\n");
  if (const std::string found = Sha256::Hex(listing); found != described.digest()) {
    return Wrong(Cat("adapter ", described.digest(), ": its files have the digest ", found));
  }
  return bytes;
}

absl::Status AdapterBytes::Add(const v1::FetchResponse& piece) {
  const auto it = files_.find(piece.file());
  if (it == files_.end()) {
    return Wrong(Cat("adapter ", digest_, ": bytes of a file that is not known came"));
  }
  File& file = it->second;
  const auto have = static_cast<int64_t>(file.data.size());
  const auto more = static_cast<int64_t>(piece.data().size());
  if (piece.offset() != have || more > file.bytes - have) {
    return Wrong(Cat("adapter ", digest_, ": ", it->first, " has ", file.bytes, " bytes, but ",
                     more, " came at ", piece.offset(), " behind ", have));
  }
  file.data += piece.data();
  return absl::OkStatus();
}

absl::StatusOr<AdapterFiles> AdapterBytes::Finish() && {
  for (const auto& [name, file] : files_) {
    if (const std::string found = Sha256::Hex(file.data); found != file.digest) {
      return Wrong(Cat("adapter ", digest_, ": ", name, " has the digest ", found, ", wanted is ",
                       file.digest));
    }
  }
  return AdapterFiles{std::move(files_[kConfigFile].data), std::move(files_[kWeightsFile].data)};
}

}  // namespace cogumi::services
