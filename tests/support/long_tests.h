// How much a property test does: little in every run, more where time is no matter.
#pragma once

#include <cstdlib>

namespace cogumi {

// True with COGUMI_LONG_TESTS set, as `./test all` does.
inline bool LongTests() { return std::getenv("COGUMI_LONG_TESTS") != nullptr; }

// Trials of a property test: `usual`, and `times` as many in long tests.
inline int Trials(int usual, int times = 10) { return LongTests() ? usual * times : usual; }

}  // namespace cogumi
