// Inputs of the head whose activations are large whatever the text.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/io/gguf.h"

namespace cogumi {

// The first kHeavyInputs of the inputs, by descending expected energy: the squares of the final
// norm's weights [width] times those of the rows of the last layer's down projection, which writes
// what the norm reads. For SmolLM2-135M 14 panels follow an estimate (24 beside a random adapter),
// with the order that was measured on a text 12 (21), by the norm's weights alone 32 (72).
std::vector<int32_t> HeavyInputs(const GgufTensor& norm, const GgufTensor& down);

}  // namespace cogumi
