// An asynchronous HTTP/1.1 server: connections, limits and timeouts. What requests mean is the
// handler's (http_api.h). Boost is in the .cc only.
//
// Limits: header 16 KiB, body by option, connections by option. A header must arrive within ten
// seconds, a body within thirty, an idle connection is closed after a minute, and a peer that takes
// nothing for thirty seconds is cut off. While an answer is awaited the connection is watched: the
// peer's end of stream counts as its going away.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace cogumi::gateway {

struct HttpRequest {
  std::string method;                          // "GET", "POST", ...
  std::string target;                          // as sent, with the query
  std::map<std::string, std::string> headers;  // names in lower case; repeated ones joined by ", "
  std::string body;
  // A known error that the server met before the handler: the status to answer with, else 0.
  int refused_status = 0;
  std::string refused_reason;

  // Empty when absent.
  std::string_view Header(const std::string& name) const;
};

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

// The answer to one request. Thread-safe; nothing blocks. Dropping it unfinished closes the
// connection.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;
  // A whole answer.
  virtual void Respond(int status, const HttpHeaders& headers, std::string body) = 0;
  // Begins an answer of unknown length.
  virtual void StartStream(int status, const HttpHeaders& headers) = 0;
  // Queues a piece. False when the peer is gone or more than the buffer's limit waits; the
  // connection is then closed and on_gone called.
  virtual bool Write(std::string_view piece) = 0;
  // Ends a streamed answer after what is queued; `clean` false closes the connection behind it, so
  // that the peer sees that the answer is not complete.
  virtual void EndStream(bool clean) = 0;
  // Called at most once, when the peer goes away before the answer's end; at once when it has gone
  // already. `overflow`: it did not keep up. May be called from any thread, without locks held.
  virtual void SetOnGone(std::function<void(bool overflow)> on_gone) = 0;
  // Called once, when the answer's last byte was handed to the kernel or its connection is closed.
  virtual void SetOnFinished(std::function<void(int status, double seconds)> on_finished) = 0;
};

using HttpHandler = std::function<void(HttpRequest, std::shared_ptr<HttpExchange>)>;

struct HttpServerOptions {
  std::string address = "127.0.0.1:8080";  // host:port; port 0 for a free one
  int threads = 1;
  int64_t max_body_bytes = 1 << 20;
  int32_t max_connections = 1024;
  size_t max_buffered_bytes = 256 << 10;  // of one answer
  double header_seconds = 10;
  double body_seconds = 30;
  double idle_seconds = 60;
  double write_seconds = 30;
  std::function<void(int change)> on_connections;
};

class HttpServer {
 public:
  // INVALID_ARGUMENT (address), UNAVAILABLE (cannot listen).
  static absl::StatusOr<std::unique_ptr<HttpServer>> Create(const HttpServerOptions& options,
                                                            HttpHandler handler);
  // Closes everything; handlers' exchanges may live on, without effect.
  virtual ~HttpServer() = default;
  // With the real port.
  virtual const std::string& address() const = 0;
  // From now on answers say "Connection: close" and idle connections are closed.
  virtual void StartDraining() = 0;
};

// Reason phrase of a status code.
std::string_view HttpReason(int status);

}  // namespace cogumi::gateway
