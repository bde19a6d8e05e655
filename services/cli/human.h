// Figures for people to read.
#pragma once

#include <cstdint>
#include <string>

namespace cogumi::cli {

// "93.8 MiB"; whole below 1 KiB: "512 bytes".
std::string HumanBytes(int64_t bytes);

}  // namespace cogumi::cli
