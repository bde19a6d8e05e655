// Bodies of /v1/chat/completions and /v1/completions, turned into the pipeline's messages.
//
// Every field is known and used, known and refused by name (tools, response_format other than text,
// ...), or unknown and refused by name; nothing is ignored silently except `user`, which is checked
// and has no effect. null counts as absent. Extensions beyond OpenAI's fields: top_k, min_p,
// repetition_penalty.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "cogumi/v1/gateway.pb.h"

namespace cogumi::gateway {

struct OpenAiRequest {
  bool chat = false;
  bool stream = false;
  bool include_usage = false;  // stream_options.include_usage
  int n = 1;
  bool logprobs = false;
  cogumi::v1::ChatRequest chat_request;              // chat
  std::vector<cogumi::v1::CompleteRequest> prompts;  // completions
};

// Errors: INVALID_ARGUMENT and UNIMPLEMENTED with the field as OpenAI names it, and a reason:
// INVALID_JSON, INVALID_FIELD, UNKNOWN_PARAMETER, UNSUPPORTED_PARAMETER. The ranges of values that
// common.proto gives are checked by ValidateSampling, not here; here are the types.
absl::StatusOr<OpenAiRequest> ParseOpenAiChat(std::string_view body);
absl::StatusOr<OpenAiRequest> ParseOpenAiCompletion(std::string_view body);

// Refuses a body that would need much more memory as a document than as text, before it is parsed:
// more than 64 levels or 200,000 values.
absl::Status CheckJsonShape(std::string_view body);

}  // namespace cogumi::gateway
