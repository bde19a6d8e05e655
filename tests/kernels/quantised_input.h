// Activations for kernels under test.
#pragma once

#include <vector>

#include "engine/kernels/packed_matrix.h"
#include "engine/kernels/registry.h"
#include "engine/model/activation_buffer.h"

namespace cogumi {

// Quantised and float32 forms of x[rows][inputs], made by `table`; with room for a split matrix's
// heavy inputs.
struct Input {
  Input(const std::vector<float>& x, int inputs, int rows, bool int16,
        const KernelTable& table = ReferenceKernels()) {
    buffer.Allocate(inputs + kHeavyInputs, rows);
    buffer.view.wide_slots = int16 ? rows : 0;
    buffer.view.inputs = inputs;
    buffer.view.want_quantised = true;
    buffer.view.want_f32 = true;
    NormQuantiseArgs args;
    args.x = x.data();
    args.stride = static_cast<size_t>(inputs);
    args.out = &buffer.view;
    table.norm_quantise(args, 0, rows);
  }
  ActivationBuffer buffer;
};

}  // namespace cogumi
