// Connections, limits and threads of the HTTP server, without the gateway behind it.
#include "services/gateway/http_server.h"

#include <atomic>
#include <mutex>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/gateway/eventually.h"
#include "tests/services/gateway/raw_http.h"

namespace cogumi::gateway {
namespace {

using test::Eventually;
using test::RawHttp;
using test::RawResponse;

constexpr char kGet[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

HttpServerOptions Options() {
  HttpServerOptions options;
  options.address = "127.0.0.1:0";
  return options;
}

TEST(HttpServerTest, SlowPeersAreClosed) {
  HttpServerOptions options = Options();
  options.header_seconds = 0.05;
  options.body_seconds = 0.05;
  options.idle_seconds = 0.05;
  auto server = HttpServer::Create(
      options, [](HttpRequest, std::shared_ptr<HttpExchange> e) { e->Respond(200, {}, "ok"); });
  ASSERT_TRUE(server.ok()) << server.status();
  for (const char* begun : {"", "GET /", "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab"}) {
    RawHttp http((*server)->address());
    if (*begun != '\0') http.Send(begun);
    EXPECT_TRUE(http.AwaitEnd()) << begun;
    EXPECT_EQ(http.buffer(), "") << begun;
  }
}

TEST(HttpServerTest, ConnectionsAreLimited) {
  std::atomic<int> open{0};
  HttpServerOptions options = Options();
  options.max_connections = 2;
  options.on_connections = [&](int change) { open += change; };
  auto server = HttpServer::Create(
      options, [](HttpRequest, std::shared_ptr<HttpExchange> e) { e->Respond(200, {}, "ok"); });
  ASSERT_TRUE(server.ok());
  auto one = std::make_unique<RawHttp>((*server)->address());
  RawHttp two((*server)->address());
  one->Send(kGet);
  two.Send(kGet);
  EXPECT_EQ(one->Read().status, 200);
  EXPECT_EQ(two.Read().status, 200);
  RawHttp three((*server)->address());
  EXPECT_EQ(three.Read().status, 503);
  EXPECT_EQ(open, 2);
  one = nullptr;
  EXPECT_TRUE(Eventually([&] { return open == 1; }));
  RawHttp four((*server)->address());
  four.Send(kGet);
  EXPECT_EQ(four.Read().status, 200);
}

TEST(HttpServerTest, AnUnansweredExchangeClosesItsConnection) {
  HttpServerOptions options = Options();
  auto server = HttpServer::Create(options, [](HttpRequest, std::shared_ptr<HttpExchange>) {});
  ASSERT_TRUE(server.ok());
  RawHttp http((*server)->address());
  http.Send(kGet);
  EXPECT_TRUE(http.AwaitEnd());
}

TEST(HttpServerTest, BadAddresses) {
  for (const char* address : {"", "8080", "localhost", "127.0.0.1:x", "127.0.0.1:70000",
                              "example.org:80", "127.0.0.1:-1"}) {
    HttpServerOptions options = Options();
    options.address = address;
    EXPECT_EQ(HttpServer::Create(options, [](HttpRequest, std::shared_ptr<HttpExchange>) {})
                  .status()
                  .code(),
              absl::StatusCode::kInvalidArgument)
        << address;
  }
  HttpServerOptions options = Options();
  auto server = HttpServer::Create(options, [](HttpRequest, std::shared_ptr<HttpExchange>) {});
  options.address = (*server)->address();
  EXPECT_EQ(HttpServer::Create(options, [](HttpRequest, std::shared_ptr<HttpExchange>) {})
                .status()
                .code(),
            absl::StatusCode::kUnavailable);
}

// Answers are written by threads of their own, as gRPC's are: everything arrives, in order, on
// connections that are used again and again.
TEST(HttpServerTest, ProducersOnTheirOwnThreads) {
  constexpr int kConnections = 8;
  constexpr int kRequests = 10;
  constexpr int kPieces = 100;
  std::mutex mutex;
  std::vector<std::thread> producers;
  HttpServerOptions options = Options();
  options.threads = 2;
  std::atomic<int> finished{0};
  auto server =
      HttpServer::Create(options, [&](const HttpRequest&, std::shared_ptr<HttpExchange> exchange) {
        exchange->SetOnFinished([&](int status, double) { finished += status == 200 ? 1 : 0; });
        exchange->SetOnGone([](bool) { ADD_FAILURE() << "nobody went away"; });
        std::lock_guard lock(mutex);
        producers.emplace_back([exchange = std::move(exchange)] {
          exchange->StartStream(200, {});
          for (int i = 0; i < kPieces; ++i) exchange->Write(std::to_string(i) + ",");
          exchange->EndStream(true);
        });
      });
  ASSERT_TRUE(server.ok());
  std::string expected;
  for (int i = 0; i < kPieces; ++i) expected += std::to_string(i) + ",";
  std::vector<std::thread> clients;
  for (int c = 0; c < kConnections; ++c) {
    clients.emplace_back([&] {
      RawHttp http((*server)->address());
      for (int r = 0; r < kRequests; ++r) {
        http.Send(kGet);
        const RawResponse response = http.Read();
        EXPECT_TRUE(response.complete);
        EXPECT_EQ(response.body, expected);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(Eventually([&] { return finished == kConnections * kRequests; }));
  for (std::thread& producer : producers) producer.join();
}

// Peers that go away at any moment: each producer is told, and each exchange finishes once.
TEST(HttpServerTest, PeersThatGoAwayAtAnyMoment) {
  constexpr int kPeers = 60;
  std::mutex mutex;
  std::vector<std::thread> producers;
  std::atomic<int> gone{0};
  std::atomic<int> finished{0};
  auto server = HttpServer::Create(Options(),
                                   [&](const HttpRequest&, std::shared_ptr<HttpExchange> exchange) {
                                     auto stop = std::make_shared<std::atomic<bool>>(false);
                                     exchange->SetOnFinished([&](int, double) { ++finished; });
                                     exchange->SetOnGone([&gone, stop](bool) {
                                       ++gone;
                                       *stop = true;
                                     });
                                     std::lock_guard lock(mutex);
                                     producers.emplace_back([exchange = std::move(exchange), stop] {
                                       exchange->StartStream(200, {});
                                       while (!*stop)
                                         exchange->Write("some text, again and again\n");
                                     });
                                   });
  ASSERT_TRUE(server.ok());
  for (int i = 0; i < kPeers; ++i) {
    RawHttp http((*server)->address(), 4096);
    http.Send(kGet);
    for (int reads = 0; reads < i % 4; ++reads) http.More();
  }
  EXPECT_TRUE(Eventually([&] { return finished == kPeers; }));
  EXPECT_EQ(gone, kPeers);
  for (std::thread& producer : producers) producer.join();
}

// The server ends while answers are being written; what is written afterwards goes nowhere.
TEST(HttpServerTest, EndsUnderLoad) {
  std::mutex mutex;
  std::vector<std::shared_ptr<HttpExchange>> exchanges;
  auto server = HttpServer::Create(Options(),
                                   [&](const HttpRequest&, std::shared_ptr<HttpExchange> exchange) {
                                     exchange->StartStream(200, {});
                                     std::lock_guard lock(mutex);
                                     exchanges.push_back(std::move(exchange));
                                   });
  ASSERT_TRUE(server.ok());
  std::vector<std::unique_ptr<RawHttp>> peers;
  for (int i = 0; i < 8; ++i) {
    peers.push_back(std::make_unique<RawHttp>((*server)->address()));
    peers.back()->Send(kGet);
    EXPECT_TRUE(peers.back()->Await("\r\n\r\n"));
  }
  std::atomic<bool> stop{false};
  std::thread producer([&] {
    while (!stop) {
      std::lock_guard lock(mutex);
      for (const auto& exchange : exchanges) exchange->Write("x");
    }
  });
  *server = nullptr;
  for (const auto& peer : peers) EXPECT_TRUE(peer->AwaitEnd());
  stop = true;
  producer.join();
  EXPECT_FALSE(exchanges[0]->Write("x"));
}

}  // namespace
}  // namespace cogumi::gateway
