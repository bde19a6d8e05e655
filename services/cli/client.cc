#include "services/cli/client.h"

#include <google/protobuf/util/json_util.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <chrono>
#include <cstdlib>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "cogumi/v1/gateway.grpc.pb.h"
#include "cogumi/v1/modifiers.grpc.pb.h"
#include "cogumi/v1/router.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "services/cli/verb.h"
#include "services/common/channel.h"
#include "services/common/status.h"

namespace cogumi::cli {
namespace {

// Of calls that answer at once; Ask has none: a person waits as long as a person wants.
constexpr double kCallSeconds = 10;
// What a turn that was stopped takes at most to let go of its session.
constexpr std::chrono::milliseconds kTurnEnds(2000);

void Prepare(grpc::ClientContext* context, double seconds) {
  if (seconds > 0) {
    context->set_deadline(std::chrono::system_clock::now() +
                          std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000)));
  }
  if (const char* token = std::getenv("COGUMI_TOKEN"); token != nullptr) {
    context->AddMetadata("authorization", absl::StrCat("Bearer ", token));
  }
}

absl::Status Finished(const grpc::Status& status) {
  absl::Status result = services::FromGrpc(status);
  if (absl::IsUnavailable(result) || absl::IsDeadlineExceeded(result)) {
    return WithAdvice(result,
                      "`cogumi ps` shows what runs, `cogumi doctor` looks for what is wrong");
  }
  if (absl::IsUnauthenticated(result)) return WithAdvice(result, "set COGUMI_TOKEN to your token");
  return result;
}

v1::Role ToProto(MessageRole role) {
  switch (role) {
    case MessageRole::kSystem:
      return v1::ROLE_SYSTEM;
    case MessageRole::kAssistant:
      return v1::ROLE_ASSISTANT;
    case MessageRole::kUser:
      break;
  }
  return v1::ROLE_USER;
}

v1::Speculation ToProto(Speculation speculation) {
  switch (speculation) {
    case Speculation::kOff:
      return v1::SPECULATION_OFF;
    case Speculation::kNgram:
      return v1::SPECULATION_NGRAM;
    case Speculation::kDraftModel:
      return v1::SPECULATION_DRAFT_MODEL;
    case Speculation::kDefault:
      break;
  }
  return v1::SPECULATION_UNSPECIFIED;
}

// What is at its default stays unset, except the temperature: the command line is greedy.
void ToProto(const SamplingParams& from, v1::SamplingParams* to) {
  const SamplingParams defaults;
  to->set_temperature(from.temperature);
  if (from.top_k != defaults.top_k) to->set_top_k(from.top_k);
  if (from.top_p != defaults.top_p) to->set_top_p(from.top_p);
  if (from.min_p != defaults.min_p) to->set_min_p(from.min_p);
  if (from.presence_penalty != defaults.presence_penalty) {
    to->set_presence_penalty(from.presence_penalty);
  }
  if (from.frequency_penalty != defaults.frequency_penalty) {
    to->set_frequency_penalty(from.frequency_penalty);
  }
  if (from.repetition_penalty != defaults.repetition_penalty) {
    to->set_repetition_penalty(from.repetition_penalty);
  }
  if (from.seed.has_value()) to->set_seed(*from.seed);
  if (from.max_tokens.has_value()) to->set_max_tokens(*from.max_tokens);
  for (const std::string& stop : from.stop) to->add_stop(stop);
  if (from.ignore_eos) to->set_ignore_eos(true);
  if (from.logprobs) {
    to->set_logprobs(true);
    to->set_top_logprobs(from.top_logprobs);
  }
}

TokenInfo FromProto(const v1::TokenLogprob& from) {
  TokenInfo info;
  info.id = from.token_id();
  info.logprob = from.logprob();
  info.bytes = from.token();
  for (const auto& top : from.top())
    info.top.push_back({top.token_id(), top.logprob(), top.token()});
  return info;
}

void FromProto(const v1::ChatComplete& from, Answer* to) {
  Completion& c = to->completion;
  c.finish_reason = from.finish_reason() == v1::FINISH_REASON_LENGTH ? FinishReason::kLength
                                                                     : FinishReason::kStop;
  c.usage = {from.usage().prompt_tokens(), from.usage().completion_tokens(),
             from.usage().cached_tokens()};
  c.timings = {from.timings().queue_seconds(), from.timings().prefill_seconds(),
               from.timings().decode_seconds(), from.timings().time_to_first_token_seconds()};
  c.receipt.model_digest = from.receipt().model_digest();
  c.receipt.template_digest = from.receipt().template_digest();
  c.receipt.adapter_digest = from.receipt().adapter_digest();
  c.receipt.kernel_digest = from.receipt().kernel_digest();
  c.receipt.kernel_configuration = from.receipt().kernel_configuration();
  c.receipt.seed = from.receipt().seed();
  c.prompt_tokens.assign(from.prompt_token_ids().begin(), from.prompt_token_ids().end());
  to->request_id = from.request_id();
}

// ROLE_USER -> "user": the part of an enumeration's name after its type.
std::string ShortName(std::string name, const std::string& prefix) {
  if (name.rfind(prefix, 0) == 0) name.erase(0, prefix.size());
  return absl::AsciiStrToLower(name);
}

// Reads a stream of ChatResponse or CompleteResponse to its end.
template <typename Reader, typename Response>
absl::Status ReadAnswer(Reader* reader, Response* response,
                        const std::function<void(std::string_view)>& on_text, Answer* answer) {
  bool complete = false;
  while (reader->Read(response)) {
    if (response->has_chunk()) {
      const v1::ChatChunk& chunk = response->chunk();
      answer->text += chunk.text();
      answer->token_ids.insert(answer->token_ids.end(), chunk.token_ids().begin(),
                               chunk.token_ids().end());
      for (const auto& logprob : chunk.logprobs()) answer->logprobs.push_back(FromProto(logprob));
      if (!chunk.text().empty()) on_text(chunk.text());
    } else if (response->has_complete()) {
      FromProto(response->complete(), answer);
      complete = true;
    }
  }
  absl::Status status = Finished(reader->Finish());
  if (status.ok() && !complete) {
    return absl::InternalError("the answer ended without its last message");
  }
  return status;
}

AdapterInfo FromProto(const v1::Adapter& from) {
  AdapterInfo to;
  to.name = from.name();
  to.digest = from.digest();
  to.domain = from.domain();
  to.base_model = from.base_model();
  to.license = from.license();
  to.description = from.description();
  to.rank = from.rank();
  to.alpha = static_cast<double>(from.alpha());
  to.bytes = from.bytes();
  to.parameters = from.parameters();
  to.registered_ms = from.registered_ms();
  to.target_modules.assign(from.target_modules().begin(), from.target_modules().end());
  return to;
}

}  // namespace

struct GatewayClient::Impl {
  explicit Impl(const std::string& address)
      : stub(v1::GatewayService::NewStub(services::MakeChannel(address))) {}
  std::unique_ptr<v1::GatewayService::Stub> stub;
};

GatewayClient::GatewayClient(const std::string& address) : impl_(std::make_unique<Impl>(address)) {}
GatewayClient::~GatewayClient() = default;

absl::Status GatewayClient::Ask(const Question& question,
                                const std::function<void(std::string_view)>& on_text,
                                InterruptGuard* interrupt, Answer* answer) {
  grpc::ClientContext context;
  Prepare(&context, 0);
  if (interrupt != nullptr) interrupt->OnInterrupt([&context] { context.TryCancel(); });
  absl::Status status;
  if (!question.messages.empty()) {
    v1::ChatRequest request;
    for (const Message& message : question.messages) {
      v1::Message* added = request.add_messages();
      added->set_role(ToProto(message.role));
      added->set_content(message.content);
    }
    request.set_session_id(question.session_id);
    request.set_speculation(ToProto(question.speculation));
    ToProto(question.sampling, request.mutable_sampling());
    v1::ChatResponse response;
    auto reader = impl_->stub->Chat(&context, request);
    status = ReadAnswer(reader.get(), &response, on_text, answer);
  } else {
    v1::CompleteRequest request;
    request.set_text(question.raw);
    request.set_speculation(ToProto(question.speculation));
    ToProto(question.sampling, request.mutable_sampling());
    v1::CompleteResponse response;
    auto reader = impl_->stub->Complete(&context, request);
    status = ReadAnswer(reader.get(), &response, on_text, answer);
  }
  if (interrupt != nullptr) interrupt->OnInterrupt(nullptr);
  return status;
}

absl::StatusOr<std::vector<ModelDescription>> GatewayClient::ListModels() {
  grpc::ClientContext context;
  Prepare(&context, kCallSeconds);
  v1::ListModelsResponse response;
  const grpc::Status status = impl_->stub->ListModels(&context, {}, &response);
  if (!status.ok()) return Finished(status);
  std::vector<ModelDescription> models;
  for (const auto& from : response.models()) {
    ModelDescription to;
    to.id = from.id();
    to.architecture = from.architecture();
    to.digest = from.digest();
    to.file_bytes = from.file_bytes();
    to.parameters = from.parameters();
    to.context_length = from.context_length();
    to.vocabulary_size = from.vocabulary_size();
    to.layers = from.layers();
    to.embedding_length = from.embedding_length();
    to.chat_template = from.chat_template();
    to.quantization = from.quantization();
    to.created = from.created();
    models.push_back(std::move(to));
  }
  return models;
}

absl::StatusOr<std::vector<StoredTurn>> GatewayClient::GetSession(const std::string& id) {
  grpc::ClientContext context;
  Prepare(&context, kCallSeconds);
  v1::GetSessionRequest request;
  request.set_session_id(id);
  v1::GetSessionResponse response;
  const grpc::Status status = impl_->stub->GetSession(&context, request, &response);
  if (!status.ok()) return Finished(status);
  std::vector<StoredTurn> turns;
  for (const auto& turn : response.turns()) {
    turns.push_back({turn.number(), turn.user(), turn.assistant(), turn.created_ms()});
  }
  return turns;
}

absl::StatusOr<int> GatewayClient::EraseSession(const std::string& id) {
  const auto deadline = std::chrono::steady_clock::now() + kTurnEnds;
  while (true) {
    grpc::ClientContext context;
    Prepare(&context, kCallSeconds);
    v1::EraseSessionRequest request;
    request.set_session_id(id);
    v1::EraseSessionResponse response;
    const grpc::Status status = impl_->stub->EraseSession(&context, request, &response);
    if (status.ok()) return response.erased_turns();
    const bool busy = status.error_code() == grpc::StatusCode::ABORTED;
    if (!busy || std::chrono::steady_clock::now() >= deadline) return Finished(status);
    std::this_thread::sleep_for(kTurnEnds / 100);
  }
}

absl::StatusOr<std::string> GatewayClient::Explain(const std::string& request_id) {
  grpc::ClientContext context;
  Prepare(&context, kCallSeconds);
  v1::ExplainRequest request;
  request.set_request_id(request_id);
  v1::ExplainResponse response;
  const grpc::Status status = impl_->stub->Explain(&context, request, &response);
  if (!status.ok()) return Finished(status);
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(response, &json, options).ok()) {
    return absl::InternalError("the explanation has no JSON form");
  }
  return json;
}

absl::StatusOr<RouteDecision> AskRouter(const std::string& address, const std::string& prompt) {
  const auto channel = services::MakeChannel(address);
  RouteDecision decision;
  {
    grpc::ClientContext context;
    Prepare(&context, kCallSeconds);
    v1::RouteRequest request;
    v1::Message* message = request.add_messages();
    message->set_role(v1::ROLE_USER);
    message->set_content(prompt);
    v1::RouteResponse response;
    const auto status = v1::RouterService::NewStub(channel)->Route(&context, request, &response);
    if (!status.ok()) return Finished(status);
    decision.domain = ShortName(v1::Domain_Name(response.domain()), "DOMAIN_");
    decision.tier = response.tier();
    decision.model = response.model();
    decision.calibrated = response.calibrated();
    decision.abstained = response.abstained();
    decision.margin = static_cast<double>(response.margin());
    for (const auto& score : response.scores()) {
      decision.scores.emplace_back(ShortName(v1::Domain_Name(score.domain()), "DOMAIN_"),
                                   static_cast<double>(score.score()));
    }
  }
  grpc::ClientContext context;
  Prepare(&context, kCallSeconds);
  v1::DetectRequest request;
  v1::Message* message = request.add_messages();
  message->set_role(v1::ROLE_USER);
  message->set_content(prompt);
  v1::DetectResponse response;
  const auto status = v1::EscalationService::NewStub(channel)->Detect(&context, request, &response);
  if (!status.ok()) return Finished(status);
  decision.feedback = ShortName(v1::Feedback_Name(response.feedback()), "FEEDBACK_");
  decision.escalate = response.escalate();
  decision.reasons.assign(response.reasons().begin(), response.reasons().end());
  return decision;
}

struct ModifiersClient::Impl {
  explicit Impl(const std::string& address)
      : stub(v1::ModifierService::NewStub(services::MakeChannel(address))) {}
  std::unique_ptr<v1::ModifierService::Stub> stub;
};

ModifiersClient::ModifiersClient(const std::string& address)
    : impl_(std::make_unique<Impl>(address)) {}
ModifiersClient::~ModifiersClient() = default;

absl::StatusOr<std::vector<AdapterInfo>> ModifiersClient::List() {
  grpc::ClientContext context;
  Prepare(&context, kCallSeconds);
  v1::ListResponse response;
  const grpc::Status status = impl_->stub->List(&context, {}, &response);
  if (!status.ok()) return Finished(status);
  std::vector<AdapterInfo> adapters;
  for (const auto& adapter : response.adapters()) adapters.push_back(FromProto(adapter));
  return adapters;
}

absl::StatusOr<AdapterInfo> ModifiersClient::Get(const std::string& name) {
  grpc::ClientContext context;
  Prepare(&context, kCallSeconds);
  v1::GetRequest request;
  request.set_name(name);
  v1::GetResponse response;
  const grpc::Status status = impl_->stub->Get(&context, request, &response);
  if (!status.ok()) return Finished(status);
  return FromProto(response.adapter());
}

absl::StatusOr<AdapterInfo> ModifiersClient::Register(const std::string& name,
                                                      const std::string& path) {
  grpc::ClientContext context;
  Prepare(&context, 600);  // large adapters are copied and hashed
  v1::RegisterRequest request;
  request.set_name(name);
  request.set_path(path);
  v1::RegisterResponse response;
  const grpc::Status status = impl_->stub->Register(&context, request, &response);
  if (!status.ok()) return Finished(status);
  AdapterInfo adapter = FromProto(response.adapter());
  adapter.unchanged = response.unchanged();
  return adapter;
}

absl::StatusOr<AdapterInfo> ModifiersClient::Remove(const std::string& name) {
  grpc::ClientContext context;
  Prepare(&context, kCallSeconds);
  v1::RemoveRequest request;
  request.set_name(name);
  v1::RemoveResponse response;
  const grpc::Status status = impl_->stub->Remove(&context, request, &response);
  if (!status.ok()) return Finished(status);
  return FromProto(response.adapter());
}

absl::Status CheckHealth(const std::string& address, double seconds) {
  grpc::ClientContext context;
  Prepare(&context, seconds);
  grpc::health::v1::HealthCheckResponse response;
  const auto stub = grpc::health::v1::Health::NewStub(services::MakeChannel(address));
  const grpc::Status status = stub->Check(&context, {}, &response);
  if (!status.ok()) return Finished(status);
  if (response.status() != grpc::health::v1::HealthCheckResponse::SERVING) {
    return absl::UnavailableError(
        absl::StrCat(address, " answers ",
                     grpc::health::v1::HealthCheckResponse::ServingStatus_Name(response.status())));
  }
  return absl::OkStatus();
}

absl::Status AwaitHealth(const std::string& address, double seconds) {
  grpc::ClientContext context;
  Prepare(&context, seconds);
  context.set_wait_for_ready(true);
  const auto stub = grpc::health::v1::Health::NewStub(services::MakeChannel(address));
  const auto watch = stub->Watch(&context, {});
  grpc::health::v1::HealthCheckResponse response;
  while (watch->Read(&response)) {
    if (response.status() != grpc::health::v1::HealthCheckResponse::SERVING) continue;
    context.TryCancel();
    (void)watch->Finish();
    return absl::OkStatus();
  }
  return Finished(watch->Finish());
}

}  // namespace cogumi::cli
