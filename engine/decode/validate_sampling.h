// The ranges of proto/cogumi/v1/common.proto, checked in one place for every door.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "cogumi/types.h"

namespace cogumi {

inline constexpr int kMaxStopStrings = 16;
inline constexpr int kMaxStopBytes = 256;
inline constexpr int kMaxTopLogprobs = 20;

// INVALID_ARGUMENT "field: value is outside [low, high]" for the first field out of its range; NaN
// and infinities are outside of every range. `vocabulary` and `context` in tokens.
absl::Status ValidateSampling(const SamplingParams& params, int32_t vocabulary, int32_t context);

}  // namespace cogumi
