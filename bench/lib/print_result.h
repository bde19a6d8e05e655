// How a benchmark ends.
#pragma once

#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"

namespace cogumi::bench {

// Prints the result, or why there is none; the exit status.
inline int PrintResult(const char* program, const absl::StatusOr<nlohmann::json>& result) {
  if (!result.ok()) {
    std::cerr << program << ": " << result.status().message() << "\n";
    return 1;
  }
  std::cout << result->dump(1) << std::endl;
  return 0;
}

}  // namespace cogumi::bench
