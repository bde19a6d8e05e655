// Checks what a caller sent before anything is done with it. Ranges are those of common.proto; what
// depends on the model (vocabulary, context) is checked by the decoder. Errors are INVALID_ARGUMENT
// or UNIMPLEMENTED, name the field as in the proto ("sampling.top_p"), the value and the range.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "cogumi/v1/gateway.pb.h"

namespace cogumi::gateway {

struct RequestLimits {
  size_t max_text_bytes = 1 << 20;  // of all messages or the prompt together
  int max_messages = 1024;
  int max_tokens = 1 << 20;  // of a prompt given as tokens
};

absl::Status ValidateSampling(const cogumi::v1::SamplingParams& sampling);
// ^[A-Za-z0-9_-]{1,64}$.
absl::Status ValidateSessionId(const std::string& id);
absl::Status ValidateChat(const cogumi::v1::ChatRequest& request, const RequestLimits& limits);
absl::Status ValidateComplete(const cogumi::v1::CompleteRequest& request,
                              const RequestLimits& limits);

}  // namespace cogumi::gateway
