// What this machine is and can do.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "services/cli/json.h"

namespace cogumi::cli {

struct Machine {
  std::string processor;  // its own name
  int cores = 0;          // that this process may run on
  int64_t memory_bytes = 0;
  int64_t memory_available_bytes = 0;
  // Instruction sets the kernels ask for, and whether they are there.
  std::vector<std::pair<std::string, bool>> features;
};
Machine DescribeMachine();
JsonObject ToJson(const Machine& machine);

// Bytes read per second by `threads` threads, each from its share of a buffer far beyond the
// caches; the best of `rounds`. 0 when there is no memory for the buffer.
double MeasureReadBandwidth(int threads, int rounds);

}  // namespace cogumi::cli
