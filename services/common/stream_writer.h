// A server-streaming answer of the callback API with a bounded queue.
//
// One write is in flight at a time; what is pushed meanwhile waits, and may be merged into the
// message that waits already. A reader so slow that more than `max_queued_bytes` wait ends its
// stream with RESOURCE_EXHAUSTED, and OnAbandoned tells the producer to stop. Finish is called
// exactly once, whichever of producer, client, deadline and overflow comes first.
//
// Lifetime: made by std::make_shared, kept alive by itself from Start() to gRPC's OnDone and by
// whoever holds a pointer for pushing. Everything is safe from any thread.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/support/server_callback.h>

#include <chrono>
#include <deque>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/status/status.h"
#include "services/common/rpc_call.h"
#include "services/common/status.h"

namespace cogumi::services {

struct StreamLimits {
  size_t max_queued_bytes = 256 * 1024;
  // A reader that takes nothing for so long after its overflow is cut off.
  double stuck_seconds = 10;
};

template <typename Response>
class StreamWriter : public grpc::ServerWriteReactor<Response>,
                     public std::enable_shared_from_this<StreamWriter<Response>> {
 public:
  StreamWriter(ServiceRuntime& runtime, grpc::CallbackServerContext* context,
               std::string_view method, StreamLimits limits = {})
      : context_(context), limits_(limits), call_(runtime, context, method) {}
  ~StreamWriter() override = default;

  // Takes hold of itself until gRPC is done; call once, in the rpc method, and return this.
  StreamWriter* Start() {
    self_ = this->shared_from_this();
    return this;
  }

  RpcCall& call() { return call_; }

  // Queues a message. False when the stream has ended (or now ends, by overflow): stop producing.
  bool Push(Response message);
  // Ends the stream after everything that is queued. The first end counts; false when it was not
  // this one.
  bool End(absl::Status status);
  // The last message and OK in one.
  bool PushAndEnd(Response message);
  bool ended() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return ended_;
  }
  // Bytes that wait now.
  size_t queued_bytes() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return queued_bytes_;
  }

 protected:
  // The consumer is gone (cancel, disconnect, deadline, overflow): stop the work behind the stream.
  // At most once, never after the producer's own End; without locks held.
  virtual void OnAbandoned(const absl::Status& /*why*/) {}
  // May append `next` to `waiting` and return true. Called with the lock held.
  virtual bool Merge(Response& /*waiting*/, Response& /*next*/) { return false; }
  // The stream is over; `status` is what was sent. Fill call().log() here.
  virtual void OnEnded(const absl::Status& /*status*/) {}
  // Asked when gRPC has let go of the stream: true when the producer has yet to say how its work
  // ended. It then calls Close, once; until then the call counts as running.
  virtual bool AwaitsProducer() { return false; }
  void Close() {
    OnEnded(final_);
    call_.End(final_);
  }
  // A message was handed to the transport: there is room again. Producers that read from a source
  // on demand push here. Without locks held.
  virtual void OnWritten() {}

 private:
  struct Item {
    Response message;
    size_t bytes;
  };

  void OnWriteDone(bool ok) final;
  void OnCancel() final { Abandon(Gone()); }
  void OnDone() final {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      done_ = true;  // the context ends with this call: the alarm must not touch it any more
    }
    stuck_.reset();
    const auto self = std::move(self_);
    if (!AwaitsProducer()) Close();
  }
  // Starts what comes next when no operation is in flight. With the lock held.
  void PumpLocked();
  void Abandon(absl::Status why);
  // gRPC tells of an expired deadline by a cancellation.
  absl::Status Gone() const {
    const RequestContext& request = call_.request();
    if (request.deadline > 0 && call_.runtime().clock->Now() >= request.deadline) {
      return absl::DeadlineExceededError("the deadline of the call has passed");
    }
    return absl::CancelledError("the caller has gone");
  }

  grpc::CallbackServerContext* const context_;
  const StreamLimits limits_;
  RpcCall call_;
  std::shared_ptr<StreamWriter> self_;

  mutable std::mutex mutex_;
  std::deque<Item> queue_;
  size_t queued_bytes_ = 0;
  Response in_flight_;
  bool writing_ = false;
  bool ended_ = false;     // nothing more may be pushed; final_ is set
  bool finished_ = false;  // Finish was called
  bool done_ = false;      // gRPC has let go
  absl::Status final_;
  std::unique_ptr<grpc::Alarm> stuck_;
};

template <typename Response>
bool StreamWriter<Response>::Push(Response message) {
  bool overflow = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (ended_) return false;
    const size_t bytes = message.ByteSizeLong();
    if (queued_bytes_ + bytes > limits_.max_queued_bytes && !queue_.empty()) {
      overflow = true;
    } else {
      if (queue_.empty() || !Merge(queue_.back().message, message)) {
        queue_.push_back({std::move(message), bytes});
      } else {
        queue_.back().bytes += bytes;
      }
      queued_bytes_ += bytes;
      PumpLocked();
    }
  }
  if (!overflow) return true;
  Abandon(WithReason(absl::ResourceExhaustedError(
                         "the reader is slower than the answer: its buffer is full"),
                     "SLOW_READER"));
  return false;
}

template <typename Response>
bool StreamWriter<Response>::End(absl::Status status) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (ended_) return false;
  ended_ = true;
  final_ = std::move(status);
  PumpLocked();
  return true;
}

template <typename Response>
bool StreamWriter<Response>::PushAndEnd(Response message) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (ended_) return false;
  const size_t bytes = message.ByteSizeLong();
  queue_.push_back({std::move(message), bytes});
  queued_bytes_ += bytes;
  ended_ = true;
  final_ = absl::OkStatus();
  PumpLocked();
  return true;
}

template <typename Response>
void StreamWriter<Response>::PumpLocked() {
  if (writing_ || finished_) return;
  if (!queue_.empty()) {
    in_flight_ = std::move(queue_.front().message);
    queued_bytes_ -= queue_.front().bytes;
    queue_.pop_front();
    writing_ = true;
    // Never together with the end: in process, a caller who waits for the status already (as
    // asynchronous ones do) would get it before a message that it has not asked for yet. The
    // message is lost then, and its write never ends.
    this->StartWrite(&in_flight_);
    return;
  }
  if (ended_) {
    finished_ = true;
    this->Finish(ToGrpc(final_));
  }
}

template <typename Response>
void StreamWriter<Response>::OnWriteDone(bool ok) {
  if (!ok) {
    // Nothing more reaches the caller; OnCancel comes too, or has come.
    Abandon(Gone());
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    writing_ = false;
    PumpLocked();
  }
  if (ok) OnWritten();
}

template <typename Response>
void StreamWriter<Response>::Abandon(absl::Status why) {
  absl::Status told = why;
  bool tell = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (finished_) return;
    // An end that was queued but not sent is replaced: the caller does not see it.
    tell = !ended_;
    ended_ = true;
    final_ = std::move(why);
    queue_.clear();
    queued_bytes_ = 0;
    if (writing_ && absl::IsResourceExhausted(final_) && stuck_ == nullptr) {
      stuck_ = std::make_unique<grpc::Alarm>();
      std::weak_ptr<StreamWriter> weak = this->weak_from_this();
      stuck_->Set(std::chrono::system_clock::now() +
                      std::chrono::duration_cast<std::chrono::system_clock::duration>(
                          std::chrono::duration<double>(limits_.stuck_seconds)),
                  [weak](bool expired) {
                    auto stream = weak.lock();
                    if (!expired || stream == nullptr) return;
                    std::lock_guard<std::mutex> alarm_lock(stream->mutex_);
                    if (!stream->done_) stream->context_->TryCancel();
                  });
    }
    PumpLocked();
  }
  if (tell) OnAbandoned(told);
}

}  // namespace cogumi::services
