// Doubles of the decoder and the router behind real gRPC, scripted by the test.
#pragma once

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cogumi/v1/decoder.grpc.pb.h"
#include "cogumi/v1/router.grpc.pb.h"
#include "services/common/status.h"
#include "tests/services/gateway/eventually.h"

namespace cogumi::test {

namespace v1 = cogumi::v1;

class FakeDecoder final : public v1::DecoderService::Service {
 public:
  struct Script {
    // The pieces of the answer, one token each. Empty: "echo: " and the last message or the text.
    std::vector<std::string> pieces;
    // After so many pieces it waits for Release() or a cancellation; negative: never.
    int hold_after = -1;
    // Repeats its pieces until it is cancelled.
    bool endless = false;
    // What it ends with after its pieces instead of completing.
    absl::Status end = absl::OkStatus();
  };

  void SetScript(Script script) {
    std::lock_guard lock(mutex_);
    script_ = std::move(script);
  }
  void Release() {
    std::lock_guard lock(mutex_);
    released_ = true;
    changed_.notify_all();
  }
  void SetAdapters(std::vector<std::string> names) {
    std::lock_guard lock(mutex_);
    adapters_ = std::move(names);
  }
  int started() const { return Read(started_); }
  int cancelled() const { return Read(cancelled_); }
  int running() const { return Read(running_); }
  v1::GenerateRequest last() const {
    std::lock_guard lock(mutex_);
    return last_;
  }
  std::map<std::string, std::string> metadata() const {
    std::lock_guard lock(mutex_);
    return metadata_;
  }
  std::chrono::system_clock::time_point deadline() const {
    std::lock_guard lock(mutex_);
    return deadline_;
  }

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    Script script;
    {
      std::lock_guard lock(mutex_);
      script = script_;
      last_ = *request;
      metadata_.clear();
      for (const auto& [key, value] : context->client_metadata()) {
        metadata_[{key.data(), key.size()}] = {value.data(), value.size()};
      }
      deadline_ = context->deadline();
      ++started_;
      ++running_;
    }
    const grpc::Status status = Play(script, context, *request, writer);
    std::lock_guard lock(mutex_);
    --running_;
    return status;
  }

  grpc::Status ModelInfo(grpc::ServerContext*, const v1::ModelInfoRequest*,
                         v1::ModelInfoResponse* response) override {
    response->mutable_model()->set_id("tiny");
    response->mutable_model()->set_digest("digest");
    response->mutable_model()->set_created(1700000000);
    response->set_kernel_digest("kernels");
    std::lock_guard lock(mutex_);
    for (const std::string& name : adapters_) {
      v1::ServedAdapter* adapter = response->add_adapters();
      adapter->set_name(name);
      adapter->set_digest("digest of " + name);
    }
    return grpc::Status::OK;
  }

 private:
  int Read(const int& value) const {
    std::lock_guard lock(mutex_);
    return value;
  }

  grpc::Status Play(const Script& script, grpc::ServerContext* context,
                    const v1::GenerateRequest& request,
                    grpc::ServerWriter<v1::GenerateResponse>* writer) {
    std::vector<std::string> pieces = script.pieces;
    if (pieces.empty()) {
      pieces = {"echo:", " ",
                request.has_messages()
                    ? request.messages().messages(request.messages().messages_size() - 1).content()
                    : request.text()};
    }
    int sent = 0;
    do {
      for (const std::string& piece : pieces) {
        if (sent == script.hold_after && !WaitForRelease(context)) return Cancelled();
        v1::GenerateResponse response;
        v1::GenerateChunk* chunk = response.mutable_chunk();
        chunk->set_text(piece);
        chunk->add_token_ids(100 + sent);
        if (request.sampling().logprobs()) {
          v1::TokenLogprob* row = chunk->add_logprobs();
          row->set_token_id(100 + sent);
          row->set_token(piece);
          row->set_logprob(-0.5f);
        }
        if (request.features()) {
          v1::TokenFeatures* features = chunk->add_features();
          features->set_logprob(-0.25f);
          features->set_margin(3);
          features->set_entropy(0.75f);
        }
        if (!writer->Write(response)) return Cancelled();
        ++sent;
      }
      if (script.endless && context->IsCancelled()) return Cancelled();
    } while (script.endless);
    if (sent == script.hold_after && !WaitForRelease(context)) return Cancelled();
    if (!script.end.ok()) return services::ToGrpc(script.end);
    v1::GenerateResponse response;
    v1::GenerateComplete* complete = response.mutable_complete();
    complete->set_finish_reason(v1::FINISH_REASON_STOP);
    complete->mutable_usage()->set_prompt_tokens(11);
    complete->mutable_usage()->set_completion_tokens(sent);
    complete->mutable_usage()->set_cached_tokens(4);
    complete->mutable_receipt()->set_model_digest("digest");
    complete->mutable_receipt()->set_kernel_digest("kernels");
    complete->mutable_receipt()->set_kernel_configuration("fake");
    complete->add_prompt_token_ids(1);
    writer->Write(response);
    return grpc::Status::OK;
  }

  bool WaitForRelease(grpc::ServerContext* context) {
    std::unique_lock lock(mutex_);
    while (!released_) {
      changed_.wait_for(lock, std::chrono::milliseconds(2));
      if (context->IsCancelled()) return false;
    }
    return true;
  }

  grpc::Status Cancelled() {
    std::lock_guard lock(mutex_);
    ++cancelled_;
    return {grpc::StatusCode::CANCELLED, "cancelled"};
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> adapters_;
  Script script_;
  bool released_ = false;
  int started_ = 0;
  int cancelled_ = 0;
  int running_ = 0;
  v1::GenerateRequest last_;
  std::map<std::string, std::string> metadata_;
  std::chrono::system_clock::time_point deadline_;
};

class FakeRouter final : public v1::RouterService::Service,
                         public v1::EscalationService::Service,
                         public v1::ConfidenceService::Service {
 public:
  // From now on calls wait until they are cancelled.
  void Hang() { hanging_ = true; }

  grpc::Status Route(grpc::ServerContext* context, const v1::RouteRequest*,
                     v1::RouteResponse* response) override {
    response->set_domain(v1::DOMAIN_CODE);
    response->set_margin(0.4375f);
    response->set_tier("base");
    response->set_model("lexicon-1");
    return MayHang(context);
  }
  grpc::Status Detect(grpc::ServerContext* context, const v1::DetectRequest*,
                      v1::DetectResponse* response) override {
    response->set_feedback(v1::FEEDBACK_NONE);
    response->set_model("lexicon-1");
    return MayHang(context);
  }
  grpc::Status Assess(grpc::ServerContext* context, const v1::AssessRequest* request,
                      v1::AssessResponse* response) override {
    response->set_confidence(request->logprobs().empty() ? 0 : 0.8125f);
    response->set_model("lexicon-1");
    return MayHang(context);
  }

 private:
  grpc::Status MayHang(grpc::ServerContext* context) {
    if (hanging_) Eventually([context] { return context->IsCancelled(); });
    return grpc::Status::OK;
  }
  std::atomic<bool> hanging_{false};
};

// Both in one server, reached in process or, when it has one, by its address.
class FakeBackendServer {
 public:
  explicit FakeBackendServer(const std::string& address = "") {
    grpc::ServerBuilder builder;
    int port = 0;
    if (!address.empty()) {
      builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &port);
    }
    builder.RegisterService(&decoder);
    builder.RegisterService(static_cast<v1::RouterService::Service*>(&router));
    builder.RegisterService(static_cast<v1::EscalationService::Service*>(&router));
    builder.RegisterService(static_cast<v1::ConfidenceService::Service*>(&router));
    server_ = builder.BuildAndStart();
    address_ = "127.0.0.1:" + std::to_string(port);
  }
  ~FakeBackendServer() {
    decoder.Release();
    server_->Shutdown(std::chrono::system_clock::now());
  }
  const std::string& address() const { return address_; }
  std::shared_ptr<grpc::Channel> Channel() {
    return server_->InProcessChannel(grpc::ChannelArguments());
  }

  FakeDecoder decoder;
  FakeRouter router;

 private:
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace cogumi::test
