// What decoding is timed on. How much of the head a greedy answer reads depends on how sure the
// model is (engine/model/certified_head.h), so random tokens would say little about answers.
#pragma once

#include <string_view>

namespace cogumi::bench {

// Prose, questions with answers, a list and code: about 700 tokens.
std::string_view BenchText();

}  // namespace cogumi::bench
