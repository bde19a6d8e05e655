#include "services/decoder/adapter_supplier.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <chrono>
#include <mutex>
#include <set>
#include <utility>

#include "cogumi/v1/modifiers.grpc.pb.h"
#include "services/common/status.h"
#include "services/decoder/adapter_bytes.h"

namespace cogumi::services {
namespace {

constexpr std::chrono::seconds kGetSeconds(2);
// A gigabyte within a machine room; a service that hangs is left behind then.
constexpr std::chrono::seconds kFetchSeconds(30);

class GrpcAdapterSupplier : public AdapterSupplier {
 public:
  explicit GrpcAdapterSupplier(std::shared_ptr<grpc::Channel> channel)
      : stub_(v1::ModifierService::NewStub(std::move(channel))) {}

  absl::StatusOr<v1::Adapter> Get(const std::string& name_or_digest) override {
    Call call(*this);
    call.context.set_deadline(std::chrono::system_clock::now() + kGetSeconds);
    v1::GetRequest request;
    if (IsAdapterDigest(name_or_digest)) {
      request.set_digest(name_or_digest);
    } else {
      request.set_name(name_or_digest);
    }
    v1::GetResponse response;
    const absl::Status status = FromGrpc(stub_->Get(&call.context, request, &response));
    if (!status.ok()) return status;
    return std::move(*response.mutable_adapter());
  }

  absl::Status Fetch(
      const std::string& digest,
      const std::function<absl::Status(const v1::FetchResponse&)>& on_piece) override {
    Call call(*this);
    call.context.set_deadline(std::chrono::system_clock::now() + kFetchSeconds);
    v1::FetchRequest request;
    request.set_digest(digest);
    const auto reader = stub_->Fetch(&call.context, request);
    v1::FetchResponse piece;
    absl::Status taken;
    while (taken.ok() && reader->Read(&piece)) taken = on_piece(piece);
    if (!taken.ok()) call.context.TryCancel();
    const absl::Status status = FromGrpc(reader->Finish());
    return taken.ok() ? status : taken;
  }

  absl::Status Watch(const std::function<void(const v1::WatchResponse&)>& on_change) override {
    Call call(*this);
    const auto reader = stub_->Watch(&call.context, {});
    v1::WatchResponse change;
    while (reader->Read(&change)) on_change(change);
    return FromGrpc(reader->Finish());
  }

  void Stop() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopped_ = true;
    for (grpc::ClientContext* context : running_) context->TryCancel();
  }

 private:
  // A call that Stop can find.
  struct Call {
    explicit Call(GrpcAdapterSupplier& owner) : supplier(owner) {
      const std::lock_guard<std::mutex> lock(supplier.mutex_);
      supplier.running_.insert(&context);
      if (supplier.stopped_) context.TryCancel();  // before its start too: it ends at once
    }
    ~Call() {
      const std::lock_guard<std::mutex> lock(supplier.mutex_);
      supplier.running_.erase(&context);
    }
    GrpcAdapterSupplier& supplier;
    grpc::ClientContext context;
  };

  const std::unique_ptr<v1::ModifierService::Stub> stub_;
  std::mutex mutex_;
  std::set<grpc::ClientContext*> running_;
  bool stopped_ = false;
};

}  // namespace

std::unique_ptr<AdapterSupplier> MakeGrpcAdapterSupplier(std::shared_ptr<grpc::Channel> channel) {
  return std::make_unique<GrpcAdapterSupplier>(std::move(channel));
}

}  // namespace cogumi::services
