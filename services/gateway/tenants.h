// Who may call: the tokens file, and the identity that a bearer token stands for.
//
//   tokens:
//     - token: "a-long-random-string"      # as it is, at least 16 bytes, or
//     - sha256: "64 hexadecimal digits"    # its SHA-256, so that the file holds no secret
//       tenant: acme
//       roles: [user, operator]            # default: [user]
//   tenants:
//     acme:
//       requests_per_minute: 600           # 0 or absent: no limit
//       tokens_per_minute: 200000          # prompt and completion together
//       concurrent_streams: 16
//
// Without a file the door is open: everyone is the tenant "default" with every role, and the
// gateway listens on loopback only.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace cogumi::gateway {

struct Identity {
  std::string tenant = "default";
  bool user = false;
  bool is_operator = false;
};

// 0: no limit.
struct Quota {
  int64_t requests_per_minute = 0;
  int64_t tokens_per_minute = 0;
  int64_t concurrent_streams = 0;
};

// Immutable after creation: safe from any thread.
class TenantDirectory {
 public:
  // No file: open.
  static TenantDirectory Open();
  // Errors name the file, the entry and the key: NOT_FOUND, INVALID_ARGUMENT.
  static absl::StatusOr<TenantDirectory> FromFile(const std::string& path);
  // `name` stands for the file in errors.
  static absl::StatusOr<TenantDirectory> FromYaml(const std::string& text, const std::string& name);

  bool open() const { return open_; }
  // `authorization` is the header's value ("Bearer TOKEN"), empty when absent. UNAUTHENTICATED when
  // it is missing, malformed or unknown; the message never repeats it. The time taken does not
  // depend on how much of a token was right.
  absl::StatusOr<Identity> Identify(std::string_view authorization) const;
  const std::map<std::string, Quota>& quotas() const { return quotas_; }

 private:
  using Digest = std::array<uint8_t, 32>;
  struct Entry {
    Digest digest;
    Identity identity;
  };
  friend class TenantFileReader;

  bool open_ = false;
  std::vector<Entry> entries_;
  std::map<std::string, Quota> quotas_;  // one for each tenant that has a token
};

}  // namespace cogumi::gateway
