// Streams through the gateway's gRPC interface, for bench/door, startup and modifiers.
//
//   cogumi-door-client ADDRESS
//
// A line of standard input is a run: the tokens of every answer, then the prompts that are asked at
// once, as token ids with commas between them: "128 5,6,7 8,9,10". Its answer is a JSON line: for
// every prompt the seconds of CLOCK_MONOTONIC of its first message and its end and the tokens of
// its answer, or {"error": CODE, "message": TEXT}.
//
// It stands on the cores of what it measures, hence one thread, and messages that are only counted.
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "cogumi/v1/gateway.grpc.pb.h"
#include "engine/core/clock.h"
#include "services/common/channel.h"
#include "services/common/status.h"

namespace {

namespace v1 = cogumi::v1;
using nlohmann::json;

constexpr int kTimeoutSeconds = 300;

struct Call {
  enum class Stage { kStart, kRead, kFinish };

  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientAsyncReader<v1::CompleteResponse>> reader;
  v1::CompleteResponse response;
  grpc::Status status;
  Stage stage = Stage::kStart;
  double first = 0, end = 0;
  int32_t tokens = 0;
};

v1::CompleteRequest RequestOf(int32_t tokens, const std::string& prompt) {
  v1::CompleteRequest request;
  std::istringstream ids(prompt);
  for (std::string id; std::getline(ids, id, ',');) {
    request.mutable_tokens()->add_ids(std::stoi(id));
  }
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_tokens(tokens);
  request.mutable_sampling()->set_ignore_eos(true);
  return request;
}

// The end of one operation; false when it was the call's last.
bool GoOn(Call& call, bool ok) {
  if (call.stage == Call::Stage::kFinish) {
    call.end = cogumi::Clock::Real()->Now();
    return false;
  }
  if (call.stage == Call::Stage::kRead && ok) {
    if (call.first == 0) call.first = cogumi::Clock::Real()->Now();
    if (call.response.has_complete()) {
      call.tokens = call.response.complete().usage().completion_tokens();
    }
  }
  if (ok) {
    call.stage = Call::Stage::kRead;
    call.reader->Read(&call.response, &call);
  } else {
    call.stage = Call::Stage::kFinish;
    call.reader->Finish(&call.status, &call);
  }
  return true;
}

json Run(v1::GatewayService::Stub& stub, grpc::CompletionQueue& queue, const std::string& line) {
  std::istringstream words(line);
  int32_t tokens = 0;
  words >> tokens;
  std::vector<std::unique_ptr<Call>> calls;
  for (std::string prompt; words >> prompt;) {
    Call& call = *calls.emplace_back(std::make_unique<Call>());
    call.context.set_deadline(std::chrono::system_clock::now() +
                              std::chrono::seconds(kTimeoutSeconds));
    call.reader = stub.PrepareAsyncComplete(&call.context, RequestOf(tokens, prompt), &queue);
    call.reader->StartCall(&call);
  }
  void* tag = nullptr;
  bool ok = false;
  for (size_t left = calls.size(); left > 0 && queue.Next(&tag, &ok);) {
    if (!GoOn(*static_cast<Call*>(tag), ok)) --left;
  }
  json answers = json::array();
  for (const auto& call : calls) {
    if (!call->status.ok()) {
      const absl::Status status = cogumi::services::FromGrpc(call->status);
      return {{"error", cogumi::services::CodeName(status.code())},
              {"message", call->status.error_message()}};
    }
    answers.push_back({{"first", call->first}, {"end", call->end}, {"tokens", call->tokens}});
  }
  return answers;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: cogumi-door-client ADDRESS\n");
    return 2;
  }
  const auto stub = v1::GatewayService::NewStub(cogumi::services::MakeChannel(argv[1]));
  grpc::CompletionQueue queue;
  for (std::string line; std::getline(std::cin, line);) {
    try {
      std::cout << Run(*stub, queue, line).dump() << std::endl;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "cogumi-door-client: '%s': %s\n", line.c_str(), error.what());
      return 2;
    }
  }
}
