// A blocking HTTP client that sends exactly the bytes a test wants and reads what comes.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <string>

namespace cogumi::test {

struct RawResponse {
  int status = 0;                              // 0: no answer came
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // chunks joined
  bool complete = false;                       // its end was seen, not only the connection's
};

class RawHttp {
 public:
  // `address` is 127.0.0.1:port. A small receive buffer makes a slow reader quickly felt.
  explicit RawHttp(const std::string& address, int receive_buffer = 0) {
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_buffer > 0) {
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    }
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port =
        htons(static_cast<uint16_t>(std::atoi(address.substr(address.rfind(':') + 1).c_str())));
    if (connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof(to)) != 0) Close();
  }
  ~RawHttp() { Close(); }
  RawHttp(const RawHttp&) = delete;
  RawHttp& operator=(const RawHttp&) = delete;

  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  void ShutdownWrite() { shutdown(fd_, SHUT_WR); }

  bool Send(const std::string& bytes) {
    size_t sent = 0;
    while (sent < bytes.size()) {
      const ssize_t count = send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (count <= 0) return false;
      sent += static_cast<size_t>(count);
    }
    return true;
  }

  // One read; false at the end of the stream, on an error and after ten seconds of silence.
  bool More() {
    pollfd waiting{fd_, POLLIN, 0};
    if (poll(&waiting, 1, 10000) <= 0) {
      timed_out_ = true;
      return false;
    }
    char buffer[4096];
    const ssize_t count = recv(fd_, buffer, sizeof(buffer), 0);
    if (count <= 0) return false;
    buffer_.append(buffer, static_cast<size_t>(count));
    return true;
  }
  // Reads until `text` has come.
  bool Await(const std::string& text) {
    while (buffer_.find(text) == std::string::npos) {
      if (!More()) return false;
    }
    return true;
  }
  // True when the server closes (or resets) within ten seconds.
  bool AwaitEnd() {
    while (More()) {
    }
    return !timed_out_;
  }
  const std::string& buffer() const { return buffer_; }

  // The next response of the connection. `head`: to a HEAD request.
  RawResponse Read(bool head = false) {
    RawResponse response;
    if (!Await("\r\n\r\n")) return response;
    const size_t end = buffer_.find("\r\n\r\n");
    std::string lines = buffer_.substr(0, end + 2);
    buffer_.erase(0, end + 4);
    size_t at = lines.find("\r\n");
    response.status = std::atoi(lines.substr(9, 3).c_str());
    for (at += 2; at < lines.size();) {
      const size_t stop = lines.find("\r\n", at);
      const std::string line = lines.substr(at, stop - at);
      const size_t colon = line.find(": ");
      std::string name = line.substr(0, colon);
      for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      response.headers[name] = line.substr(colon + 2);
      at = stop + 2;
    }
    if (response.status == 100) return Read(head);
    if (head || response.status == 204) {
      response.complete = true;
    } else if (response.headers.count("content-length") > 0) {
      const auto length =
          static_cast<size_t>(std::atoll(response.headers["content-length"].c_str()));
      while (buffer_.size() < length && More()) {
      }
      response.complete = buffer_.size() >= length;
      response.body = buffer_.substr(0, length);
      buffer_.erase(0, length);
    } else if (response.headers.count("transfer-encoding") > 0) {
      ReadChunks(&response);
    } else {
      AwaitEnd();
      response.complete = !timed_out_;
      response.body.swap(buffer_);
    }
    return response;
  }

 private:
  void ReadChunks(RawResponse* response) {
    while (Await("\r\n")) {
      const size_t line = buffer_.find("\r\n");
      const size_t size = std::strtoull(buffer_.substr(0, line).c_str(), nullptr, 16);
      while (buffer_.size() < line + 2 + size + 2) {
        if (!More()) return;
      }
      response->body += buffer_.substr(line + 2, size);
      buffer_.erase(0, line + 2 + size + 2);
      if (size == 0) {
        response->complete = true;
        return;
      }
    }
  }

  int fd_ = -1;
  std::string buffer_;
  bool timed_out_ = false;
};

}  // namespace cogumi::test
