#include "services/gateway/openai_response.h"

#include <array>
#include <utility>

#include "services/common/status.h"
#include "services/common/text.h"
#include "services/gateway/json_text.h"
#include "services/gateway/model_catalogue.h"

namespace cogumi::gateway {
namespace {

namespace v1 = cogumi::v1;
using services::Cat;

const char* ReasonText(v1::FinishReason reason) {
  return reason == v1::FINISH_REASON_LENGTH ? "length" : "stop";
}

const char* ObjectName(const AnswerFrame& frame, bool streamed) {
  if (!frame.chat) return "text_completion";
  return streamed ? "chat.completion.chunk" : "chat.completion";
}

// {"id":...,"object":...,"created":...,"model":...,"system_fingerprint":...
std::string FrameText(const AnswerFrame& frame, bool streamed) {
  std::string out = "{\"id\":";
  AppendQuoted(frame.id, &out);
  out += Cat(",\"object\":\"", ObjectName(frame, streamed), "\",\"created\":", frame.created,
             ",\"model\":");
  AppendQuoted(frame.model, &out);
  out += ",\"system_fingerprint\":";
  if (frame.fingerprint.empty()) {
    out += "null";
  } else {
    AppendQuoted(frame.fingerprint, &out);
  }
  return out;
}

// A token as text. One that is not UTF-8 by itself (a part of a character) is written as its bytes:
// "\xe2\x98" for chats, with "bytes:" before it for completions, as OpenAI does.
std::string TokenText(std::string_view bytes, bool chat) {
  if (services::IsValidUtf8(bytes)) return std::string(bytes);
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text = chat ? "" : "bytes:";
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    text += "\\x";
    text.push_back(kDigits[byte >> 4]);
    text.push_back(kDigits[byte & 15]);
  }
  return text;
}

template <typename Token>
void AppendChatToken(const Token& token, std::string* out) {
  out->append("{\"token\":");
  AppendQuoted(TokenText(token.token(), true), out);
  out->append(",\"logprob\":");
  AppendNumber(token.logprob(), out);
  out->append(",\"bytes\":[");
  for (size_t i = 0; i < token.token().size(); ++i) {
    if (i > 0) out->push_back(',');
    out->append(std::to_string(static_cast<unsigned char>(token.token()[i])));
  }
  out->push_back(']');
}

template <typename Tokens>
void AppendChatLogprobs(const Tokens& tokens, std::string* out) {
  out->append("{\"content\":[");
  bool first = true;
  for (const v1::TokenLogprob& token : tokens) {
    if (!std::exchange(first, false)) out->push_back(',');
    AppendChatToken(token, out);
    out->append(",\"top_logprobs\":[");
    for (int i = 0; i < token.top_size(); ++i) {
      if (i > 0) out->push_back(',');
      AppendChatToken(token.top(i), out);
      out->push_back('}');
    }
    out->append("]}");
  }
  out->append("],\"refusal\":null}");
}

int64_t Characters(std::string_view bytes) {
  int64_t count = 0;
  for (const char c : bytes) count += (static_cast<unsigned char>(c) & 0xc0) != 0x80 ? 1 : 0;
  return count;
}

// `offset`: characters before the first token; moved on.
template <typename Tokens>
void AppendCompletionLogprobs(const Tokens& tokens, int64_t* offset, std::string* out) {
  std::string texts;
  std::string logprobs;
  std::string tops;
  std::string offsets;
  for (const v1::TokenLogprob& token : tokens) {
    if (!offsets.empty()) {
      for (std::string* list : {&texts, &logprobs, &tops, &offsets}) list->push_back(',');
    }
    AppendQuoted(TokenText(token.token(), false), &texts);
    AppendNumber(token.logprob(), &logprobs);
    offsets += std::to_string(*offset);
    *offset += Characters(token.token());
    if (token.top().empty()) {
      tops += "null";
      continue;
    }
    tops.push_back('{');
    for (int i = 0; i < token.top_size(); ++i) {
      if (i > 0) tops.push_back(',');
      AppendQuoted(TokenText(token.top(i).token(), false), &tops);
      tops.push_back(':');
      AppendNumber(token.top(i).logprob(), &tops);
    }
    tops.push_back('}');
  }
  *out += Cat("{\"tokens\":[", texts, "],\"token_logprobs\":[", logprobs, "],\"top_logprobs\":[",
              tops, "],\"text_offset\":[", offsets, "]}");
}

template <typename Tokens>
void AppendLogprobs(const AnswerFrame& frame, const Tokens& tokens, int64_t* offset,
                    std::string* out) {
  if (!frame.logprobs || tokens.empty()) {
    out->append("null");
  } else if (frame.chat) {
    AppendChatLogprobs(tokens, out);
  } else {
    AppendCompletionLogprobs(tokens, offset, out);
  }
}

std::string UsageText(const v1::Usage& usage) {
  return Cat("{\"prompt_tokens\":", usage.prompt_tokens(),
             ",\"completion_tokens\":", usage.completion_tokens(),
             ",\"total_tokens\":", usage.prompt_tokens() + usage.completion_tokens(),
             ",\"prompt_tokens_details\":{\"cached_tokens\":", usage.cached_tokens(), "}}");
}

// Field names of the proto, as OpenAI's interface calls them.
std::string OpenAiField(std::string_view field, bool chat) {
  constexpr std::string_view kSampling = "sampling.";
  if (field == "session_id") return "Cogumi-Session";
  if (field == "adapter") return "model";  // "BASE:ADAPTER"
  if (field == "text" || field == "tokens" || field == "input") return "prompt";
  if (!field.starts_with(kSampling)) return std::string(field);
  field.remove_prefix(kSampling.size());
  if (!chat && field == "top_logprobs") return "logprobs";
  return std::string(field);
}

const char* ErrorType(int http_status) {
  switch (http_status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 429:
      return "rate_limit_error";
    default:
      return http_status >= 500 ? "server_error" : "invalid_request_error";
  }
}

std::string ErrorText(std::string_view message, const char* type, std::string_view param,
                      std::string_view code) {
  std::string out = "{\"error\":{\"message\":";
  AppendQuoted(services::ToValidUtf8(message), &out);
  out += Cat(",\"type\":\"", type, "\",\"param\":");
  if (param.empty()) {
    out += "null";
  } else {
    AppendQuoted(services::ToValidUtf8(param), &out);
  }
  out += ",\"code\":";
  if (code.empty()) {
    out += "null";
  } else {
    AppendQuoted(code, &out);
  }
  out += "}}";
  return out;
}

// OpenAI's codes where it has one for the case; ours in lower case otherwise.
std::string ErrorCode(const absl::Status& status) {
  if (absl::IsUnauthenticated(status)) return "invalid_api_key";
  if (absl::IsOutOfRange(status)) return "context_length_exceeded";
  std::string code = services::ReasonOf(status);
  if (code == "REQUEST_QUOTA" || code == "TOKEN_QUOTA" || code == "STREAM_QUOTA") {
    return "rate_limit_exceeded";
  }
  for (char& c : code) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return code;
}

void AppendModel(const v1::ModelDescription& model, std::string* out) {
  out->append("{\"id\":");
  AppendQuoted(services::ToValidUtf8(model.id()), out);
  *out += Cat(",\"object\":\"model\",\"created\":", model.created(), ",\"owned_by\":\"cogumi\"}");
}

}  // namespace

EventFormat::EventFormat(AnswerFrame frame, int choices)
    : frame_(std::move(frame)), choices_(static_cast<size_t>(choices)) {
  SetHead();
  tail_ = frame_.include_usage ? "}],\"usage\":null}\n\n" : "}]}\n\n";
}

void EventFormat::AppendHead(int choice, std::string* out) const {
  out->append(head_);
  out->append(std::to_string(choice));
}

void EventFormat::SetHead() {
  head_ = Cat("data: ", FrameText(frame_, /*streamed=*/true), ",\"choices\":[{\"index\":");
}

void EventFormat::SetReceipt(const v1::Receipt& receipt) {
  frame_.fingerprint = SystemFingerprint(receipt.model_digest(), receipt.kernel_digest(),
                                         receipt.adapter_digest());
  SetHead();
}

void EventFormat::AppendRole(int choice, std::string* out) {
  bool& begun = choices_[static_cast<size_t>(choice)].begun;
  if (std::exchange(begun, true) || !frame_.chat) return;
  AppendHead(choice, out);
  out->append(
      ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
      "\"finish_reason\":null");
  out->append(tail_);
}

void EventFormat::AppendChunk(int choice, const v1::GenerateChunk& chunk, std::string* out) {
  AppendRole(choice, out);
  const bool with_logprobs = frame_.logprobs && !chunk.logprobs().empty();
  if (chunk.text().empty() && !with_logprobs) return;
  AppendHead(choice, out);
  out->append(frame_.chat ? ",\"delta\":{\"content\":\"" : ",\"text\":\"");
  AppendEscaped(chunk.text(), out);
  out->append(frame_.chat ? "\"},\"logprobs\":" : "\",\"logprobs\":");
  AppendLogprobs(frame_, chunk.logprobs(), &choices_[static_cast<size_t>(choice)].offset, out);
  out->append(",\"finish_reason\":null");
  out->append(tail_);
}

void EventFormat::AppendFinish(int choice, v1::FinishReason reason, std::string* out) {
  AppendRole(choice, out);
  AppendHead(choice, out);
  out->append(frame_.chat ? ",\"delta\":{}" : ",\"text\":\"\"");
  out->append(",\"logprobs\":null,\"finish_reason\":\"");
  out->append(ReasonText(reason));
  out->push_back('"');
  out->append(tail_);
}

void EventFormat::AppendDone(const v1::Usage& usage, std::string* out) const {
  if (frame_.include_usage) {
    *out += Cat("data: ", FrameText(frame_, true), ",\"choices\":[],\"usage\":", UsageText(usage),
                "}\n\n");
  }
  out->append("data: [DONE]\n\n");
}

BodyFormat::BodyFormat(AnswerFrame frame, int choices)
    : frame_(std::move(frame)), choices_(static_cast<size_t>(choices)) {}

void BodyFormat::AddChunk(int choice, const v1::GenerateChunk& chunk) {
  Choice& to = choices_[static_cast<size_t>(choice)];
  to.text += chunk.text();
  if (frame_.logprobs) {
    to.logprobs.insert(to.logprobs.end(), chunk.logprobs().begin(), chunk.logprobs().end());
  }
}

void BodyFormat::Finish(int choice, const v1::GenerateComplete& complete) {
  choices_[static_cast<size_t>(choice)].reason = complete.finish_reason();
  // The receipt says what really answered.
  const v1::Receipt& receipt = complete.receipt();
  frame_.fingerprint = SystemFingerprint(receipt.model_digest(), receipt.kernel_digest(),
                                         receipt.adapter_digest());
}

std::string BodyFormat::Body(const v1::Usage& usage) const {
  std::string out = FrameText(frame_, /*streamed=*/false);
  out += ",\"choices\":[";
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Choice& choice = choices_[i];
    out += Cat(i > 0 ? "," : "", "{\"index\":", i);
    out += frame_.chat ? ",\"message\":{\"role\":\"assistant\",\"content\":\"" : ",\"text\":\"";
    AppendEscaped(choice.text, &out);
    out += frame_.chat ? "\",\"refusal\":null},\"logprobs\":" : "\",\"logprobs\":";
    int64_t offset = 0;
    AppendLogprobs(frame_, choice.logprobs, &offset, &out);
    out += Cat(",\"finish_reason\":\"", ReasonText(choice.reason), "\"}");
  }
  out += Cat("],\"usage\":", UsageText(usage), "}");
  return out;
}

int HttpStatusOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 200;
    // A field that is not built is the caller's to leave out: 400, as OpenAI answers.
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kFailedPrecondition:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kAlreadyExists:
      return 409;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kCancelled:
      return 499;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

std::string ErrorBody(const absl::Status& status, bool chat) {
  const std::string field = services::FieldOf(status);
  const std::string name = OpenAiField(field, chat);
  std::string message(services::Std(status.message()));
  // Messages of fields begin with the field's name.
  if (!field.empty() && message.starts_with(field)) message.replace(0, field.size(), name);
  return ErrorText(message, ErrorType(HttpStatusOf(status)), name, ErrorCode(status));
}

std::string HttpErrorBody(int status, std::string_view message) {
  return ErrorText(message, ErrorType(status), "", "");
}

std::string ModelBody(const v1::ModelDescription& model) {
  std::string out;
  AppendModel(model, &out);
  return out;
}

std::string ModelListBody(const std::vector<v1::ModelDescription>& models) {
  std::string out = "{\"object\":\"list\",\"data\":[";
  for (size_t i = 0; i < models.size(); ++i) {
    if (i > 0) out.push_back(',');
    AppendModel(models[i], &out);
  }
  out += "]}";
  return out;
}

}  // namespace cogumi::gateway
