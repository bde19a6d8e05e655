// The host of services: addresses, health, drain, metrics, and the stream writer under a slow
// reader, with DecoderService's Generate as the method.
#include "services/common/server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "cogumi/v1/decoder.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "services/common/channel.h"
#include "services/common/logging.h"
#include "services/common/metrics_server.h"
#include "services/common/rpc_call.h"
#include "services/common/stream_writer.h"
#include "services/common/worker.h"

namespace cogumi::services {
namespace {

using testing::HasSubstr;

// Polls a condition; false after ten seconds.
bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return condition();
}

class TestStream : public StreamWriter<v1::GenerateResponse> {
 public:
  TestStream(ServiceRuntime& runtime, grpc::CallbackServerContext* context, StreamLimits limits)
      : StreamWriter(runtime, context, "Generate", limits) {}

  std::atomic<int> abandoned{0};
  std::atomic<int> finished{0};
  bool merge = false;

 private:
  void OnAbandoned(const absl::Status&) override { ++abandoned; }
  void OnEnded(const absl::Status&) override { ++finished; }
  bool Merge(v1::GenerateResponse& waiting, v1::GenerateResponse& next) override {
    if (!merge) return false;
    waiting.mutable_chunk()->mutable_text()->append(next.chunk().text());
    return true;
  }
};

// Hands its streams to the test.
class TestService : public v1::DecoderService::CallbackService {
 public:
  explicit TestService(ServiceRuntime& runtime) : runtime_(runtime) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest*) override {
    auto stream = std::make_shared<TestStream>(runtime_, context, limits);
    stream->merge = merge;
    stream->Start();
    if (!stream->call().admission().ok()) stream->End(stream->call().admission());
    std::lock_guard<std::mutex> lock(mutex_);
    streams_.push_back(stream);
    return stream.get();
  }

  grpc::ServerUnaryReactor* ModelInfo(grpc::CallbackServerContext* context,
                                      const v1::ModelInfoRequest*,
                                      v1::ModelInfoResponse* response) override {
    return Unary(runtime_, context, "ModelInfo", [&](RpcCall& call) {
      last_request = call.request();
      response->set_kernel_configuration("test");
      return absl::OkStatus();
    });
  }

  std::shared_ptr<TestStream> WaitStream(size_t index) {
    std::shared_ptr<TestStream> stream;
    EXPECT_TRUE(Eventually([&] {
      std::lock_guard<std::mutex> lock(mutex_);
      if (streams_.size() <= index) return false;
      stream = streams_[index];
      return true;
    }));
    return stream;
  }

  StreamLimits limits;
  bool merge = false;
  RequestContext last_request;

 private:
  ServiceRuntime& runtime_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<TestStream>> streams_;
};

v1::GenerateResponse Text(const std::string& text) {
  v1::GenerateResponse response;
  response.mutable_chunk()->set_text(text);
  return response;
}

class ServerTest : public testing::Test {
 protected:
  void Start(ServerOptions options = {}) {
    options.log_requests = false;
    auto host = ServiceHost::Create(
        runtime_, options, {{&service_, v1::DecoderService::service_full_name()}},
        [this] { return healthy_ ? absl::OkStatus() : absl::UnavailableError("no fuel"); });
    ASSERT_TRUE(host.ok()) << host.status();
    host_ = *std::move(host);
    channel_ = host_->address().empty() ? host_->InProcessChannel()
                                        : MakeChannel(host_->address());
    stub_ = v1::DecoderService::NewStub(channel_);
  }

  grpc::health::v1::HealthCheckResponse::ServingStatus Health(const std::string& service) {
    auto health = grpc::health::v1::Health::NewStub(channel_);
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    grpc::health::v1::HealthCheckResponse response;
    const grpc::Status status = health->Check(&context, request, &response);
    return status.ok() ? response.status() : grpc::health::v1::HealthCheckResponse::UNKNOWN;
  }

  ServiceRuntime runtime_{"test"};
  TestService service_{runtime_};
  std::atomic<bool> healthy_{true};
  std::unique_ptr<ServiceHost> host_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::DecoderService::Stub> stub_;
};

TEST_F(ServerTest, AnswersInProcessAndPassesTheContext) {
  ServerOptions options;
  options.address = "";
  Start(options);
  grpc::ClientContext context;
  context.AddMetadata(kRequestIdKey, "abc-1");
  context.AddMetadata(kTenantKey, "acme");
  context.AddMetadata(kTraceparentKey,
                      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(100));
  v1::ModelInfoResponse response;
  ASSERT_TRUE(stub_->ModelInfo(&context, {}, &response).ok());
  EXPECT_EQ(response.kernel_configuration(), "test");
  EXPECT_EQ(service_.last_request.request_id, "abc-1");
  EXPECT_EQ(service_.last_request.tenant, "acme");
  EXPECT_EQ(service_.last_request.traceparent.size(), 55u);
  EXPECT_NEAR(service_.last_request.deadline - runtime_.clock->Now(), 100, 5);
  EXPECT_EQ(context.GetServerInitialMetadata().count(kRequestIdKey), 1u);
}

TEST_F(ServerTest, MalformedContextIsReplaced) {
  Start();
  grpc::ClientContext context;
  context.AddMetadata(kRequestIdKey, "has space");
  context.AddMetadata(kTenantKey, "a/b");
  context.AddMetadata(kTraceparentKey, "nonsense");
  v1::ModelInfoResponse response;
  ASSERT_TRUE(stub_->ModelInfo(&context, {}, &response).ok());
  EXPECT_EQ(service_.last_request.request_id.size(), 32u);
  EXPECT_EQ(service_.last_request.tenant, "default");
  EXPECT_EQ(service_.last_request.traceparent, "");
  EXPECT_EQ(service_.last_request.deadline, 0);
}

TEST_F(ServerTest, MethodsThatAreNotThereAreUnimplemented) {
  Start();
  grpc::ClientContext context;
  v1::TokenizeResponse response;
  EXPECT_EQ(stub_->Tokenize(&context, {}, &response).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(ServerTest, ListensOnAUnixSocket) {
  const std::string path = testing::TempDir() + "/server_test.sock";
  ServerOptions options;
  options.address = "unix:" + path;
  Start(options);
  grpc::ClientContext context;
  v1::ModelInfoResponse response;
  EXPECT_TRUE(stub_->ModelInfo(&context, {}, &response).ok());
  EXPECT_EQ(std::filesystem::status(path).permissions() &
                (std::filesystem::perms::group_all | std::filesystem::perms::others_all),
            std::filesystem::perms::none);
  // A socket that is served is not taken away.
  ServiceRuntime other("other");
  EXPECT_TRUE(absl::IsUnavailable(ServiceHost::Create(other, options, {}).status()));
}

TEST_F(ServerTest, ATakenPortIsUnavailable) {
  Start();
  ServiceRuntime other("other");
  TestService service(other);
  ServerOptions options;
  options.address = host_->address();
  const auto second = ServiceHost::Create(
      other, options, {{&service, v1::DecoderService::service_full_name()}});
  EXPECT_TRUE(absl::IsUnavailable(second.status())) << second.status();
}

TEST(AddressTest, OnlyLocalWithoutTheFlag) {
  for (const char* address : {"127.0.0.1:0", "localhost:1", "[::1]:5", "unix:/x", "127.8.9.1:1"}) {
    EXPECT_TRUE(CheckLocalAddress(address).ok()) << address;
  }
  for (const char* address : {"0.0.0.0:1", "[::]:1", "10.0.0.1:2", "example.com:3", "nonsense"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckLocalAddress(address))) << address;
  }
}

TEST_F(ServerTest, HealthFollowsTheCallback) {
  using grpc::health::v1::HealthCheckResponse;
  Start();
  EXPECT_EQ(Health(""), HealthCheckResponse::SERVING);
  EXPECT_EQ(Health("cogumi.v1.DecoderService"), HealthCheckResponse::SERVING);

  auto health = grpc::health::v1::Health::NewStub(channel_);
  grpc::ClientContext context;
  auto watch = health->Watch(&context, {});
  HealthCheckResponse seen;
  ASSERT_TRUE(watch->Read(&seen));
  EXPECT_EQ(seen.status(), HealthCheckResponse::SERVING);
  healthy_ = false;
  ASSERT_TRUE(watch->Read(&seen));
  EXPECT_EQ(seen.status(), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(Health("cogumi.v1.DecoderService"), HealthCheckResponse::NOT_SERVING);
  healthy_ = true;
  ASSERT_TRUE(watch->Read(&seen));
  EXPECT_EQ(seen.status(), HealthCheckResponse::SERVING);
  context.TryCancel();
}

// Asks for each message when the test says so, while it waits for the status all the time.
class LateReader : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  explicit LateReader(v1::DecoderService::Stub& stub) {
    stub.async()->Generate(&context_, &request_, this);
    AddHold();  // reads are started from outside
    StartCall();
  }
  // The next message's text; nothing at the end.
  std::optional<std::string> Next() {
    std::unique_lock<std::mutex> lock(mutex_);
    read_.reset();
    StartRead(&response_);
    changed_.wait(lock, [this] { return read_.has_value(); });
    return *read_ ? std::optional(response_.chunk().text()) : std::nullopt;
  }
  grpc::Status Finish() {
    RemoveHold();
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return done_.has_value(); });
    return *done_;
  }

 private:
  void OnReadDone(bool ok) override {
    std::lock_guard<std::mutex> lock(mutex_);
    read_ = ok;
    changed_.notify_all();
  }
  void OnDone(const grpc::Status& status) override {
    std::lock_guard<std::mutex> lock(mutex_);
    done_ = status;
    changed_.notify_all();
  }

  grpc::ClientContext context_;
  v1::GenerateRequest request_;
  v1::GenerateResponse response_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<bool> read_;
  std::optional<grpc::Status> done_;
};

TEST_F(ServerTest, TheLastMessageWaitsForItsReader) {
  ServerOptions options;
  options.address = "";  // in process
  Start(options);
  LateReader reader(*stub_);
  auto stream = service_.WaitStream(0);
  EXPECT_TRUE(stream->PushAndEnd(Text("last")));
  EXPECT_EQ(reader.Next(), "last");
  EXPECT_EQ(reader.Next(), std::nullopt);
  EXPECT_TRUE(reader.Finish().ok());
  EXPECT_TRUE(runtime_.calls.WaitIdle(10));
}

TEST_F(ServerTest, HealthIsAskedBeforeTheFirstCall) {
  using grpc::health::v1::HealthCheckResponse;
  healthy_ = false;
  ::testing::internal::CaptureStderr();
  Start();
  EXPECT_EQ(Health(""), HealthCheckResponse::NOT_SERVING);
  auto health = grpc::health::v1::Health::NewStub(channel_);
  grpc::ClientContext context;
  auto watch = health->Watch(&context, {});
  HealthCheckResponse seen;
  for (const bool healthy : {true, false}) {
    healthy_ = healthy;
    do {
      ASSERT_TRUE(watch->Read(&seen));
    } while ((seen.status() == HealthCheckResponse::SERVING) != healthy);
  }
  context.TryCancel();
  host_ = nullptr;  // behind its last line
  FlushLog();
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("not healthy: no fuel"));
}

TEST_F(ServerTest, RequestLinesAreSwitchedPerService) {
  ServiceRuntime talks("talks"), silent("silent");
  silent.log_requests = false;
  ::testing::internal::CaptureStderr();
  RequestLogEntry entry;
  for (const ServiceRuntime* runtime : {&talks, &silent}) {
    entry.service = runtime->name;
    runtime->LogRequest(entry);
  }
  FlushLog();
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, HasSubstr("\"service\":\"talks\""));
  EXPECT_EQ(log.find("silent"), std::string::npos);
}

TEST_F(ServerTest, DrainLetsRunningCallsFinishAndRefusesNewOnes) {
  Start();
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, {});
  auto stream = service_.WaitStream(0);
  host_->StartDraining();
  grpc::ClientContext refused;
  // Without the channel's retries.
  refused.set_wait_for_ready(false);
  v1::ModelInfoResponse response;
  EXPECT_EQ(stub_->ModelInfo(&refused, {}, &response).error_code(),
            grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Health(""), grpc::health::v1::HealthCheckResponse::NOT_SERVING);

  std::thread drain([this] { EXPECT_TRUE(host_->Drain(60).ok()); });
  ASSERT_TRUE(stream->Push(Text("last words")));
  ASSERT_TRUE(stream->End(absl::OkStatus()));
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_EQ(message.chunk().text(), "last words");
  EXPECT_FALSE(reader->Read(&message));
  EXPECT_TRUE(reader->Finish().ok());
  drain.join();
}

TEST_F(ServerTest, DrainCutsOffAfterItsGrace) {
  Start();
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, {});
  auto stream = service_.WaitStream(0);
  EXPECT_TRUE(absl::IsDeadlineExceeded(host_->Drain(0.01)));
  EXPECT_EQ(stream->abandoned, 1);
  EXPECT_EQ(stream->finished, 1);
  EXPECT_FALSE(reader->Finish().ok());
}

TEST_F(ServerTest, AHealthWatchDoesNotHoldTheDrain) {
  Start();
  auto health = grpc::health::v1::Health::NewStub(channel_);
  grpc::ClientContext context;
  auto watch = health->Watch(&context, {});
  grpc::health::v1::HealthCheckResponse seen;
  ASSERT_TRUE(watch->Read(&seen));
  const double start = runtime_.clock->Now();
  EXPECT_TRUE(host_->Drain(60).ok());
  EXPECT_LT(runtime_.clock->Now() - start, 30);
}

TEST_F(ServerTest, StreamsKeepTheirOrderAndEndOnce) {
  Start();
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, {});
  auto stream = service_.WaitStream(0);
  std::thread producer([&stream] {
    for (int i = 0; i < 500; ++i) ASSERT_TRUE(stream->Push(Text(std::to_string(i))));
    EXPECT_TRUE(stream->PushAndEnd(Text("end")));
    EXPECT_FALSE(stream->Push(Text("late")));
    EXPECT_FALSE(stream->End(absl::InternalError("late")));
  });
  v1::GenerateResponse message;
  for (int i = 0; i < 500; ++i) {
    ASSERT_TRUE(reader->Read(&message));
    ASSERT_EQ(message.chunk().text(), std::to_string(i));
  }
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_EQ(message.chunk().text(), "end");
  EXPECT_FALSE(reader->Read(&message));
  EXPECT_TRUE(reader->Finish().ok());
  producer.join();
  EXPECT_TRUE(Eventually([&] { return stream->finished == 1; }));
  EXPECT_EQ(stream->abandoned, 0);
  EXPECT_TRUE(Eventually([&] { return runtime_.calls.running() == 0; }));
}

TEST_F(ServerTest, WaitingMessagesMerge) {
  service_.merge = true;
  Start();
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, {});
  auto stream = service_.WaitStream(0);
  std::string sent;
  for (int i = 0; i < 300; ++i) {
    const std::string piece = std::to_string(i) + " ";
    sent += piece;
    ASSERT_TRUE(stream->Push(Text(piece)));
  }
  stream->End(absl::OkStatus());
  std::string got;
  v1::GenerateResponse message;
  while (reader->Read(&message)) got += message.chunk().text();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(got, sent);
}

TEST_F(ServerTest, ASlowReaderIsBoundedAndCutOff) {
  service_.limits.max_queued_bytes = 64 * 1024;
  service_.limits.stuck_seconds = 0.05;
  Start();
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, {});  // never reads while the stream is pushed
  auto stream = service_.WaitStream(0);
  const std::string piece(16 * 1024, 'x');
  size_t most = 0;
  bool ended = false;
  // Windows and buffers of the transport take some; then the queue fills.
  for (int i = 0; i < 100000 && !ended; ++i) {
    ended = !stream->Push(Text(piece));
    most = std::max(most, stream->queued_bytes());
  }
  EXPECT_TRUE(ended);
  EXPECT_LE(most, service_.limits.max_queued_bytes);
  EXPECT_EQ(stream->queued_bytes(), 0u);
  EXPECT_EQ(stream->abandoned, 1);
  // The reader that never reads is cut off by the timer.
  EXPECT_TRUE(Eventually([&] { return stream->finished == 1; }));
  EXPECT_TRUE(Eventually([&] { return runtime_.calls.running() == 0; }));
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
}

TEST_F(ServerTest, ASlowReaderThatComesBackLearnsWhy) {
  service_.limits.max_queued_bytes = 64 * 1024;
  service_.limits.stuck_seconds = 60;
  Start();
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, {});
  auto stream = service_.WaitStream(0);
  const std::string piece(16 * 1024, 'x');
  while (stream->Push(Text(piece))) {
  }
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(ServerTest, ACancelledStreamTellsItsProducerOnce) {
  Start();
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, {});
  auto stream = service_.WaitStream(0);
  context.TryCancel();
  EXPECT_TRUE(Eventually([&] { return stream->finished == 1; }));
  EXPECT_EQ(stream->abandoned, 1);
  EXPECT_FALSE(stream->Push(Text("nobody")));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(ServerTest, MetricsAreServed) {
  ServerOptions options;
  options.metrics_address = "127.0.0.1:0";
  Start(options);
  grpc::ClientContext context;
  v1::ModelInfoResponse response;
  ASSERT_TRUE(stub_->ModelInfo(&context, {}, &response).ok());
  const std::string address = host_->metrics_address();
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
  const std::string request = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
  ASSERT_EQ(::send(fd, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
  std::string text;
  char buffer[4096];
  for (ssize_t got = 0; (got = ::recv(fd, buffer, sizeof(buffer), 0)) > 0;) {
    text.append(buffer, static_cast<size_t>(got));
  }
  ::close(fd);
  EXPECT_THAT(text, HasSubstr("200 OK"));
  EXPECT_THAT(text, HasSubstr("cogumi_rpc_calls_total{"));
  EXPECT_THAT(text, HasSubstr("process_resident_memory_bytes "));
  EXPECT_THAT(text, HasSubstr("cogumi_build_info{"));
}

TEST(MetricsServerTest, StopsAtOnceAndRefusesATakenPort) {
  auto registry = std::make_shared<prometheus::Registry>();
  auto server = MetricsServer::Create("127.0.0.1:0", registry);
  ASSERT_TRUE(server.ok());
  EXPECT_TRUE(absl::IsUnavailable(MetricsServer::Create((*server)->address(), registry).status()));
  for (const char* address : {"", ":", "x", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(MetricsServer::Create(address, registry).status()))
        << address;
  }
}

TEST(ReadyLineTest, GoesThereAndBack) {
  const ReadyLine line{"gateway", "127.0.0.1:1", "127.0.0.1:2", {{"http", "127.0.0.1:3"}}, 42};
  const std::string text = FormatReadyLine(line);
  EXPECT_EQ(text,
            "ready service=gateway address=127.0.0.1:1 metrics=127.0.0.1:2 http=127.0.0.1:3 "
            "pid=42");
  const auto parsed = ParseReadyLine(text + "\n");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->service, "gateway");
  EXPECT_EQ(parsed->extra.size(), 1u);
  EXPECT_EQ(parsed->pid, 42);
  for (const char* bad : {"", "reddy service=x pid=1", "ready", "ready service=x",
                          "ready service=x pid=abc", "ready service=x pid=1 stray"}) {
    EXPECT_FALSE(ParseReadyLine(bad).ok()) << bad;
  }
}

TEST(WorkerTest, IsBoundedAndRunsWhatWaits) {
  std::mutex gate;
  gate.lock();
  std::atomic<int> ran{0};
  {
    Worker worker(2);
    std::atomic<bool> started{false};
    ASSERT_TRUE(worker.Post([&] {
      started = true;
      std::lock_guard<std::mutex> lock(gate);
      ++ran;
    }));
    ASSERT_TRUE(Eventually([&] { return started.load(); }));
    EXPECT_TRUE(worker.Post([&] { ++ran; }));
    EXPECT_TRUE(worker.Post([&] { ++ran; }));
    EXPECT_FALSE(worker.Post([&] { ++ran; }));
    gate.unlock();
  }
  EXPECT_EQ(ran, 3);
}

TEST(BoundedLabelTest, HasACap) {
  BoundedLabel label(2);
  EXPECT_EQ(label("a"), "a");
  EXPECT_EQ(label("b"), "b");
  EXPECT_EQ(label("c"), "other");
  EXPECT_EQ(label("a"), "a");
}

}  // namespace
}  // namespace cogumi::services
