// Where adapters come from: the modifiers service, behind an interface without gRPC.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cogumi/v1/modifiers.pb.h"

namespace grpc {
class Channel;
}

namespace cogumi::services {

// Calls block; each may run beside the others.
class AdapterSupplier {
 public:
  virtual ~AdapterSupplier() = default;
  virtual absl::StatusOr<v1::Adapter> Get(const std::string& name_or_digest) = 0;
  // Ends early with what `on_piece` returns when that is an error.
  virtual absl::Status Fetch(
      const std::string& digest,
      const std::function<absl::Status(const v1::FetchResponse&)>& on_piece) = 0;
  // Until the stream breaks.
  virtual absl::Status Watch(const std::function<void(const v1::WatchResponse&)>& on_change) = 0;
  // Ends what runs, and everything later at once, with CANCELLED.
  virtual void Stop() = 0;
};

std::unique_ptr<AdapterSupplier> MakeGrpcAdapterSupplier(std::shared_ptr<grpc::Channel> channel);

}  // namespace cogumi::services
