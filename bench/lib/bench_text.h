// What decoding is timed on. How much of the head a greedy answer reads depends on how sure the
// model is (engine/model/certified_head.h), so random tokens would say little about answers.
#pragma once

#include <string_view>
#include <vector>

#include "cogumi/types.h"

namespace cogumi {
class GgufFile;
}

namespace cogumi::bench {

// Prose, questions with answers, a list and code: about 700 tokens.
std::string_view BenchText();

// Its tokens; none for a model without a vocabulary (of random weights).
std::vector<TokenId> BenchTokens(const GgufFile& file);

}  // namespace cogumi::bench
