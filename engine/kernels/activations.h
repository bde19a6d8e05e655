// Inputs of a matrix: quantised per 32 inputs, in float32, or both, as its weights need.
//
// A step's rows stand in slots: those with 16-bit codes first, then those with 8-bit codes, so that
// both kinds go through a weight panel as blocks of their own. Codes lie [block][slot]: 64 bytes a
// wide slot (two signed planes: 32 high, 32 low bytes, value = 256 * high + low), 32 bytes a narrow
// one, so that a kernel walks slots inside a weight record.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cogumi {

struct Activations {
  int inputs = 0;
  int wide_slots = 0;                // slots [0, wide_slots) have 16 bits, the others 8
  const int32_t* row_of = nullptr;  // slot -> row of the step; null: the same
  bool want_quantised = false;
  bool want_f32 = false;

  int8_t* codes = nullptr;      // [blocks][code_stride bytes]
  float* scale = nullptr;       // [blocks][slot_stride]
  float* scaled_sum = nullptr;  // scale * sum of codes
  int32_t* sum = nullptr;       // sum of the 32 codes
  int32_t* half_sum = nullptr;  // sum of the first 16 codes
  size_t code_stride = 0;       // bytes between blocks; padded so that blocks do not share sets
  size_t slot_stride = 0;       // entries between blocks
  float* f32 = nullptr;         // [slots][inputs]

  bool Wide(int slot) const { return slot < wide_slots; }
  int Row(int slot) const { return row_of != nullptr ? row_of[slot] : slot; }
  // Bytes from the start of a block to a slot's codes.
  size_t CodeOffset(int slot) const {
    return Wide(slot) ? static_cast<size_t>(slot) * 64
                      : static_cast<size_t>(wide_slots) * 64 +
                            static_cast<size_t>(slot - wide_slots) * 32;
  }
  int8_t* Codes(int block, int slot) const {
    return codes + static_cast<size_t>(block) * code_stride + CodeOffset(slot);
  }
  size_t At(int block, int slot) const {
    return static_cast<size_t>(block) * slot_stride + static_cast<size_t>(slot);
  }
  // Slots of one kind from `slot` on, at most `limit`, of `slots` in all.
  int Run(int slot, int slots, int limit) const {
    const int end = Wide(slot) && wide_slots < slots ? wide_slots : slots;
    return end - slot < limit ? end - slot : limit;
  }
};

}  // namespace cogumi
