// The token sequences whose logits are asked for, as tools/exactness writes them.
#pragma once

#include <cstdint>
#include <istream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cogumi/types.h"

namespace cogumi {

struct LogitSequence {
  int32_t logits_from = 0;  // rows of these and all later positions are written
  int32_t decode_from = 0;  // positions before are a prompt in chunks, later ones come one a step
  std::vector<TokenId> tokens;
};

// A line each: `logits_from decode_from token token ...`; blank lines are skipped.
// INVALID_ARGUMENT naming the line, the field, the limit and the value.
absl::StatusOr<std::vector<LogitSequence>> ReadSequences(std::istream& in, int32_t vocabulary_size,
                                                         int32_t context_length);

}  // namespace cogumi
