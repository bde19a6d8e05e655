// Weight matrices in the layout that the kernels read; made without loss by model/packing.h.
//
// Rows are taken in panels of 32. A panel of a quantised matrix is a sequence of records, one per
// 32 inputs: 8 (4-bit) or 16 (8-bit) tiles of 64 bytes, then scales, then minimums, so that one
// stream of memory feeds a kernel. A tile is 16 rows x 4 inputs, byte 4 * row + input: a VNNI
// register. 4-bit tiles hold row r in the low and row r + 16 in the high nibble; 8-bit tiles 0-7
// hold rows 0-15 and tiles 8-15 rows 16-31. A panel of a float matrix is [inputs][32 rows].
// Rows beyond the matrix are zero.
//
// A split matrix of 8-bit codes can be read without their lower bits (certified_head.h): all panels
// of coarse records (a 4-bit tile of bits 4-7, then scales), each panel followed by a number for
// each of its rows that bounds what is left out; then for every record 16 masks of 8 bytes, one per
// tile of 16 rows, with bit 3; then fine records, a 4-bit tile of bits 0-3. Bit 3 is there twice:
// either reader finds its bits with one operation a register. Behind its other records a panel's
// coarse part has one more, which only an estimate reads: what is left out at the 32 heavy inputs,
// those whose activations are largest, in 5 bits with a scale of its own.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cogumi {

inline constexpr int kPanelRows = 32;
inline constexpr int kBlockInputs = 32;
// Of a record of a split matrix.
inline constexpr size_t kFineBytes = 512;
inline constexpr size_t kMaskBytes = 128;
// Without its three lower bits a code of a split matrix stands for itself + 4 - 128: 0.5 too high
// on average, and at most 3.5 off that.
inline constexpr int kCoarseZero = 124;
// Inputs of a split matrix whose lower bits estimates know: a record.
inline constexpr int kHeavyInputs = kBlockInputs;

enum class WeightKind : uint8_t { kQuantised, kF32, kF16, kBF16 };

// value = scale * (code - zero), or scale * code + minimum.
struct WeightFormat {
  WeightKind kind = WeightKind::kF32;
  uint8_t bits = 0;          // 4 | 8
  uint8_t group = 0;         // inputs that share a scale: 16 | 32
  bool has_minimum = false;  // else the integer zero
  bool f32_scales = false;   // else fp16
  uint8_t zero = 0;
  bool split = false;  // 8 bits, group 32, fp16 scales and zero 128 only

  constexpr size_t TileBytes() const { return split || bits == 4 ? 512 : 1024; }
  constexpr size_t ScaleBytes() const {
    return static_cast<size_t>(32 / group) * 32 * (f32_scales ? 4 : 2);
  }
  constexpr size_t RecordBytes() const {
    return TileBytes() + ScaleBytes() * (has_minimum ? 2 : 1);
  }
};

// A view; the weights' arena owns the bytes (64-byte aligned).
struct PackedMatrix {
  WeightFormat format;
  int rows = 0;    // outputs
  int inputs = 0;  // quantised: a multiple of 32
  uint8_t* data = nullptr;
  const int32_t* heavy = nullptr;  // [kHeavyInputs] of a split matrix, each once

  int Panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
  size_t Blocks() const { return static_cast<size_t>(inputs / kBlockInputs); }
  // What an estimate reads: all records and that of the heavy inputs.
  size_t CoarseBlocks() const { return Blocks() + (format.split ? 1 : 0); }
  // Of a split matrix: of its coarse part.
  size_t PanelBytes() const {
    switch (format.kind) {
      case WeightKind::kQuantised:
        return CoarseBlocks() * format.RecordBytes() +
               (format.split ? kPanelRows * sizeof(float) : 0);
      case WeightKind::kF32:
        return static_cast<size_t>(inputs) * kPanelRows * 4;
      case WeightKind::kF16:
      case WeightKind::kBF16:
        return static_cast<size_t>(inputs) * kPanelRows * 2;
    }
    return 0;
  }
  size_t Bytes() const {
    const size_t split = format.split ? Blocks() * kFineBytes + CoarseBlocks() * kMaskBytes : 0;
    return (PanelBytes() + split) * static_cast<size_t>(Panels());
  }
  uint8_t* Panel(int i) const { return data + static_cast<size_t>(i) * PanelBytes(); }
  // Of a split matrix.
  uint8_t* Masks(int i) const {
    return Panel(Panels()) + static_cast<size_t>(i) * CoarseBlocks() * kMaskBytes;
  }
  uint8_t* Fine(int i) const {
    return Masks(Panels()) + static_cast<size_t>(i) * Blocks() * kFineBytes;
  }
  // What estimates leave out of rows, as numbers to multiply ScanHeadArgs::spread with. [32 rows]
  float* Norms(int i) const {
    return reinterpret_cast<float*>(Panel(i) + CoarseBlocks() * format.RecordBytes());
  }
};

// One row as float32, out[inputs]; the embedding lookup.
void UnpackRow(const PackedMatrix& matrix, int row, float* out);

}  // namespace cogumi
