#include "services/gateway/validate.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "services/common/status.h"

namespace cogumi::gateway {
namespace {

namespace v1 = cogumi::v1;

constexpr int kMaxStops = 16;
constexpr size_t kMaxStopBytes = 256;
constexpr int kMaxStopTokens = 64;
constexpr int kMaxLogitBias = 1024;
constexpr float kMaxLogitBiasValue = 100;
constexpr int kMaxTopLogprobs = 20;
constexpr int kMaxPriority = 100;

// `range` is written as in the contract, for example "(0, 1]".
template <typename T>
absl::Status RangeError(const char* field, T value, const char* range) {
  return services::FieldError(field, absl::StrCat("is ", value, ", must be in ", range));
}

// Written so that NaN fails.
absl::Status InClosed(const char* field, float value, float min, float max, const char* range) {
  return value >= min && value <= max ? absl::OkStatus() : RangeError(field, value, range);
}

absl::Status ValidateMessages(const v1::ChatRequest& request, const RequestLimits& limits) {
  if (request.messages().empty()) {
    return services::FieldError("messages", "is empty, needs at least one message");
  }
  if (request.messages_size() > limits.max_messages) {
    return services::FieldError("messages",
                                absl::StrCat("has ", request.messages_size(), " messages, at most ",
                                             limits.max_messages, " are allowed"));
  }
  size_t bytes = 0;
  for (int i = 0; i < request.messages_size(); ++i) {
    const v1::Message& message = request.messages(i);
    const int role = message.role();
    if (role < v1::ROLE_SYSTEM || role > v1::ROLE_ASSISTANT) {
      return services::FieldError(absl::StrCat("messages[", i, "].role"),
                                  absl::StrCat("is ", role, ", must be system, user or assistant"));
    }
    bytes += message.content().size();
  }
  if (bytes > limits.max_text_bytes) {
    return services::FieldError("messages", absl::StrCat("have ", bytes, " bytes of text, at most ",
                                                         limits.max_text_bytes, " are allowed"));
  }
  if (request.session_id().empty()) return absl::OkStatus();
  // With a session the history is stored here: only what is new may come.
  const int last = request.messages_size() - 1;
  for (int i = 0; i <= last; ++i) {
    const v1::Role want = i == last ? v1::ROLE_USER : v1::ROLE_SYSTEM;
    if (request.messages(i).role() != want) {
      return services::FieldError(
          absl::StrCat("messages[", i, "].role"),
          "with a session the messages are one new user message, after system messages if any");
    }
  }
  return absl::OkStatus();
}

// Names have up to 64 bytes, digests exactly so many; the decoder knows which exist.
absl::Status ValidateAdapter(const std::string& adapter) {
  constexpr size_t kMaxBytes = 64;
  if (adapter.size() <= kMaxBytes) return absl::OkStatus();
  return services::FieldError("adapter", absl::StrCat("has ", adapter.size(), " bytes, at most ",
                                                      kMaxBytes, " are allowed"));
}

absl::Status ValidatePriority(int priority) {
  return priority >= -kMaxPriority && priority <= kMaxPriority
             ? absl::OkStatus()
             : RangeError("priority", priority, "[-100, 100]");
}

}  // namespace

absl::Status ValidateSampling(const v1::SamplingParams& s) {
  if (s.has_temperature()) {
    RETURN_IF_ERROR(InClosed("sampling.temperature", s.temperature(), 0, 2, "[0, 2]"));
  }
  if (s.has_top_k() && s.top_k() < 0) {
    return RangeError("sampling.top_k", s.top_k(), "[0, vocabulary]");
  }
  if (s.has_top_p() && !(s.top_p() > 0 && s.top_p() <= 1)) {
    return RangeError("sampling.top_p", s.top_p(), "(0, 1]");
  }
  if (s.has_min_p() && !(s.min_p() >= 0 && s.min_p() < 1)) {
    return RangeError("sampling.min_p", s.min_p(), "[0, 1)");
  }
  if (s.has_presence_penalty()) {
    RETURN_IF_ERROR(InClosed("sampling.presence_penalty", s.presence_penalty(), -2, 2, "[-2, 2]"));
  }
  if (s.has_frequency_penalty()) {
    RETURN_IF_ERROR(
        InClosed("sampling.frequency_penalty", s.frequency_penalty(), -2, 2, "[-2, 2]"));
  }
  if (s.has_repetition_penalty() && !(s.repetition_penalty() > 0 && s.repetition_penalty() <= 10)) {
    return RangeError("sampling.repetition_penalty", s.repetition_penalty(), "(0, 10]");
  }
  if (s.logit_bias().size() > kMaxLogitBias) {
    return services::FieldError("sampling.logit_bias",
                                absl::StrCat("has ", s.logit_bias().size(), " entries, at most ",
                                             kMaxLogitBias, " are allowed"));
  }
  for (const auto& [token, bias] : s.logit_bias()) {
    if (token < 0) {
      return services::FieldError("sampling.logit_bias",
                                  absl::StrCat("token ", token, " is negative"));
    }
    if (!(std::fabs(bias) <= kMaxLogitBiasValue)) {
      return services::FieldError(
          "sampling.logit_bias",
          absl::StrCat("of token ", token, " is ", bias, ", must be in [-100, 100]"));
    }
  }
  if (s.has_max_tokens() && s.max_tokens() < 1) {
    return RangeError("sampling.max_tokens", s.max_tokens(), "[1, context]");
  }
  if (s.stop_size() > kMaxStops) {
    return services::FieldError(
        "sampling.stop",
        absl::StrCat("has ", s.stop_size(), " strings, at most ", kMaxStops, " are allowed"));
  }
  for (const std::string& stop : s.stop()) {
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return services::FieldError("sampling.stop",
                                  absl::StrCat("has a string of ", stop.size(),
                                               " bytes, each must have 1..", kMaxStopBytes));
    }
  }
  if (s.stop_token_ids_size() > kMaxStopTokens) {
    return services::FieldError("sampling.stop_token_ids",
                                absl::StrCat("has ", s.stop_token_ids_size(), " entries, at most ",
                                             kMaxStopTokens, " are allowed"));
  }
  for (const int token : s.stop_token_ids()) {
    if (token < 0) return RangeError("sampling.stop_token_ids", token, "[0, vocabulary)");
  }
  if (s.has_top_logprobs()) {
    if (s.top_logprobs() < 0 || s.top_logprobs() > kMaxTopLogprobs) {
      return RangeError("sampling.top_logprobs", s.top_logprobs(), "[0, 20]");
    }
    if (s.top_logprobs() > 0 && !s.logprobs()) {
      return services::FieldError("sampling.top_logprobs", "needs logprobs");
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateSessionId(const std::string& id) {
  const bool valid =
      !id.empty() && id.size() <= 64 && std::all_of(id.begin(), id.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               c == '_' || c == '-';
      });
  if (valid) return absl::OkStatus();
  return services::FieldError("session_id", "must match ^[A-Za-z0-9_-]{1,64}$");
}

absl::Status ValidateChat(const v1::ChatRequest& request, const RequestLimits& limits) {
  if (request.has_grammar()) return services::NotBuilt("grammar");
  if (!request.tools().empty()) return services::NotBuilt("tools");
  RETURN_IF_ERROR(ValidateAdapter(request.adapter()));
  if (!request.session_id().empty()) RETURN_IF_ERROR(ValidateSessionId(request.session_id()));
  RETURN_IF_ERROR(ValidatePriority(request.priority()));
  RETURN_IF_ERROR(ValidateMessages(request, limits));
  return ValidateSampling(request.sampling());
}

absl::Status ValidateComplete(const v1::CompleteRequest& request, const RequestLimits& limits) {
  if (request.has_grammar()) return services::NotBuilt("grammar");
  RETURN_IF_ERROR(ValidateAdapter(request.adapter()));
  RETURN_IF_ERROR(ValidatePriority(request.priority()));
  switch (request.input_case()) {
    case v1::CompleteRequest::kText:
      if (request.text().size() > limits.max_text_bytes) {
        return services::FieldError("text",
                                    absl::StrCat("has ", request.text().size(), " bytes, at most ",
                                                 limits.max_text_bytes, " are allowed"));
      }
      break;
    case v1::CompleteRequest::kTokens:
      if (request.tokens().ids().empty()) {
        return services::FieldError("tokens", "is empty, needs at least one token");
      }
      if (request.tokens().ids_size() > limits.max_tokens) {
        return services::FieldError(
            "tokens", absl::StrCat("has ", request.tokens().ids_size(), " tokens, at most ",
                                   limits.max_tokens, " are allowed"));
      }
      for (const int token : request.tokens().ids()) {
        if (token < 0) return RangeError("tokens", token, "[0, vocabulary)");
      }
      break;
    case v1::CompleteRequest::INPUT_NOT_SET:
      return services::FieldError("input", "is absent, needs text or tokens");
  }
  return ValidateSampling(request.sampling());
}

}  // namespace cogumi::gateway
