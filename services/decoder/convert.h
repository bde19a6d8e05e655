// Between the messages of decoder.proto and the engine's plain types. No gRPC.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cogumi/engine.h"
#include "cogumi/v1/common.pb.h"
#include "cogumi/v1/decoder.pb.h"

namespace cogumi::services {

inline constexpr size_t kMaxPromptBytes = 4 << 20;
inline constexpr int kMaxMessages = 1024;
inline constexpr size_t kMaxAdapterNameBytes = 64;  // also of a digest
inline constexpr int kMinPriority = -100;
inline constexpr int kMaxPriority = 100;

// The fields that are reserved (UNIMPLEMENTED by name) and those that the engine does not see.
absl::Status CheckGenerateRequest(const v1::GenerateRequest& request);

// Errors name the field: no input, a role that is not set, too many bytes.
absl::StatusOr<Prompt> PromptOf(const v1::GenerateRequest& request);
absl::StatusOr<Prompt> PromptOf(const v1::TokenizeRequest& request);
absl::StatusOr<Prompt> PromptOf(const v1::ScoreRequest& request);

// Ranges are the engine's to check.
SamplingParams SamplingOf(const v1::SamplingParams& sampling);

// Of a request that CheckGenerateRequest has passed.
Speculation SpeculationOf(v1::Speculation speculation);

// The engine's INVALID_ARGUMENT names the field in words: adds it as a detail too. OUT_OF_RANGE
// (context overflow) gets the reason CONTEXT_OVERFLOW, a full queue QUEUE_FULL.
absl::Status WithEngineDetails(const absl::Status& status);

v1::FinishReason ToProto(FinishReason reason);
void ToProto(const TokenInfo& token, v1::TokenLogprob* out);
// `logprobs` and `features` say what the request asked for.
void ToProto(const Chunk& chunk, bool logprobs, bool features, v1::GenerateChunk* out);
// Appends `next` to `chunk`, as if both had been one.
void MergeChunk(v1::GenerateChunk&& next, v1::GenerateChunk* chunk);
void ToProto(const Receipt& receipt, v1::Receipt* out);
void ToProto(const Completion& completion, v1::GenerateComplete* out);
void ToProto(const ModelDescription& model, v1::ModelDescription* out);

}  // namespace cogumi::services
