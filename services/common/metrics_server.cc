#include "services/common/metrics_server.h"

#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "services/common/metrics.h"
#include "services/common/text.h"

namespace cogumi::services {
namespace {

constexpr size_t kMaxRequestBytes = 8192;
// A scraper that is slower than this is cut off: it holds the only thread.
constexpr timeval kPatience = {1, 0};

bool SendAll(int connection, std::string_view text) {
  while (!text.empty()) {
    const ssize_t sent = ::send(connection, text.data(), text.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    text.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

// The request up to its empty line; "" when it does not come or is too long.
std::string ReadRequest(int connection) {
  std::string request;
  char buffer[1024];
  while (request.find("\r\n\r\n") == std::string::npos) {
    const ssize_t got = ::recv(connection, buffer, sizeof(buffer), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0 || request.size() + static_cast<size_t>(got) > kMaxRequestBytes) return "";
    request.append(buffer, static_cast<size_t>(got));
  }
  return request;
}

std::string Response(const char* status, const char* type, const std::string& body) {
  return Cat("HTTP/1.1 ", status, "\r\nContent-Type: ", type, "\r\nContent-Length: ", body.size(),
             "\r\nConnection: close\r\n\r\n", body);
}

uint16_t PortOf(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET6) {
    return ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port);
  }
  return ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Create(
    const std::string& address, std::shared_ptr<prometheus::Collectable> metrics) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == address.size()) {
    return absl::InvalidArgumentError(Cat("metrics: \"", address, "\" is not host:port"));
  }
  const std::string host = address.substr(0, colon);
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  const std::string node = bracketed ? host.substr(1, host.size() - 2) : host;
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (::getaddrinfo(node.c_str(), address.c_str() + colon + 1, &hints, &found) != 0) {
    return absl::InvalidArgumentError(Cat("metrics: \"", address, "\" is not host:port"));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
  const int listener =
      ::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  const int yes = 1;
  sockaddr_storage bound{};
  socklen_t bound_size = sizeof(bound);
  if (listener < 0 ||
      ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) != 0 ||
      ::bind(listener, found->ai_addr, found->ai_addrlen) != 0 || ::listen(listener, 16) != 0 ||
      ::getsockname(listener, reinterpret_cast<sockaddr*>(&bound), &bound_size) != 0) {
    const absl::Status status =
        absl::UnavailableError(Cat("metrics: cannot listen on ", address, ": ",
                                   std::strerror(errno)));
    if (listener >= 0) ::close(listener);
    return status;
  }
  const int stop = ::eventfd(0, EFD_CLOEXEC);
  if (stop < 0) {
    ::close(listener);
    return absl::UnavailableError(Cat("metrics: ", std::strerror(errno)));
  }
  return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(metrics), listener, stop,
                                                          Cat(host, ":", PortOf(bound))));
}

MetricsServer::MetricsServer(std::shared_ptr<prometheus::Collectable> metrics, int listener,
                             int stop, std::string address)
    : metrics_(std::move(metrics)),
      listener_(listener),
      stop_(stop),
      address_(std::move(address)),
      thread_([this] { Loop(); }) {}

MetricsServer::~MetricsServer() {
  const uint64_t one = 1;
  // An eventfd takes 8 bytes at any time.
  [[maybe_unused]] const ssize_t written = ::write(stop_, &one, sizeof(one));
  thread_.join();
  ::close(listener_);
  ::close(stop_);
}

void MetricsServer::Loop() {
  while (true) {
    pollfd waited[] = {{listener_, POLLIN, 0}, {stop_, POLLIN, 0}};
    if (::poll(waited, 2, -1) < 0 && errno != EINTR) return;
    if (waited[1].revents != 0) return;
    if (waited[0].revents == 0) continue;
    const int connection = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (connection < 0) {
      // Out of descriptors: the waiting connection stays readable, so give others time.
      if (errno == EMFILE || errno == ENFILE) ::poll(&waited[1], 1, 100);
      continue;
    }
    ::setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof(kPatience));
    ::setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &kPatience, sizeof(kPatience));
    Answer(connection);
    ::close(connection);
  }
}

void MetricsServer::Answer(int connection) {
  const std::string request = ReadRequest(connection);
  if (request.empty()) return;
  if (request.starts_with("GET /metrics ") || request.starts_with("GET /metrics?")) {
    SendAll(connection, Response("200 OK", "text/plain; version=0.0.4; charset=utf-8",
                                 RenderMetrics(*metrics_)));
  } else {
    SendAll(connection, Response("404 Not Found", "text/plain", "only GET /metrics is here\n"));
  }
}

}  // namespace cogumi::services
