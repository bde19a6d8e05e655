// Channels to other services: keepalive, message limits, retries before the first message.
#pragma once

#include <memory>
#include <string>

namespace grpc {
class Channel;
}

namespace cogumi::services {

inline constexpr int kMaxMessageBytes = 16 << 20;

// `address` as ServiceHost::address() gives it. UNAVAILABLE is retried up to three times before the
// first message of an answer.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

}  // namespace cogumi::services
