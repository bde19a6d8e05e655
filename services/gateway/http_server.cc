#include "services/gateway/http_server.h"

#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <optional>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "services/common/text.h"

namespace cogumi::gateway {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using tcp = asio::ip::tcp;
using boost::system::error_code;
using Strand = asio::strand<asio::io_context::executor_type>;
using Socket = asio::basic_stream_socket<tcp, Strand>;
using Timer = asio::basic_waitable_timer<std::chrono::steady_clock,
                                         asio::wait_traits<std::chrono::steady_clock>, Strand>;

constexpr uint32_t kMaxHeaderBytes = 16 << 10;
// What a peer may send ahead while its request is being answered; more is left in the kernel.
constexpr size_t kMaxPipelinedBytes = 64 << 10;
constexpr size_t kReadBytes = 4 << 10;
// The kernel's buffer would otherwise grow to megabytes before a slow reader is noticed.
constexpr int kSendBufferBytes = 128 << 10;
constexpr double kLingerSeconds = 2;
constexpr std::chrono::milliseconds kAcceptRetry(100);

using SteadyTime = std::chrono::steady_clock::time_point;

// clang-tidy's analyzer takes Asio's recycled memory of handlers for a leak: it sees a plain call.
template <typename Task>
void PostTo(const Strand& strand, Task task) {
#ifdef __clang_analyzer__
  task();
#else
  asio::post(strand, std::move(task));
#endif
}

double SecondsSince(SteadyTime start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string LowerCase(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

// One answer, shared by the handler's threads and the connection.
struct Answer {
  std::mutex mutex;
  std::string pending;     // framed bytes that wait
  int fd = -1;             // the socket while it is this answer's, for Flush
  size_t in_flight = 0;    // bytes that are being written
  bool scheduled = false;  // a pump is posted
  bool chunked = false;
  bool ended = false;
  bool clean = true;  // false: close behind it
  bool gone = false;
  bool overflow = false;
  int status = 0;
  std::function<void(bool)> on_gone;
  std::function<void(int, double)> on_finished;

  // Set before the handler sees it.
  bool keep_alive = false;
  bool head = false;
  bool http11 = false;
  SteadyTime started;
};

class Connection;

// What all connections share. Connections hold it, so that it outlives them.
struct Core {
  Core(const HttpServerOptions& server_options, HttpHandler request_handler)
      : options(server_options), handler(std::move(request_handler)), io(server_options.threads) {}

  const HttpServerOptions options;
  const HttpHandler handler;
  asio::io_context io;
  std::atomic<bool> draining{false};
  std::mutex mutex;
  bool stopping = false;
  std::map<Connection*, std::weak_ptr<Connection>> connections;
};

// Everything but the constructor runs in the strand, unless it says otherwise.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<Core> core, Socket socket)
      : core_(std::move(core)), socket_(std::move(socket)), timer_(socket_.get_executor()) {}

  ~Connection() {
    if (core_->options.on_connections) core_->options.on_connections(-1);
    std::lock_guard lock(core_->mutex);
    core_->connections.erase(this);
  }

  // Any thread; once.
  void PostStart() {
    PostTo(socket_.get_executor(), [self = shared_from_this()] { self->Start(); });
  }

  // Any thread: sends what waits as far as the kernel takes it, and leaves the rest and the end of
  // the answer to the strand. Handing each token to another thread would cost more than the token.
  void Flush(const std::shared_ptr<Answer>& answer) {
    {
      std::lock_guard lock(answer->mutex);
      // The descriptor is open while it stands here: Abort takes this lock before it closes.
      if (answer->fd >= 0 && !answer->overflow && answer->in_flight == 0 &&
          !answer->pending.empty()) {
        const ssize_t sent = ::send(answer->fd, answer->pending.data(), answer->pending.size(),
                                    MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0) answer->pending.erase(0, static_cast<size_t>(sent));
      }
      const bool more = !answer->pending.empty() || answer->ended || answer->overflow;
      if (answer->fd < 0 || answer->scheduled || !more) return;
      answer->scheduled = true;
    }
    PostTo(socket_.get_executor(), [weak = weak_from_this(), answer] {
      if (auto self = weak.lock()) self->Pump(answer);
    });
  }

  // Any thread.
  void PostClose() {
    PostTo(socket_.get_executor(), [weak = weak_from_this()] {
      if (auto self = weak.lock()) self->Abort();
    });
  }
  void PostDrain() {
    PostTo(socket_.get_executor(), [weak = weak_from_this()] {
      auto self = weak.lock();
      if (self != nullptr && self->idle_) self->Abort();
    });
  }

 private:
  void Start() {
    error_code ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
    socket_.set_option(asio::socket_base::send_buffer_size(kSendBufferBytes), ignored);
    ReadNext();
  }

  // Closes the connection when `seconds` pass without another Arm or Disarm.
  void Arm(double seconds) {
    deadline_ = std::chrono::steady_clock::now() +
                std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                    std::chrono::duration<double>(seconds));
    // A timer that expires no later looks at the deadline again: most are moved on in time, and
    // setting the clock for each would be a system call each.
    if (timer_pending_ && timer_.expiry() <= deadline_) return;
    timer_.expires_at(deadline_);  // cancels the pending wait
    WaitForTimer();
  }
  void Disarm() { deadline_ = SteadyTime::max(); }

  void WaitForTimer() {
    timer_pending_ = true;
    timer_.async_wait([weak = weak_from_this(), wait = ++timer_waits_](error_code error) {
      const auto self = weak.lock();
      if (self == nullptr || wait != self->timer_waits_) return;
      self->timer_pending_ = false;
      if (error || self->deadline_ == SteadyTime::max()) return;
      if (std::chrono::steady_clock::now() >= self->deadline_) return self->Abort();
      self->timer_.expires_at(self->deadline_);
      self->WaitForTimer();
    });
  }

  void ReadNext() {
    answer_ = nullptr;
    if (watching_) {
      // Its completion comes back here.
      next_after_watch_ = true;
      error_code ignored;
      socket_.cancel(ignored);
      return;
    }
    if (!socket_.is_open()) return;
    parser_.emplace();
    parser_->header_limit(kMaxHeaderBytes);
    parser_->body_limit(static_cast<uint64_t>(core_->options.max_body_bytes));
    if (buffer_.size() > 0) return ReadHeader();
    buffer_.shrink_to_fit();
    idle_ = true;
    Arm(core_->options.idle_seconds);
    socket_.async_wait(Socket::wait_read, [self = shared_from_this()](error_code error) {
      self->idle_ = false;
      if (error) return self->Abort();
      self->ReadHeader();
    });
  }

  void ReadHeader() {
    started_ = std::chrono::steady_clock::now();
    Arm(core_->options.header_seconds);
    http::async_read_header(socket_, buffer_, *parser_,
                            [self = shared_from_this()](error_code error, size_t) {
                              if (error) return self->OnReadError(error);
                              self->ReadBody();
                            });
  }

  void ReadBody() {
    Arm(core_->options.body_seconds);
    if (!parser_->is_done() &&
        boost::beast::iequals(parser_->get()[http::field::expect], "100-continue")) {
      // Written on the side; a peer that waits for it has nothing else to read.
      continue_ = "HTTP/1.1 100 Continue\r\n\r\n";
      asio::async_write(socket_, asio::buffer(continue_),
                        [self = shared_from_this()](error_code error, size_t) {
                          if (error) return self->Abort();
                          self->ReadRest();
                        });
      return;
    }
    ReadRest();
  }

  void ReadRest() {
    http::async_read(socket_, buffer_, *parser_,
                     [self = shared_from_this()](error_code error, size_t) {
                       if (error) return self->OnReadError(error);
                       self->Handle();
                     });
  }

  void OnReadError(error_code error) {
    if (error == http::error::header_limit) {
      return Refuse(
          431, absl::StrCat("the request's header is larger than ", kMaxHeaderBytes, " bytes"));
    }
    if (error == http::error::body_limit) {
      return Refuse(413, absl::StrCat("the request's body is larger than ",
                                      core_->options.max_body_bytes, " bytes"));
    }
    // The ends of connections: nobody is there to read an answer.
    if (error == http::error::end_of_stream || error == http::error::partial_message ||
        error.category() != make_error_code(http::error::end_of_stream).category()) {
      return Abort();
    }
    Refuse(400, absl::StrCat("the request is not well-formed HTTP: ", error.message()));
  }

  void Refuse(int status, std::string reason) {
    HttpRequest request;
    request.refused_status = status;
    request.refused_reason = std::move(reason);
    request.method = std::string(parser_->get().method_string());
    request.target = std::string(parser_->get().target());
    Begin(std::move(request), /*keep_alive=*/false, /*http11=*/true);
  }

  void Handle() {
    const auto& message = parser_->get();
    HttpRequest request;
    request.method = std::string(message.method_string());
    request.target = std::string(message.target());
    for (const auto& field : message) {
      std::string& value =
          request.headers[LowerCase({field.name_string().data(), field.name_string().size()})];
      if (!value.empty()) value += ", ";
      value.append(field.value().data(), field.value().size());
    }
    const bool keep_alive = message.keep_alive();
    const bool http11 = message.version() >= 11;
    request.body = std::move(parser_->get().body());
    Begin(std::move(request), keep_alive, http11);
  }

  void Begin(HttpRequest request, bool keep_alive, bool http11);

  // Notices the peer's going while its answer is prepared. What it sends ahead is kept.
  void Watch() {
    if (watching_ || buffer_.size() >= kMaxPipelinedBytes) return;
    watching_ = true;
    socket_.async_read_some(buffer_.prepare(kReadBytes),
                            [self = shared_from_this()](error_code error, size_t bytes) {
                              self->OnWatched(error, bytes);
                            });
  }

  void OnWatched(error_code error, size_t bytes) {
    watching_ = false;
    buffer_.commit(bytes);
    const bool next = std::exchange(next_after_watch_, false);
    if (error && !(next && error == asio::error::operation_aborted)) return Abort();
    if (next) return ReadNext();
    if (lingering_) buffer_.consume(buffer_.size());
    Watch();
  }

  void Pump(const std::shared_ptr<Answer>& answer) {
    bool ended = false;
    bool clean = true;
    {
      std::lock_guard lock(answer->mutex);
      answer->scheduled = false;
      if (answer != answer_) return;
      if (answer->overflow) {
        ended = true;
        clean = false;
        answer->pending.clear();
      } else if (answer->in_flight > 0) {
        return;
      }
      if (!answer->pending.empty()) {
        out_.clear();
        out_.swap(answer->pending);
        answer->in_flight = out_.size();
      } else if (answer->ended) {
        ended = true;
        clean = clean && answer->clean;
      } else if (!ended) {
        return;
      }
    }
    if (ended) return EndAnswer(clean);
    Arm(core_->options.write_seconds);
    asio::async_write(socket_, asio::buffer(out_),
                      [self = shared_from_this(), answer](error_code error, size_t) {
                        {
                          std::lock_guard lock(answer->mutex);
                          answer->in_flight = 0;
                        }
                        if (error) return self->Abort();
                        self->Disarm();
                        self->Pump(answer);
                      });
  }

  void EndAnswer(bool clean) {
    const bool more = clean && answer_->keep_alive && !core_->draining;
    if (!clean) return Abort();
    Finished();
    if (more) return ReadNext();
    Linger();
  }

  // Says goodbye and reads what still comes for a while: a close with unread bytes would reset the
  // connection, and the peer might lose the end of its answer.
  void Linger() {
    answer_ = nullptr;
    lingering_ = true;
    error_code ignored;
    socket_.shutdown(Socket::shutdown_send, ignored);
    buffer_.consume(buffer_.size());
    Arm(kLingerSeconds);
    Watch();
  }

  // The end of the answer as its maker sees it.
  void Finished() {
    std::function<void(int, double)> on_finished;
    int status = 0;
    {
      std::lock_guard lock(answer_->mutex);
      on_finished = std::move(answer_->on_finished);
      answer_->on_finished = nullptr;
      answer_->on_gone = nullptr;
      answer_->fd = -1;
      status = answer_->status;
    }
    if (on_finished) on_finished(status, SecondsSince(answer_->started));
    held_ = nullptr;
  }

  // Closes at once; an unfinished answer's maker is told.
  void Abort() {
    Disarm();
    const std::shared_ptr<Connection> held = std::move(held_);
    const std::shared_ptr<Answer> answer = std::exchange(answer_, nullptr);
    std::function<void(bool)> on_gone;
    std::function<void(int, double)> on_finished;
    bool overflow = false;
    int status = 0;
    if (answer != nullptr) {
      std::lock_guard lock(answer->mutex);
      answer->gone = true;
      answer->fd = -1;
      answer->pending = std::string();
      overflow = answer->overflow;
      status = answer->status;
      if (!answer->ended || overflow) on_gone = std::move(answer->on_gone);
      answer->on_gone = nullptr;
      on_finished = std::move(answer->on_finished);
      answer->on_finished = nullptr;
    }
    error_code ignored;
    socket_.close(ignored);
    if (on_gone) on_gone(overflow);
    if (on_finished) on_finished(status, SecondsSince(answer->started));
  }

  const std::shared_ptr<Core> core_;
  Socket socket_;
  Timer timer_;
  boost::beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  std::string continue_;
  std::string out_;  // the write in flight
  std::shared_ptr<Answer> answer_;
  std::shared_ptr<Connection> held_;  // itself, while an answer is awaited
  SteadyTime started_;
  SteadyTime deadline_ = SteadyTime::max();
  bool timer_pending_ = false;
  uint64_t timer_waits_ = 0;
  bool idle_ = false;
  bool watching_ = false;
  bool next_after_watch_ = false;
  bool lingering_ = false;
};

class Exchange : public HttpExchange {
 public:
  Exchange(std::shared_ptr<Core> core, std::weak_ptr<Connection> connection,
           std::shared_ptr<Answer> answer)
      : core_(std::move(core)), connection_(std::move(connection)), answer_(std::move(answer)) {}

  ~Exchange() override {
    {
      std::lock_guard lock(answer_->mutex);
      if (answer_->ended) return;
      answer_->ended = true;
      answer_->clean = false;
    }
    Flush();
  }

  void Respond(int status, const HttpHeaders& headers, std::string body) override {
    {
      std::lock_guard lock(answer_->mutex);
      if (answer_->ended || answer_->gone) return;
      AppendHead(status, headers);
      // 204 has neither body nor length.
      if (status != 204) {
        absl::StrAppend(&answer_->pending, "Content-Length: ", body.size(), "\r\n");
      }
      answer_->pending += "\r\n";
      if (!answer_->head && status != 204) answer_->pending += body;
      answer_->ended = true;
    }
    Flush();
  }

  void StartStream(int status, const HttpHeaders& headers) override {
    {
      std::lock_guard lock(answer_->mutex);
      if (answer_->ended || answer_->gone) return;
      answer_->chunked = answer_->http11;
      // Without chunks the end of the connection is the end of the answer.
      if (!answer_->chunked) answer_->keep_alive = false;
      AppendHead(status, headers);
      if (answer_->chunked) answer_->pending += "Transfer-Encoding: chunked\r\n";
      answer_->pending += "\r\n";
    }
    Flush();
  }

  bool Write(std::string_view piece) override {
    {
      std::lock_guard lock(answer_->mutex);
      if (answer_->ended || answer_->gone || answer_->overflow) return false;
      if (piece.empty()) return true;
      if (answer_->pending.size() + answer_->in_flight + piece.size() >
          core_->options.max_buffered_bytes) {
        answer_->overflow = true;
      } else if (answer_->chunked) {
        char size[24];
        const int digits = std::snprintf(size, sizeof(size), "%zx\r\n", piece.size());
        answer_->pending.append(size, static_cast<size_t>(digits));
        answer_->pending.append(piece);
        answer_->pending.append("\r\n", 2);
      } else {
        answer_->pending.append(piece);
      }
    }
    Flush();
    std::lock_guard lock(answer_->mutex);
    return !answer_->overflow;
  }

  void EndStream(bool clean) override {
    {
      std::lock_guard lock(answer_->mutex);
      if (answer_->ended || answer_->gone) return;
      answer_->ended = true;
      if (clean && answer_->chunked) answer_->pending += "0\r\n\r\n";
      // What was written still goes out, then the connection ends without the last chunk.
      if (!clean) answer_->keep_alive = false;
    }
    Flush();
  }

  void SetOnGone(std::function<void(bool)> on_gone) override {
    bool overflow = false;
    {
      std::lock_guard lock(answer_->mutex);
      if (!answer_->gone) {
        answer_->on_gone = std::move(on_gone);
        return;
      }
      overflow = answer_->overflow;
    }
    on_gone(overflow);
  }

  void SetOnFinished(std::function<void(int, double)> on_finished) override {
    {
      std::lock_guard lock(answer_->mutex);
      if (!answer_->gone) {
        answer_->on_finished = std::move(on_finished);
        return;
      }
    }
    on_finished(answer_->status, SecondsSince(answer_->started));
  }

 private:
  // Status line and headers, without the empty line. With the lock held.
  void AppendHead(int status, const HttpHeaders& headers) {
    answer_->status = status;
    if (core_->draining) answer_->keep_alive = false;
    std::string& out = answer_->pending;
    out += services::Cat("HTTP/1.1 ", status, " ", HttpReason(status), "\r\n");
    for (const auto& [name, value] : headers) out += services::Cat(name, ": ", value, "\r\n");
    out += answer_->keep_alive ? "Connection: keep-alive\r\n" : "Connection: close\r\n";
  }

  void Flush() {
    if (auto connection = connection_.lock()) connection->Flush(answer_);
  }

  const std::shared_ptr<Core> core_;
  const std::weak_ptr<Connection> connection_;
  const std::shared_ptr<Answer> answer_;
};

void Connection::Begin(HttpRequest request, bool keep_alive, bool http11) {
  Disarm();
  answer_ = std::make_shared<Answer>();
  answer_->keep_alive = keep_alive;
  answer_->http11 = http11;
  answer_->head = request.method == "HEAD";
  answer_->started = started_;
  answer_->fd = socket_.native_handle();
  held_ = shared_from_this();
  parser_.reset();
  // A refused request's rest is unread: nothing to watch for in it.
  if (request.refused_status == 0) Watch();
  auto exchange = std::make_shared<Exchange>(core_, weak_from_this(), answer_);
  core_->handler(std::move(request), std::move(exchange));
}

class BeastHttpServer : public HttpServer {
 public:
  BeastHttpServer(const HttpServerOptions& options, HttpHandler handler)
      : core_(std::make_shared<Core>(options, std::move(handler))),
        strand_(asio::make_strand(core_->io)),
        acceptor_(strand_),
        accept_timer_(strand_) {}

  ~BeastHttpServer() override {
    PostTo(strand_, [this] {
      error_code ignored;
      acceptor_.close(ignored);
      accept_timer_.cancel();
    });
    {
      std::lock_guard lock(core_->mutex);
      core_->stopping = true;
    }
    ForEach([](Connection& connection) { connection.PostClose(); });
    // With nothing left to do, the threads end by themselves.
    for (std::thread& thread : threads_) thread.join();
  }

  absl::Status Open() {
    const std::string& address = core_->options.address;
    const size_t colon = address.rfind(':');
    uint32_t port = 0;
    std::string host = colon == std::string::npos ? "" : address.substr(0, colon);
    if (host.empty() || !absl::SimpleAtoi(address.substr(colon + 1), &port) || port > 65535) {
      return absl::InvalidArgumentError(absl::StrCat("http: \"", address, "\" is not host:port"));
    }
    if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
    if (host == "localhost") host = "127.0.0.1";
    error_code error;
    const auto ip = asio::ip::make_address(host, error);
    if (error) {
      return absl::InvalidArgumentError(
          absl::StrCat("http: the host of \"", address, "\" is not an IP address"));
    }
    const tcp::endpoint endpoint(ip, static_cast<uint16_t>(port));
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error) {
      return absl::UnavailableError(
          absl::StrCat("http: cannot listen on ", address, ": ", error.message()));
    }
    address_ = absl::StrCat(address.substr(0, colon), ":", acceptor_.local_endpoint().port());
    PostTo(strand_, [this] { Accept(); });
    for (int i = 0; i < core_->options.threads; ++i) {
      threads_.emplace_back([core = core_] { core->io.run(); });
    }
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

  void StartDraining() override {
    core_->draining = true;
    ForEach([](Connection& connection) { connection.PostDrain(); });
  }

 private:
  void ForEach(const std::function<void(Connection&)>& visit) {
    std::vector<std::shared_ptr<Connection>> connections;
    {
      std::lock_guard lock(core_->mutex);
      for (auto& [raw, weak] : core_->connections) {
        if (auto shared = weak.lock()) connections.push_back(std::move(shared));
      }
    }
    for (const auto& connection : connections) visit(*connection);
  }

  void Accept() {
    acceptor_.async_accept(asio::make_strand(core_->io), [this](error_code error, Socket socket) {
      if (!acceptor_.is_open()) return;
      if (error) return AcceptLater();
      Take(std::move(socket));
      Accept();
    });
  }

  // Out of descriptors, most likely: a busy loop would not help.
  void AcceptLater() {
    accept_timer_.expires_after(kAcceptRetry);
    accept_timer_.async_wait([this](error_code error) {
      if (!error && acceptor_.is_open()) Accept();
    });
  }

  void Take(Socket socket) {
    std::unique_lock lock(core_->mutex);
    if (core_->stopping) return;
    if (core_->connections.size() >= static_cast<size_t>(core_->options.max_connections)) {
      // Fits the kernel's buffer, so this does not block; best effort.
      static constexpr std::string_view kFull =
          "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n"
          "Connection: close\r\n\r\n";
      ::send(socket.native_handle(), kFull.data(), kFull.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      return;
    }
    auto connection = std::make_shared<Connection>(core_, std::move(socket));
    core_->connections.emplace(connection.get(), connection);
    lock.unlock();
    if (core_->options.on_connections) core_->options.on_connections(1);
    connection->PostStart();
  }

  const std::shared_ptr<Core> core_;
  Strand strand_;
  asio::basic_socket_acceptor<tcp, Strand> acceptor_;
  Timer accept_timer_;
  std::string address_;
  std::vector<std::thread> threads_;
};

}  // namespace

std::string_view HttpRequest::Header(const std::string& name) const {
  const auto it = headers.find(name);
  return it == headers.end() ? std::string_view() : std::string_view(it->second);
}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Create(const HttpServerOptions& options,
                                                               HttpHandler handler) {
  auto server = std::make_unique<BeastHttpServer>(options, std::move(handler));
  if (absl::Status status = server->Open(); !status.ok()) return status;
  return server;
}

std::string_view HttpReason(int status) {
  switch (status) {
    case 499:
      return "Client Closed Request";  // nginx's, not in Beast's table
    default: {
      const auto reason = http::obsolete_reason(static_cast<http::status>(status));
      return {reason.data(), reason.size()};
    }
  }
}

}  // namespace cogumi::gateway
