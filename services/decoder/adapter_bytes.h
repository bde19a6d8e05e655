// An adapter's files as they arrive, believed only when every digest is right. No gRPC.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cogumi/types.h"
#include "cogumi/v1/modifiers.pb.h"

namespace cogumi::services {

inline constexpr int64_t kMaxAdapterConfigBytes = 64 << 10;  // also of the card
inline constexpr int64_t kMaxAdapterWeightBytes = 1LL << 30;

bool IsAdapterDigest(const std::string& text);  // ^[0-9a-f]{64}$

class AdapterBytes {
 public:
  // `described` says which files of which length and digest are to come. FAILED_PRECONDITION when
  // they are not those of its digest (naming both) or a file is missing, unknown or too large:
  // nothing is taken from memory before that is known.
  static absl::StatusOr<AdapterBytes> Expect(const v1::Adapter& described);

  // The next piece. FAILED_PRECONDITION for bytes that nobody asked for.
  absl::Status Add(const v1::FetchResponse& piece);
  // All is here. FAILED_PRECONDITION naming the wanted and the found digest.
  absl::StatusOr<AdapterFiles> Finish() &&;

 private:
  struct File {
    int64_t bytes = 0;
    std::string digest;
    std::string data;
  };
  std::string digest_;
  std::map<std::string, File> files_;
};

}  // namespace cogumi::services
