#include "services/gateway/health_watch.h"

#include <grpcpp/alarm.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "grpc/health/v1/health.grpc.pb.h"

namespace cogumi::gateway {
namespace {

namespace health = grpc::health::v1;

// Between the end of a watch and the next; the channel itself waits longer while nobody listens.
constexpr std::chrono::milliseconds kRetry(100);

}  // namespace

struct HealthWatch::State : public std::enable_shared_from_this<State> {
  explicit State(std::shared_ptr<grpc::Channel> channel)
      : stub(health::Health::NewStub(std::move(channel))) {}

  void StartStream();
  void RetryLater();

  const std::unique_ptr<health::Health::Stub> stub;
  std::mutex mutex;
  std::condition_variable ended;
  bool stopping = false;
  bool serving = false;
  uint64_t breaks = 0;
  bool active = true;  // a stream or an alarm is under way
  std::shared_ptr<Stream> stream;
  std::shared_ptr<grpc::Alarm> alarm;
};

// One watch; keeps itself until gRPC is done with it.
class HealthWatch::Stream : public grpc::ClientReadReactor<health::HealthCheckResponse> {
 public:
  explicit Stream(std::shared_ptr<State> state) : state_(std::move(state)) {}

  void Run(std::shared_ptr<Stream> self) {
    self_ = std::move(self);
    // While nobody listens the channel goes on trying, by its own rhythm.
    context_.set_wait_for_ready(true);
    state_->stub->async()->Watch(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }
  // Also before Run: the call then ends at once.
  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    {
      std::lock_guard lock(state_->mutex);
      answered_ = true;
      state_->serving = response_.status() == health::HealthCheckResponse::SERVING;
    }
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    const std::shared_ptr<Stream> self = std::move(self_);
    {
      std::lock_guard lock(state_->mutex);
      // Without a health service: it answered, so it is there.
      state_->serving = status.error_code() == grpc::StatusCode::UNIMPLEMENTED;
      state_->breaks += answered_ ? 1 : 0;
      state_->stream = nullptr;
    }
    state_->RetryLater();
  }

 private:
  const std::shared_ptr<State> state_;
  std::shared_ptr<Stream> self_;
  bool answered_ = false;
  grpc::ClientContext context_;
  health::HealthCheckRequest request_;
  health::HealthCheckResponse response_;
};

void HealthWatch::State::StartStream() {
  std::shared_ptr<Stream> next;
  {
    std::lock_guard lock(mutex);
    if (stopping) {
      active = false;
      ended.notify_all();
      return;
    }
    next = std::make_shared<Stream>(shared_from_this());
    stream = next;
  }
  Stream& running = *next;
  running.Run(std::move(next));
}

void HealthWatch::State::RetryLater() {
  std::lock_guard lock(mutex);
  if (stopping) {
    active = false;
    ended.notify_all();
    return;
  }
  // A new one each time: this may run inside the old one's callback.
  alarm = std::make_shared<grpc::Alarm>();
  alarm->Set(std::chrono::system_clock::now() + kRetry,
             [self = shared_from_this()](bool) { self->StartStream(); });
}

HealthWatch::HealthWatch(std::shared_ptr<grpc::Channel> channel)
    : state_(std::make_shared<State>(std::move(channel))) {
  state_->StartStream();
}

HealthWatch::~HealthWatch() {
  std::shared_ptr<Stream> stream;
  std::shared_ptr<grpc::Alarm> alarm;
  {
    std::lock_guard lock(state_->mutex);
    state_->stopping = true;
    stream = state_->stream;
    alarm = state_->alarm;
  }
  // Without the lock: both may call back on this thread.
  if (stream != nullptr) stream->Cancel();
  if (alarm != nullptr) alarm->Cancel();
  std::unique_lock lock(state_->mutex);
  state_->ended.wait(lock, [this] { return !state_->active; });
  // An alarm keeps its callback, and that the state.
  alarm = std::move(state_->alarm);
}

bool HealthWatch::serving() const {
  std::lock_guard lock(state_->mutex);
  return state_->serving;
}

uint64_t HealthWatch::breaks() const {
  std::lock_guard lock(state_->mutex);
  return state_->breaks;
}

}  // namespace cogumi::gateway
