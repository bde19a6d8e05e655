#include "services/modifiers/modifiers_service.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "cogumi/v1/modifiers.grpc.pb.h"
#include "engine/core/status_macros.h"
#include "prometheus/counter.h"
#include "prometheus/metric_family.h"
#include "services/common/rpc_call.h"
#include "services/common/status.h"
#include "services/common/stream_writer.h"
#include "services/common/text.h"
#include "services/common/worker.h"

namespace cogumi::services {
namespace {

constexpr size_t kPieceBytes = 256 * 1024;
constexpr size_t kMaxWaitingChanges = 64;
constexpr size_t kMaxWaitingReads = 1024;
// The whole catalogue may wait for a watcher.
constexpr size_t kWatchBytes = 8 << 20;

absl::Status Busy() {
  return WithReason(absl::ResourceExhaustedError("too many calls wait for the disk"),
                    "QUEUE_FULL");
}

// Figures of the catalogue at each scrape.
class CatalogueCollectable : public prometheus::Collectable {
 public:
  CatalogueCollectable(const Catalogue& catalogue, const std::atomic<int64_t>& watchers)
      : catalogue_(catalogue), watchers_(watchers) {}

  std::vector<prometheus::MetricFamily> Collect() const override {
    const CatalogueFigures figures = catalogue_.Figures();
    std::vector<prometheus::MetricFamily> families;
    const auto add = [&families](const char* name, const char* help, double value, bool counter) {
      prometheus::MetricFamily& family = families.emplace_back();
      family.name = name;
      family.help = help;
      family.type = counter ? prometheus::MetricType::Counter : prometheus::MetricType::Gauge;
      prometheus::ClientMetric& metric = family.metric.emplace_back();
      (counter ? metric.counter.value : metric.gauge.value) = value;
    };
    const auto number = [](int64_t value) { return static_cast<double>(value); };
    add("cogumi_modifiers", "Adapters in the catalogue.", number(figures.adapters), false);
    add("cogumi_modifier_bytes", "Bytes of all adapters.", number(figures.bytes), false);
    add("cogumi_modifier_newest_timestamp_seconds", "When the newest adapter came, Unix time.",
        figures.newest_unix_seconds, false);
    add("cogumi_modifier_watchers", "Open Watch streams.", number(watchers_.load()), false);
    add("cogumi_modifier_registered_total", "Adapters added or replaced.",
        number(figures.registered), true);
    add("cogumi_modifier_removed_total", "Adapters removed.", number(figures.removed), true);
    add("cogumi_modifier_refused_total", "Registrations refused by validation.",
        number(figures.refused), true);
    add("cogumi_modifiers_left_out", "Stored adapters that are damaged or of another base.",
        number(figures.left_out), false);
    return families;
  }

 private:
  const Catalogue& catalogue_;
  const std::atomic<int64_t>& watchers_;
};

class WatchStream : public StreamWriter<v1::WatchResponse>, public CatalogueListener {
 public:
  WatchStream(ServiceRuntime& runtime, grpc::CallbackServerContext* context,
              std::atomic<int64_t>& watchers)
      : StreamWriter(runtime, context, "Watch", {kWatchBytes}), watchers_(watchers) {
    ++watchers_;
  }

  void OnChange(v1::ChangeType type, const v1::Adapter* adapter, int64_t revision) override {
    v1::WatchResponse response;
    response.set_type(type);
    if (adapter != nullptr) *response.mutable_adapter() = *adapter;
    response.set_revision(revision);
    Push(std::move(response));
  }
  void OnClosed() override {
    End(WithReason(absl::UnavailableError("the service is shutting down"), "DRAINING"));
  }

 private:
  void OnEnded(const absl::Status& /*status*/) override { --watchers_; }

  std::atomic<int64_t>& watchers_;
};

// Reads the files piece by piece on the worker, the next one when the last was taken.
class FetchStream : public StreamWriter<v1::FetchResponse> {
 public:
  FetchStream(ServiceRuntime& runtime, grpc::CallbackServerContext* context, Worker& worker,
              const Catalogue& catalogue, prometheus::Counter& fetched)
      : StreamWriter(runtime, context, "Fetch", {4 * kPieceBytes}),
        worker_(worker),
        catalogue_(catalogue),
        fetched_(fetched) {}

  void Begin(const v1::FetchRequest& request) {
    if (!call().admission().ok()) {
      End(call().admission());
      return;
    }
    Post([digest = request.digest()](FetchStream& stream) {
      auto files = stream.catalogue_.OpenFiles(digest);
      if (!files.ok()) {
        stream.End(files.status());
        return;
      }
      stream.files_ = *std::move(files);
      stream.Next();
    });
  }

 private:
  void Post(std::function<void(FetchStream&)> work) {
    auto self = std::static_pointer_cast<FetchStream>(shared_from_this());
    if (!worker_.Post([self, work = std::move(work)] { work(*self); })) End(Busy());
  }

  void OnWritten() override {
    if (!ended()) Post([](FetchStream& stream) { stream.Next(); });
  }

  // On the worker only.
  void Next() {
    if (ended() || at_file_ >= files_.size()) return;
    const File& file = files_[at_file_];
    const auto size =
        static_cast<size_t>(std::min<uint64_t>(kPieceBytes, file.bytes() - offset_));
    v1::FetchResponse piece;
    piece.set_file(kAdapterFiles[at_file_]);
    piece.set_offset(static_cast<int64_t>(offset_));
    piece.mutable_data()->resize(size);
    const absl::Status status = file.Read(offset_, size, piece.mutable_data()->data());
    if (!status.ok()) {
      End(status);
      return;
    }
    fetched_.Increment(static_cast<double>(size));
    offset_ += size;
    if (offset_ == file.bytes()) {
      ++at_file_;
      offset_ = 0;
    }
    if (at_file_ == files_.size()) {
      PushAndEnd(std::move(piece));
    } else {
      Push(std::move(piece));
    }
  }

  Worker& worker_;
  const Catalogue& catalogue_;
  prometheus::Counter& fetched_;
  std::vector<File> files_;
  size_t at_file_ = 0;
  uint64_t offset_ = 0;
};

class ModifiersServiceImpl : public ModifiersService, public v1::ModifierService::CallbackService {
 public:
  ModifiersServiceImpl(ServiceRuntime& runtime, Catalogue& catalogue)
      : runtime_(runtime),
        catalogue_(catalogue),
        fetched_(prometheus::BuildCounter()
                     .Name("cogumi_modifier_fetched_bytes_total")
                     .Help("Bytes of adapters handed out.")
                     .Register(*runtime.registry)
                     .Add({})),
        changes_(kMaxWaitingChanges),
        reads_(kMaxWaitingReads) {
    runtime.metrics->Add(std::make_shared<CatalogueCollectable>(catalogue, watchers_));
  }

  HostedService hosted() override {
    return {this, v1::ModifierService::service_full_name()};
  }

  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* context,
                                 const v1::ListRequest* /*request*/,
                                 v1::ListResponse* response) override {
    return Unary(runtime_, context, "List", [&](RpcCall&) {
      int64_t revision = 0;
      for (v1::Adapter& adapter : catalogue_.List(&revision)) {
        *response->add_adapters() = std::move(adapter);
      }
      response->set_revision(revision);
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* Get(grpc::CallbackServerContext* context, const v1::GetRequest* request,
                                v1::GetResponse* response) override {
    return Unary(runtime_, context, "Get", [&](RpcCall&) -> absl::Status {
      if (request->key_case() == v1::GetRequest::KEY_NOT_SET) {
        return FieldError("key", "one of name and digest is wanted");
      }
      ASSIGN_OR_RETURN(*response->mutable_adapter(),
                       request->has_name() ? catalogue_.GetByName(request->name())
                                           : catalogue_.GetByDigest(request->digest()));
      return absl::OkStatus();
    });
  }

  grpc::ServerWriteReactor<v1::FetchResponse>* Fetch(grpc::CallbackServerContext* context,
                                                     const v1::FetchRequest* request) override {
    auto stream = std::make_shared<FetchStream>(runtime_, context, reads_, catalogue_, fetched_);
    stream->Start();
    stream->Begin(*request);
    return stream.get();
  }

  grpc::ServerWriteReactor<v1::WatchResponse>* Watch(grpc::CallbackServerContext* context,
                                                     const v1::WatchRequest* /*request*/) override {
    auto stream = std::make_shared<WatchStream>(runtime_, context, watchers_);
    stream->Start();
    const absl::Status status = stream->call().admission().ok()
                                    ? catalogue_.Subscribe(stream)
                                    : stream->call().admission();
    if (!status.ok()) stream->End(status);
    return stream.get();
  }

  grpc::ServerUnaryReactor* Register(grpc::CallbackServerContext* context,
                                     const v1::RegisterRequest* request,
                                     v1::RegisterResponse* response) override {
    return OnDisk(context, "Register", [=, this]() -> absl::Status {
      ASSIGN_OR_RETURN(Registration result,
                       catalogue_.Register(request->name(), request->path()));
      *response->mutable_adapter() = std::move(result.adapter);
      response->set_unchanged(result.unchanged);
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* Remove(grpc::CallbackServerContext* context,
                                   const v1::RemoveRequest* request,
                                   v1::RemoveResponse* response) override {
    return OnDisk(context, "Remove", [=, this]() -> absl::Status {
      ASSIGN_OR_RETURN(*response->mutable_adapter(), catalogue_.Remove(request->name()));
      return absl::OkStatus();
    });
  }

 private:
  // Changes wait for the disk: they run on a thread of their own.
  grpc::ServerUnaryReactor* OnDisk(grpc::CallbackServerContext* context, std::string_view method,
                                   std::function<absl::Status()> work) {
    auto reactor = PendingUnary::Create(runtime_, context, method);
    if (!reactor->call().admission().ok()) {
      reactor->Reply(reactor->call().admission());
    } else if (!changes_.Post([reactor, work = std::move(work)] { reactor->Reply(work()); })) {
      reactor->Reply(Busy());
    }
    return reactor.get();
  }

  ServiceRuntime& runtime_;
  Catalogue& catalogue_;
  std::atomic<int64_t> watchers_{0};
  prometheus::Counter& fetched_;
  Worker changes_;
  Worker reads_;
};

}  // namespace

std::unique_ptr<ModifiersService> ModifiersService::Create(ServiceRuntime& runtime,
                                                           Catalogue& catalogue) {
  return std::make_unique<ModifiersServiceImpl>(runtime, catalogue);
}

}  // namespace cogumi::services
