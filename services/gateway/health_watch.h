// Follows the health of a service behind a channel by grpc.health.v1 Watch: no polling, and a
// change is known at once. Includes no gRPC header.
#pragma once

#include <cstdint>
#include <memory>

namespace grpc {
class Channel;
}

namespace cogumi::gateway {

class HealthWatch {
 public:
  explicit HealthWatch(std::shared_ptr<grpc::Channel> channel);
  // Ends the watch and waits for its end.
  ~HealthWatch();
  HealthWatch(const HealthWatch&) = delete;
  HealthWatch& operator=(const HealthWatch&) = delete;

  // The service can be reached and says SERVING. A server without a health service counts as
  // serving while it can be reached.
  bool serving() const;
  // How often the connection to a service that had answered was lost: behind each may be another
  // process.
  uint64_t breaks() const;

 private:
  struct State;
  class Stream;
  const std::shared_ptr<State> state_;
};

}  // namespace cogumi::gateway
