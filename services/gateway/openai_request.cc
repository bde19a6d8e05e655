#include "services/gateway/openai_request.h"

#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "engine/core/status_macros.h"
#include "services/common/status.h"
#include "services/common/text.h"

namespace cogumi::gateway {
namespace {

namespace v1 = cogumi::v1;
using nlohmann::json;
using services::Cat;
using services::FieldError;

constexpr int kMaxDepth = 64;
constexpr int kMaxValues = 200000;
constexpr int kDefaultCompletionTokens = 16;  // OpenAI's
constexpr size_t kMaxUserBytes = 512;

// Known to OpenAI's clients, not built here.
constexpr std::array<std::string_view, 27> kUnsupportedChat = {"audio",
                                                               "cache_prompt",
                                                               "chat_template",
                                                               "chat_template_kwargs",
                                                               "function_call",
                                                               "functions",
                                                               "grammar",
                                                               "guided_json",
                                                               "json_schema",
                                                               "metadata",
                                                               "modalities",
                                                               "parallel_tool_calls",
                                                               "prediction",
                                                               "prompt_cache_key",
                                                               "reasoning",
                                                               "reasoning_effort",
                                                               "response_format",
                                                               "safety_identifier",
                                                               "service_tier",
                                                               "store",
                                                               "thinking",
                                                               "tool_choice",
                                                               "tools",
                                                               "top_a",
                                                               "verbosity",
                                                               "web_search",
                                                               "web_search_options"};
constexpr std::array<std::string_view, 6> kUnsupportedCompletion = {
    "best_of", "echo", "grammar", "guided_json", "response_format", "suffix"};

std::string_view TypeName(const json& value) { return value.type_name(); }

absl::Status TypeError(std::string_view field, std::string_view want, const json& got) {
  return FieldError(field, Cat("must be ", want, ", is ", TypeName(got)));
}

absl::Status Unsupported(std::string_view field) {
  return services::WithReason(
      services::WithField(absl::UnimplementedError(Cat("Unsupported parameter: '", field,
                                                       "' is not supported by this server.")),
                          field),
      "UNSUPPORTED_PARAMETER");
}

absl::Status Unknown(std::string_view field) {
  const std::string name(services::TruncateUtf8(field, 128));
  return services::WithReason(
      services::WithField(absl::InvalidArgumentError(Cat("Unknown parameter: '", name, "'.")),
                          name),
      "UNKNOWN_PARAMETER");
}

absl::Status ReadBool(std::string_view field, const json& value, bool* out) {
  if (!value.is_boolean()) return TypeError(field, "a boolean", value);
  *out = value.get<bool>();
  return absl::OkStatus();
}

absl::StatusOr<float> ReadFloat(std::string_view field, const json& value) {
  if (!value.is_number()) return TypeError(field, "a number", value);
  const double number = value.get<double>();
  if (!(std::fabs(number) <= std::numeric_limits<float>::max())) {
    return FieldError(field, "is out of range");
  }
  return static_cast<float>(number);
}

absl::StatusOr<int32_t> ReadInt(std::string_view field, const json& value) {
  if (!value.is_number_integer()) return TypeError(field, "an integer", value);
  // Beyond int64 the document holds an unsigned number.
  const bool fits =
      value.is_number_unsigned()
          ? value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int32_t>::max())
          : value.get<int64_t>() >= std::numeric_limits<int32_t>::min();
  if (!fits) return FieldError(field, Cat("is ", value.dump(), ", which is out of range"));
  return value.get<int32_t>();
}

absl::StatusOr<std::string> ReadString(std::string_view field, const json& value) {
  if (!value.is_string()) return TypeError(field, "a string", value);
  return value.get<std::string>();
}

absl::Status ReadSeed(const json& value, v1::SamplingParams* sampling) {
  if (!value.is_number_integer()) return TypeError("seed", "an integer", value);
  // OpenAI's seeds are signed: a negative one is its two's complement.
  sampling->set_seed(value.is_number_unsigned() ? value.get<uint64_t>()
                                                : static_cast<uint64_t>(value.get<int64_t>()));
  return absl::OkStatus();
}

absl::Status ReadStop(const json& value, v1::SamplingParams* sampling) {
  if (value.is_string()) {
    sampling->add_stop(value.get<std::string>());
    return absl::OkStatus();
  }
  if (!value.is_array()) return TypeError("stop", "a string or an array of strings", value);
  for (const json& item : value) {
    if (!item.is_string()) return TypeError("stop", "a string or an array of strings", item);
    sampling->add_stop(item.get<std::string>());
  }
  return absl::OkStatus();
}

absl::Status ReadLogitBias(const json& value, v1::SamplingParams* sampling) {
  if (!value.is_object()) return TypeError("logit_bias", "an object", value);
  for (const auto& [key, bias] : value.items()) {
    int32_t token = 0;
    if (!absl::SimpleAtoi(key, &token)) {
      return FieldError("logit_bias", Cat("has the key \"", services::TruncateUtf8(key, 64),
                                          "\", keys must be token ids"));
    }
    ASSIGN_OR_RETURN(const float number, ReadFloat("logit_bias", bias));
    (*sampling->mutable_logit_bias())[token] = number;
  }
  return absl::OkStatus();
}

absl::Status ReadStreamOptions(const json& value, bool* include_usage) {
  if (!value.is_object()) return TypeError("stream_options", "an object", value);
  for (const auto& [key, option] : value.items()) {
    if (key != "include_usage") return Unknown(Cat("stream_options.", key));
    if (option.is_null()) continue;
    RETURN_IF_ERROR(ReadBool("stream_options.include_usage", option, include_usage));
  }
  return absl::OkStatus();
}

// Text, or an array of {"type": "text", "text": ...}, which are joined.
absl::StatusOr<std::string> ReadContent(const std::string& field, const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) {
    return TypeError(field, "a string or an array of text parts", value);
  }
  std::string text;
  for (size_t i = 0; i < value.size(); ++i) {
    const json& part = value[i];
    const std::string place = Cat(field, "[", i, "]");
    if (!part.is_object()) return TypeError(place, "an object", part);
    const auto type = part.find("type");
    if (type == part.end() || !type->is_string()) {
      return FieldError(Cat(place, ".type"), "is missing");
    }
    if (*type != "text") return Unsupported(Cat(place, ".type"));
    for (const auto& [key, inner] : part.items()) {
      if (key == "type") continue;
      if (key != "text") return Unknown(Cat(place, ".", key));
      ASSIGN_OR_RETURN(const std::string piece, ReadString(Cat(place, ".text"), inner));
      text += piece;
    }
    if (!part.contains("text")) return FieldError(Cat(place, ".text"), "is missing");
  }
  return text;
}

absl::Status ReadMessage(const std::string& field, const json& value, v1::Message* message) {
  if (!value.is_object()) return TypeError(field, "an object", value);
  bool has_role = false;
  bool has_content = false;
  for (const auto& [key, inner] : value.items()) {
    const std::string place = Cat(field, ".", key);
    if (key == "role") {
      ASSIGN_OR_RETURN(const std::string role, ReadString(place, inner));
      has_role = true;
      if (role == "system" || role == "developer") {
        message->set_role(v1::ROLE_SYSTEM);
      } else if (role == "user") {
        message->set_role(v1::ROLE_USER);
      } else if (role == "assistant") {
        message->set_role(v1::ROLE_ASSISTANT);
      } else if (role == "tool" || role == "function") {
        return Unsupported(place);
      } else {
        return FieldError(place, "must be system, developer, user or assistant");
      }
    } else if (key == "content") {
      if (inner.is_null()) return TypeError(place, "a string or an array of text parts", inner);
      ASSIGN_OR_RETURN(*message->mutable_content(), ReadContent(place, inner));
      has_content = true;
    } else if (key == "refusal" && inner.is_null()) {
      // Answers carry it; people send answers back.
    } else if (key == "name" || key == "tool_calls" || key == "function_call" ||
               key == "tool_call_id" || key == "audio" || key == "refusal" ||
               key == "annotations") {
      if (!inner.is_null() && !(inner.is_array() && inner.empty())) return Unsupported(place);
    } else {
      return Unknown(place);
    }
  }
  if (!has_role) return FieldError(Cat(field, ".role"), "is missing");
  if (!has_content) return FieldError(Cat(field, ".content"), "is missing");
  return absl::OkStatus();
}

absl::Status ReadTokens(const json& value, v1::TokenIds* tokens) {
  for (const json& item : value) {
    ASSIGN_OR_RETURN(const int32_t token, ReadInt("prompt", item));
    tokens->add_ids(token);
  }
  return absl::OkStatus();
}

// A string, an array of strings, an array of tokens, or an array of arrays of tokens.
absl::Status ReadPrompt(const json& value, std::vector<v1::CompleteRequest>* prompts) {
  static constexpr char kWant[] =
      "a string, an array of strings, or an array of (arrays of) tokens";
  if (value.is_string()) {
    prompts->emplace_back().set_text(value.get<std::string>());
    return absl::OkStatus();
  }
  if (!value.is_array()) return TypeError("prompt", kWant, value);
  if (value.empty()) return FieldError("prompt", "is empty");
  if (value.front().is_number()) {
    return ReadTokens(value, prompts->emplace_back().mutable_tokens());
  }
  for (const json& item : value) {
    if (item.is_string()) {
      prompts->emplace_back().set_text(item.get<std::string>());
    } else if (item.is_array()) {
      RETURN_IF_ERROR(ReadTokens(item, prompts->emplace_back().mutable_tokens()));
    } else {
      return TypeError("prompt", kWant, item);
    }
  }
  return absl::OkStatus();
}

// Fields that both interfaces share. False when `key` is none of them.
absl::StatusOr<bool> ReadCommon(const std::string& key, const json& value, OpenAiRequest* request,
                                std::string* model, v1::SamplingParams* sampling) {
  if (key == "model") {
    ASSIGN_OR_RETURN(*model, ReadString(key, value));
  } else if (key == "stream") {
    RETURN_IF_ERROR(ReadBool(key, value, &request->stream));
  } else if (key == "stream_options") {
    RETURN_IF_ERROR(ReadStreamOptions(value, &request->include_usage));
  } else if (key == "n") {
    ASSIGN_OR_RETURN(request->n, ReadInt(key, value));
  } else if (key == "seed") {
    RETURN_IF_ERROR(ReadSeed(value, sampling));
  } else if (key == "stop") {
    RETURN_IF_ERROR(ReadStop(value, sampling));
  } else if (key == "logit_bias") {
    RETURN_IF_ERROR(ReadLogitBias(value, sampling));
  } else if (key == "temperature") {
    ASSIGN_OR_RETURN(const float number, ReadFloat(key, value));
    sampling->set_temperature(number);
  } else if (key == "top_p") {
    ASSIGN_OR_RETURN(const float number, ReadFloat(key, value));
    sampling->set_top_p(number);
  } else if (key == "min_p") {
    ASSIGN_OR_RETURN(const float number, ReadFloat(key, value));
    sampling->set_min_p(number);
  } else if (key == "presence_penalty") {
    ASSIGN_OR_RETURN(const float number, ReadFloat(key, value));
    sampling->set_presence_penalty(number);
  } else if (key == "frequency_penalty") {
    ASSIGN_OR_RETURN(const float number, ReadFloat(key, value));
    sampling->set_frequency_penalty(number);
  } else if (key == "repetition_penalty") {
    ASSIGN_OR_RETURN(const float number, ReadFloat(key, value));
    sampling->set_repetition_penalty(number);
  } else if (key == "top_k") {
    ASSIGN_OR_RETURN(const int32_t number, ReadInt(key, value));
    sampling->set_top_k(number);
  } else if (key == "ignore_eos") {
    bool ignore = false;
    RETURN_IF_ERROR(ReadBool(key, value, &ignore));
    sampling->set_ignore_eos(ignore);
  } else if (key == "user") {
    ASSIGN_OR_RETURN(const std::string user, ReadString(key, value));
    if (user.size() > kMaxUserBytes) {
      return FieldError(
          key, Cat("has ", user.size(), " bytes, at most ", kMaxUserBytes, " are allowed"));
    }
  } else {
    return false;
  }
  return true;
}

absl::StatusOr<json> ParseObject(std::string_view body) {
  RETURN_IF_ERROR(CheckJsonShape(body));
  json document;
  try {
    document = json::parse(body);
  } catch (const json::exception& error) {
    // Its text quotes the person's body: only the place is told.
    const auto* parse = dynamic_cast<const json::parse_error*>(&error);
    return services::WithReason(absl::InvalidArgumentError(Cat(
                                    "the request's body is not valid JSON",
                                    parse == nullptr ? "" : Cat(" (at byte ", parse->byte, ")"))),
                                "INVALID_JSON");
  }
  if (!document.is_object()) {
    return services::WithReason(
        absl::InvalidArgumentError("the request's body must be a JSON object"), "INVALID_JSON");
  }
  return document;
}

template <size_t kCount>
bool Contains(const std::array<std::string_view, kCount>& names, std::string_view name) {
  for (const std::string_view known : names) {
    if (known == name) return true;
  }
  return false;
}

absl::Status CheckStreamOptions(const json& document, const OpenAiRequest& request) {
  const auto options = document.find("stream_options");
  if (options == document.end() || options->is_null() || request.stream) return absl::OkStatus();
  return FieldError("stream_options", "is only allowed when stream is true");
}

// What is the default of OpenAI's interface, so that the decoder's own does not matter.
void SetDefaults(v1::SamplingParams* sampling) {
  if (!sampling->has_temperature()) sampling->set_temperature(1.0f);
}

}  // namespace

absl::Status CheckJsonShape(std::string_view body) {
  int depth = 0;
  int values = 1;
  bool in_string = false;
  for (size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
      continue;
    }
    if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      ++depth;
      ++values;
    } else if (c == ']' || c == '}') {
      --depth;
    } else if (c == ',') {
      ++values;
    }
    if (depth > kMaxDepth || values > kMaxValues) {
      return services::WithReason(
          absl::InvalidArgumentError(
              depth > kMaxDepth
                  ? Cat("the request's body is nested deeper than ", kMaxDepth, " levels")
                  : Cat("the request's body has more than ", kMaxValues, " values")),
          "INVALID_JSON");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<OpenAiRequest> ParseOpenAiChat(std::string_view body) {
  ASSIGN_OR_RETURN(const json document, ParseObject(body));
  OpenAiRequest request;
  request.chat = true;
  v1::ChatRequest& chat = request.chat_request;
  v1::SamplingParams* sampling = chat.mutable_sampling();
  std::optional<int32_t> max_tokens;
  for (const auto& [key, value] : document.items()) {
    if (value.is_null()) {
      // Absent, when there is such a field at all.
      static constexpr std::array<std::string_view, 23> kKnown = {"model",
                                                                  "messages",
                                                                  "stream",
                                                                  "stream_options",
                                                                  "n",
                                                                  "seed",
                                                                  "stop",
                                                                  "logit_bias",
                                                                  "temperature",
                                                                  "top_p",
                                                                  "min_p",
                                                                  "presence_penalty",
                                                                  "frequency_penalty",
                                                                  "repetition_penalty",
                                                                  "top_k",
                                                                  "ignore_eos",
                                                                  "user",
                                                                  "max_tokens",
                                                                  "max_completion_tokens",
                                                                  "logprobs",
                                                                  "top_logprobs",
                                                                  "response_format",
                                                                  "tools"};
      if (!Contains(kKnown, key) && !Contains(kUnsupportedChat, key)) return Unknown(key);
      continue;
    }
    ASSIGN_OR_RETURN(const bool common,
                     ReadCommon(key, value, &request, chat.mutable_model(), sampling));
    if (common) continue;
    if (key == "messages") {
      if (!value.is_array()) return TypeError(key, "an array", value);
      for (size_t i = 0; i < value.size(); ++i) {
        RETURN_IF_ERROR(ReadMessage(Cat("messages[", i, "]"), value[i], chat.add_messages()));
      }
    } else if (key == "max_tokens" || key == "max_completion_tokens") {
      ASSIGN_OR_RETURN(const int32_t tokens, ReadInt(key, value));
      // Here, where it is known which of the two names the caller used.
      if (tokens < 1) return FieldError(key, Cat("is ", tokens, ", must be in [1, context]"));
      if (max_tokens && *max_tokens != tokens) {
        return FieldError("max_completion_tokens", "differs from max_tokens; give one of them");
      }
      max_tokens = tokens;
      sampling->set_max_tokens(tokens);
    } else if (key == "logprobs") {
      RETURN_IF_ERROR(ReadBool(key, value, &request.logprobs));
      sampling->set_logprobs(request.logprobs);
    } else if (key == "top_logprobs") {
      ASSIGN_OR_RETURN(const int32_t top, ReadInt(key, value));
      sampling->set_top_logprobs(top);
    } else if (key == "response_format" && value.is_object() && value.size() == 1 &&
               value.contains("type") && value["type"] == "text") {
      // Text is what there is.
    } else if (Contains(kUnsupportedChat, key)) {
      return Unsupported(key);
    } else {
      return Unknown(key);
    }
  }
  if (!document.contains("messages")) return FieldError("messages", "is missing");
  RETURN_IF_ERROR(CheckStreamOptions(document, request));
  SetDefaults(sampling);
  return request;
}

absl::StatusOr<OpenAiRequest> ParseOpenAiCompletion(std::string_view body) {
  ASSIGN_OR_RETURN(const json document, ParseObject(body));
  OpenAiRequest request;
  std::string model;
  v1::SamplingParams sampling;
  sampling.set_max_tokens(kDefaultCompletionTokens);
  for (const auto& [key, value] : document.items()) {
    if (value.is_null()) {
      static constexpr std::array<std::string_view, 20> kKnown = {"model",
                                                                  "prompt",
                                                                  "stream",
                                                                  "stream_options",
                                                                  "n",
                                                                  "seed",
                                                                  "stop",
                                                                  "logit_bias",
                                                                  "temperature",
                                                                  "top_p",
                                                                  "min_p",
                                                                  "presence_penalty",
                                                                  "frequency_penalty",
                                                                  "repetition_penalty",
                                                                  "top_k",
                                                                  "ignore_eos",
                                                                  "user",
                                                                  "max_tokens",
                                                                  "logprobs",
                                                                  "echo"};
      if (!Contains(kKnown, key) && !Contains(kUnsupportedCompletion, key)) return Unknown(key);
      continue;
    }
    ASSIGN_OR_RETURN(const bool common, ReadCommon(key, value, &request, &model, &sampling));
    if (common) continue;
    if (key == "prompt") {
      RETURN_IF_ERROR(ReadPrompt(value, &request.prompts));
    } else if (key == "max_tokens") {
      ASSIGN_OR_RETURN(const int32_t tokens, ReadInt(key, value));
      sampling.set_max_tokens(tokens);
    } else if (key == "logprobs") {
      // Here it is the number of alternatives; 0 still asks for the chosen token's own.
      ASSIGN_OR_RETURN(const int32_t top, ReadInt(key, value));
      request.logprobs = true;
      sampling.set_logprobs(true);
      sampling.set_top_logprobs(top);
    } else if ((key == "echo" && value.is_boolean() && !value.get<bool>()) ||
               (key == "best_of" && value.is_number_integer() && value == 1)) {
      // The default.
    } else if (Contains(kUnsupportedCompletion, key)) {
      return Unsupported(key);
    } else {
      return Unknown(key);
    }
  }
  if (request.prompts.empty()) return FieldError("prompt", "is missing");
  RETURN_IF_ERROR(CheckStreamOptions(document, request));
  SetDefaults(&sampling);
  for (v1::CompleteRequest& prompt : request.prompts) {
    prompt.set_model(model);
    *prompt.mutable_sampling() = sampling;
  }
  return request;
}

}  // namespace cogumi::gateway
