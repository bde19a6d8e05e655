// GET /metrics on an internal port: one thread, one request a connection. prometheus-cpp's own
// server takes two seconds to stop, which a drain does not have.
#pragma once

#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "prometheus/collectable.h"

namespace cogumi::services {

class MetricsServer {
 public:
  // `address` is host:port (IPv4, or [IPv6]); port 0 takes a free one. Errors: INVALID_ARGUMENT
  // (not an address), UNAVAILABLE (the port is taken).
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Create(
      const std::string& address, std::shared_ptr<prometheus::Collectable> metrics);
  ~MetricsServer();
  MetricsServer(const MetricsServer&) = delete;
  MetricsServer& operator=(const MetricsServer&) = delete;

  // With the real port.
  const std::string& address() const { return address_; }

 private:
  MetricsServer(std::shared_ptr<prometheus::Collectable> metrics, int listener, int stop,
                std::string address);
  void Loop();
  void Answer(int connection);

  const std::shared_ptr<prometheus::Collectable> metrics_;
  const int listener_;
  const int stop_;  // eventfd
  const std::string address_;
  std::thread thread_;
};

}  // namespace cogumi::services
