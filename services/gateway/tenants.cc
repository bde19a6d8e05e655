#include "services/gateway/tenants.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/core/sha256.h"
#include "engine/core/status_macros.h"
#include "services/common/request_context.h"
#include "services/common/status.h"

namespace cogumi::gateway {
namespace {

constexpr size_t kMinTokenBytes = 16;
constexpr size_t kMaxTokenBytes = 512;
constexpr size_t kMaxEntries = 1000;
constexpr size_t kMaxFileBytes = 4 << 20;
constexpr int64_t kMaxQuota = 1'000'000'000'000;

std::optional<std::array<uint8_t, 32>> ParseDigest(std::string_view hex) {
  if (hex.size() != 64) return std::nullopt;
  std::array<uint8_t, 32> digest{};
  for (size_t i = 0; i < hex.size(); ++i) {
    const char c = hex[i];
    uint8_t value = 0;
    if (c >= '0' && c <= '9') {
      value = static_cast<uint8_t>(c - '0');
    } else if (c >= 'a' && c <= 'f') {
      value = static_cast<uint8_t>(c - 'a' + 10);
    } else {
      return std::nullopt;
    }
    digest[i / 2] = static_cast<uint8_t>(digest[i / 2] << 4 | value);
  }
  return digest;
}

// Looks at every byte, whatever the first ones say.
bool Equal(const std::array<uint8_t, 32>& a, const std::array<uint8_t, 32>& b) {
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned>(a[i] ^ b[i]);
  return difference == 0;
}

// Bearer tokens are visible ASCII without spaces (RFC 6750's b68token is a part of that).
bool IsTokenText(std::string_view token) {
  return std::all_of(token.begin(), token.end(), [](char c) { return c > ' ' && c < '\x7f'; });
}

absl::Status Unauthenticated(absl::string_view message) {
  return services::WithReason(absl::UnauthenticatedError(message), "INVALID_TOKEN");
}

}  // namespace

// Reads one tokens file; keeps the place for error messages.
class TenantFileReader {
 public:
  explicit TenantFileReader(std::string name) : name_(std::move(name)) {}

  absl::StatusOr<TenantDirectory> Read(const YAML::Node& root) {
    RETURN_IF_ERROR(CheckKeys(root, "", {"tokens", "tenants"}));
    const YAML::Node tokens = root["tokens"];
    if (!tokens || !tokens.IsSequence() || tokens.size() == 0) {
      return Error("tokens", "must be a list of at least one entry");
    }
    if (tokens.size() > kMaxEntries) {
      return Error("tokens", absl::StrCat("has ", tokens.size(), " entries, at most ", kMaxEntries,
                                          " are allowed"));
    }
    for (size_t i = 0; i < tokens.size(); ++i) RETURN_IF_ERROR(ReadToken(tokens[i], i));
    if (const YAML::Node tenants = root["tenants"]; tenants) {
      if (!tenants.IsMap()) return Error("tenants", "must be a mapping from tenant to quota");
      for (const auto& item : tenants) RETURN_IF_ERROR(ReadTenant(item.first, item.second));
    }
    return std::move(directory_);
  }

 private:
  absl::Status Error(const std::string& where, const std::string& message) const {
    return absl::InvalidArgumentError(absl::StrCat(name_, ": ", where, ": ", message));
  }

  absl::Status CheckKeys(const YAML::Node& node, const std::string& where,
                         const std::set<std::string>& known) const {
    if (!node.IsMap()) {
      return Error(where.empty() ? "file" : where, "must be a mapping");
    }
    for (const auto& item : node) {
      const std::string key = item.first.IsScalar() ? item.first.Scalar() : "?";
      if (known.count(key) > 0) continue;
      std::string allowed;
      for (const std::string& name : known)
        absl::StrAppend(&allowed, allowed.empty() ? "" : ", ", name);
      return Error(where.empty() ? key : absl::StrCat(where, ".", key),
                   absl::StrCat("unknown key; known are ", allowed));
    }
    return absl::OkStatus();
  }

  // Never repeats a token in an error: its place has to do.
  absl::Status ReadToken(const YAML::Node& node, size_t index) {
    const std::string where = absl::StrCat("tokens[", index, "]");
    RETURN_IF_ERROR(CheckKeys(node, where, {"token", "sha256", "tenant", "roles"}));
    TenantDirectory::Entry entry;
    const YAML::Node token = node["token"];
    const YAML::Node sha256 = node["sha256"];
    if (static_cast<bool>(token) == static_cast<bool>(sha256)) {
      return Error(where, "needs exactly one of token and sha256");
    }
    std::string hex;
    if (token) {
      const std::string text = token.IsScalar() ? token.Scalar() : "";
      if (text.size() < kMinTokenBytes || text.size() > kMaxTokenBytes || !IsTokenText(text)) {
        return Error(where + ".token",
                     absl::StrCat("must be ", kMinTokenBytes, "..", kMaxTokenBytes,
                                  " visible ASCII characters without spaces"));
      }
      hex = Sha256::Hex(text);
    } else {
      hex = sha256.IsScalar() ? sha256.Scalar() : "";
    }
    const auto digest = ParseDigest(hex);
    if (!digest) return Error(where + ".sha256", "must be 64 lower-case hexadecimal digits");
    entry.digest = *digest;
    for (const auto& known : directory_.entries_) {
      if (Equal(known.digest, entry.digest)) return Error(where, "repeats an earlier token");
    }
    const YAML::Node tenant = node["tenant"];
    entry.identity.tenant = tenant && tenant.IsScalar() ? tenant.Scalar() : "";
    if (!services::IsValidTenant(entry.identity.tenant)) {
      return Error(where + ".tenant", "must match ^[A-Za-z0-9._-]{1,64}$");
    }
    RETURN_IF_ERROR(ReadRoles(node["roles"], where + ".roles", &entry.identity));
    directory_.quotas_.try_emplace(entry.identity.tenant);
    directory_.entries_.push_back(std::move(entry));
    return absl::OkStatus();
  }

  absl::Status ReadRoles(const YAML::Node& node, const std::string& where, Identity* identity) {
    if (!node) {
      identity->user = true;
      return absl::OkStatus();
    }
    if (!node.IsSequence() || node.size() == 0) return Error(where, "must be a list of roles");
    for (const YAML::Node& role : node) {
      const std::string name = role.IsScalar() ? role.Scalar() : "";
      if (name == "user") {
        identity->user = true;
      } else if (name == "operator") {
        identity->is_operator = true;
      } else {
        return Error(where, absl::StrCat("unknown role \"", name, "\"; known are operator, user"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadTenant(const YAML::Node& key, const YAML::Node& node) {
    const std::string tenant = key.IsScalar() ? key.Scalar() : "";
    const std::string where = absl::StrCat("tenants.", tenant);
    const auto known = directory_.quotas_.find(tenant);
    if (known == directory_.quotas_.end()) return Error(where, "no token names this tenant");
    RETURN_IF_ERROR(
        CheckKeys(node, where, {"requests_per_minute", "tokens_per_minute", "concurrent_streams"}));
    RETURN_IF_ERROR(
        ReadLimit(node, where, "requests_per_minute", &known->second.requests_per_minute));
    RETURN_IF_ERROR(ReadLimit(node, where, "tokens_per_minute", &known->second.tokens_per_minute));
    return ReadLimit(node, where, "concurrent_streams", &known->second.concurrent_streams);
  }

  absl::Status ReadLimit(const YAML::Node& node, const std::string& where, const char* key,
                         int64_t* value) {
    const YAML::Node limit = node[key];
    if (!limit) return absl::OkStatus();
    if (!limit.IsScalar() || !YAML::convert<int64_t>::decode(limit, *value) || *value < 0 ||
        *value > kMaxQuota) {
      return Error(absl::StrCat(where, ".", key),
                   absl::StrCat("must be a whole number in [0, ", kMaxQuota, "]"));
    }
    return absl::OkStatus();
  }

  const std::string name_;
  TenantDirectory directory_;
};

TenantDirectory TenantDirectory::Open() {
  TenantDirectory directory;
  directory.open_ = true;
  directory.quotas_.try_emplace(Identity().tenant);
  return directory;
}

absl::StatusOr<TenantDirectory> TenantDirectory::FromFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("tokens file ", path, ": cannot be read"));
  std::string text(kMaxFileBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokens file ", path, ": is larger than ", kMaxFileBytes, " bytes"));
  }
  return FromYaml(text, path);
}

absl::StatusOr<TenantDirectory> TenantDirectory::FromYaml(const std::string& text,
                                                          const std::string& name) {
  // yaml-cpp reports by exception; its messages hold the place, not the value.
  try {
    return TenantFileReader(absl::StrCat("tokens file ", name)).Read(YAML::Load(text));
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("tokens file ", name, ": ", error.what()));
  }
}

absl::StatusOr<Identity> TenantDirectory::Identify(std::string_view authorization) const {
  if (open_) return Identity{.user = true, .is_operator = true};
  if (authorization.empty()) {
    return Unauthenticated("no token: send `authorization: Bearer TOKEN`");
  }
  constexpr std::string_view kScheme = "bearer ";
  const bool bearer =
      authorization.size() > kScheme.size() &&
      std::equal(kScheme.begin(), kScheme.end(), authorization.begin(), [](char want, char got) {
        return want == (got >= 'A' && got <= 'Z' ? static_cast<char>(got - 'A' + 'a') : got);
      });
  if (!bearer) return Unauthenticated("the authorization must be `Bearer TOKEN`");
  const std::string_view token = authorization.substr(kScheme.size());
  if (token.size() > kMaxTokenBytes) return Unauthenticated("the token is not known");
  const Digest digest = ParseDigest(Sha256::Hex(token)).value();
  const Entry* found = nullptr;
  for (const Entry& entry : entries_) {
    if (Equal(entry.digest, digest)) found = &entry;
  }
  if (found == nullptr) return Unauthenticated("the token is not known");
  return found->identity;
}

}  // namespace cogumi::gateway
