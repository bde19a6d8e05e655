#include "engine/model/packing.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/core/half.h"

namespace cogumi {
namespace {

// 32 consecutive inputs of one row.
struct Block {
  uint32_t codes[8];  // 4 codes each, input 4t in the lowest byte
  // fp16 bits or float32, by the format.
  uint16_t scale_half = 0;
  uint16_t minimum_half = 0;
  float scale[2] = {};
  float minimum = 0;
};

uint16_t Half(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return h;
}

// Low nibbles are inputs 0-15, high nibbles inputs 16-31.
void Nibbles(const uint8_t* qs, uint32_t* codes) {
  for (int t = 0; t < 4; ++t) {
    uint32_t word;
    std::memcpy(&word, qs + 4 * t, 4);
    codes[t] = word & 0x0F0F0F0Fu;
    codes[4 + t] = (word >> 4) & 0x0F0F0F0Fu;
  }
}

// Bit i of `high` is the fifth bit of code i.
void FifthBits(uint32_t high, uint32_t* codes) {
  for (int i = 0; i < 32; ++i) codes[i / 4] |= ((high >> i) & 1u) << (8 * (i % 4) + 4);
}

// The 6-bit scale and minimum of sub-block j of a Q4_K or Q5_K super-block.
void ScaleMinimumK(const uint8_t* q, int j, uint8_t* scale, uint8_t* minimum) {
  if (j < 4) {
    *scale = q[j] & 63;
    *minimum = q[j + 4] & 63;
  } else {
    *scale = static_cast<uint8_t>((q[j + 4] & 15) | ((q[j - 4] >> 6) << 4));
    *minimum = static_cast<uint8_t>((q[j + 4] >> 4) | ((q[j] >> 6) << 4));
  }
}

void ReadK(const uint8_t* super, const uint8_t* scales, int j, Block* block) {
  uint8_t scale;
  uint8_t minimum;
  ScaleMinimumK(scales, j, &scale, &minimum);
  block->scale[0] = HalfToFloat(Half(super)) * static_cast<float>(scale);
  block->minimum = -(HalfToFloat(Half(super + 2)) * static_cast<float>(minimum));
}

void ReadBlock(GgmlType type, const uint8_t* row, int b, Block* block) {
  uint8_t codes[32] = {};
  switch (type) {
    case GgmlType::kQ4_0: {
      const uint8_t* p = row + 18 * b;
      block->scale_half = Half(p);
      Nibbles(p + 2, block->codes);
      return;
    }
    case GgmlType::kQ4_1: {
      const uint8_t* p = row + 20 * b;
      block->scale_half = Half(p);
      block->minimum_half = Half(p + 2);
      Nibbles(p + 4, block->codes);
      return;
    }
    case GgmlType::kQ5_0:
    case GgmlType::kQ5_1: {
      const bool has_minimum = type == GgmlType::kQ5_1;
      const uint8_t* p = row + (has_minimum ? 24 : 22) * b;
      block->scale_half = Half(p);
      if (has_minimum) block->minimum_half = Half(p + 2);
      p += has_minimum ? 4 : 2;
      uint32_t high;
      std::memcpy(&high, p, 4);
      Nibbles(p + 4, block->codes);
      FifthBits(high, block->codes);
      return;
    }
    case GgmlType::kQ8_0: {
      const uint8_t* p = row + 34 * b;
      block->scale_half = Half(p);
      std::memcpy(block->codes, p + 2, 32);
      for (uint32_t& word : block->codes) word ^= 0x80808080u;  // signed to code - 128
      return;
    }
    case GgmlType::kQ4_K: {
      const uint8_t* p = row + 144 * (b / 8);
      const int j = b % 8;
      ReadK(p, p + 4, j, block);
      const uint8_t* qs = p + 16 + 32 * (j / 2);
      for (int i = 0; i < 32; ++i) {
        codes[i] = static_cast<uint8_t>(j % 2 == 0 ? qs[i] & 15 : qs[i] >> 4);
      }
      break;
    }
    case GgmlType::kQ5_K: {
      const uint8_t* p = row + 176 * (b / 8);
      const int j = b % 8;
      ReadK(p, p + 4, j, block);
      const uint8_t* qh = p + 16;
      const uint8_t* qs = p + 48 + 32 * (j / 2);
      for (int i = 0; i < 32; ++i) {
        const int low = j % 2 == 0 ? qs[i] & 15 : qs[i] >> 4;
        codes[i] = static_cast<uint8_t>(low | (((qh[i] >> j) & 1) << 4));
      }
      break;
    }
    case GgmlType::kQ6_K: {
      const uint8_t* p = row + 210 * (b / 8);
      const int part = b % 4;  // of 128 values
      const uint8_t* ql = p + 64 * (b % 8 / 4) + 32 * (part % 2);
      const uint8_t* qh = p + 128 + 32 * (b % 8 / 4);
      const uint8_t* scales = p + 192 + 2 * (b % 8);
      for (int i = 0; i < 32; ++i) {
        const int low = part < 2 ? ql[i] & 15 : ql[i] >> 4;
        codes[i] = static_cast<uint8_t>(low | (((qh[i] >> (2 * part)) & 3) << 4));
      }
      for (int g = 0; g < 2; ++g) {
        block->scale[g] =
            HalfToFloat(Half(p + 208)) * static_cast<float>(static_cast<int8_t>(scales[g]));
      }
      break;
    }
    case GgmlType::kF32:
    case GgmlType::kF16:
    case GgmlType::kBF16:
      return;  // PackFloatPanel
  }
  std::memcpy(block->codes, codes, 32);
}

void StoreScale(const WeightFormat& f, uint8_t* to, int index, uint16_t half, float value) {
  if (f.f32_scales) {
    std::memcpy(to + 4 * index, &value, 4);
  } else {
    std::memcpy(to + 2 * index, &half, 2);
  }
}

void StoreScales(const WeightFormat& f, const Block& block, int r, uint8_t* record) {
  uint8_t* scales = record + f.TileBytes();
  for (int g = 0; g < 32 / f.group; ++g) {
    StoreScale(f, scales, g * 32 + r, block.scale_half, block.scale[g]);
  }
  if (f.has_minimum) {
    StoreScale(f, scales + f.ScaleBytes(), r, block.minimum_half, block.minimum);
  }
}

void PackFloatPanel(const std::byte* data, const PackedMatrix& m, size_t element, int panel,
                    uint8_t* out) {
  for (int r = 0; r < kPanelRows; ++r) {
    const int row = panel * kPanelRows + r;
    for (int k = 0; k < m.inputs; ++k) {
      uint8_t* to = out + (static_cast<size_t>(k) * kPanelRows + static_cast<size_t>(r)) * element;
      if (row < m.rows) {
        std::memcpy(to,
                    data + (static_cast<size_t>(row) * static_cast<size_t>(m.inputs) +
                            static_cast<size_t>(k)) *
                               element,
                    element);
      } else {
        std::memset(to, 0, element);
      }
    }
  }
}

// Rows r and r + 16 of a split matrix's record.
void StoreSplit(const Block* pair, int r, uint8_t* coarse, uint8_t* masks, uint8_t* fine) {
  constexpr uint32_t kNibbles = 0x0F0F0F0Fu;
  for (int t = 0; t < 8; ++t) {
    const uint32_t low = pair[0].codes[t];
    const uint32_t high = pair[1].codes[t];
    const uint32_t upper = (low >> 4 & kNibbles) | (high & ~kNibbles);
    const uint32_t lower = (low & kNibbles) | (high & kNibbles) << 4;
    std::memcpy(coarse + t * 64 + r * 4, &upper, 4);
    std::memcpy(fine + t * 64 + r * 4, &lower, 4);
    for (int h = 0; h < 2; ++h) {
      // Bits 3, 11, 19 and 27, side by side.
      const uint32_t bits = (pair[h].codes[t] >> 3 & 0x01010101u) * 0x01020408u >> 24;
      uint8_t& mask = masks[64 * h + 8 * t + r / 2];
      mask = static_cast<uint8_t>(mask | bits << (r % 2 * 4));
    }
  }
}

// Of a row of a split matrix, sums over its blocks of squares of scales, and of these times the
// squares of what estimates leave out of the codes.
struct LeftOut {
  double scales = 0;
  double codes = 0;
  void Add(const Block& block) {
    int squares = 0;
    for (const uint32_t word : block.codes) {
      for (int shift = 0; shift < 32; shift += 8) {
        const int left = static_cast<int>(word >> shift & 7) - 4;
        squares += left * left;
      }
    }
    const double scale = static_cast<double>(HalfToFloat(block.scale_half));
    scales += scale * scale;
    codes += scale * scale * squares;
  }
};

// What an estimate leaves out of row r of a packed panel at input k.
double LeftOutAt(const PackedMatrix& m, int panel, int r, int32_t k) {
  const size_t block = static_cast<size_t>(k / kBlockInputs);
  const size_t input = static_cast<size_t>(k % kBlockInputs);
  const size_t row = static_cast<size_t>(r);
  const uint8_t both =
      m.Fine(panel)[block * kFineBytes + input / 4 * 64 + row % 16 * 4 + input % 4];
  const uint8_t* scales = m.Panel(panel) + block * m.format.RecordBytes() + m.format.TileBytes();
  return static_cast<double>(HalfToFloat(Half(scales + 2 * row))) *
         ((r < 16 ? both & 7 : both >> 4 & 7) - 4);
}

// Packs what is left out of a row at the heavy inputs as a block whose upper bits say it all.
// Returns the number that bounds what estimates still do not know (see CertifiedHead).
double PackHeavy(const PackedMatrix& m, int panel, int r, const LeftOut& row, Block* block) {
  double left[kHeavyInputs];
  double largest = 0;
  for (int h = 0; h < kHeavyInputs; ++h) {
    left[h] = LeftOutAt(m, panel, r, m.heavy[h]);
    largest = std::max(largest, std::fabs(left[h]));
  }
  // 32 levels of 8, symmetrical: 8 * k - kCoarseZero.
  block->scale_half = FloatToHalf(static_cast<float>(largest / kCoarseZero));
  const double scale = static_cast<double>(HalfToFloat(block->scale_half));
  double light = row.codes;  // without the heavy inputs
  double known = 0;
  double rest = 0;
  for (int h = 0; h < kHeavyInputs; ++h) {
    const double at = scale > 0 ? (left[h] / scale + kCoarseZero) / 8 : 0;
    const long level = std::clamp(std::lrint(at), 0L, 31L);
    block->codes[h / 4] |= static_cast<uint32_t>(8 * level) << (h % 4 * 8);
    const double value = scale * static_cast<double>(8 * level - kCoarseZero);
    known += value * value;
    rest += (left[h] - value) * (left[h] - value);
    light -= left[h] * left[h];
  }
  return std::max({std::sqrt(std::max(light, 0.0)), kHeavyRest * std::sqrt(rest), std::sqrt(known),
                   std::sqrt(row.scales)});
}

// The record of a panel's heavy inputs and its rows' bounds.
void StoreHeavy(const PackedMatrix& m, int panel, const LeftOut* rows) {
  const size_t b = m.Blocks();
  uint8_t* record = m.Panel(panel) + b * m.format.RecordBytes();
  uint8_t unused[kFineBytes];
  for (int r = 0; r < 16; ++r) {
    Block pair[2] = {};
    for (int h = 0; h < 2; ++h) {
      const int row = r + 16 * h;
      m.Norms(panel)[row] = static_cast<float>(PackHeavy(m, panel, row, rows[row], &pair[h]));
      StoreScales(m.format, pair[h], row, record);
    }
    StoreSplit(pair, r, record, m.Masks(panel) + b * kMaskBytes, unused);
  }
}

}  // namespace

WeightFormat PackedFormatOf(GgmlType type) {
  constexpr WeightKind kQuantised = WeightKind::kQuantised;
  switch (type) {
    case GgmlType::kF32:
      return {.kind = WeightKind::kF32};
    case GgmlType::kF16:
      return {.kind = WeightKind::kF16};
    case GgmlType::kBF16:
      return {.kind = WeightKind::kBF16};
    case GgmlType::kQ4_0:
      return {.kind = kQuantised, .bits = 4, .group = 32, .zero = 8};
    case GgmlType::kQ4_1:
      return {.kind = kQuantised, .bits = 4, .group = 32, .has_minimum = true};
    case GgmlType::kQ5_0:
      return {.kind = kQuantised, .bits = 8, .group = 32, .zero = 16};
    case GgmlType::kQ5_1:
      return {.kind = kQuantised, .bits = 8, .group = 32, .has_minimum = true};
    case GgmlType::kQ8_0:
      return {.kind = kQuantised, .bits = 8, .group = 32, .zero = 128};
    case GgmlType::kQ4_K:
      return {.kind = kQuantised, .bits = 4, .group = 32, .has_minimum = true, .f32_scales = true};
    case GgmlType::kQ5_K:
      return {.kind = kQuantised, .bits = 8, .group = 32, .has_minimum = true, .f32_scales = true};
    case GgmlType::kQ6_K:
      return {.kind = kQuantised, .bits = 8, .group = 16, .f32_scales = true, .zero = 32};
  }
  return {};
}

WeightFormat PackedHeadFormatOf(GgmlType type) {
  WeightFormat format = PackedFormatOf(type);
  format.split = type == GgmlType::kQ8_0;
  return format;
}

void PackPanel(GgmlType type, const std::byte* tensor_data, const PackedMatrix& m, int panel) {
  uint8_t* out = m.data + static_cast<size_t>(panel) * m.PanelBytes();
  const WeightFormat& f = m.format;
  if (f.kind != WeightKind::kQuantised) {
    PackFloatPanel(tensor_data, m, f.kind == WeightKind::kF32 ? 4 : 2, panel, out);
    return;
  }
  const GgmlTypeTraits traits = *TraitsOf(type);
  const size_t row_bytes =
      static_cast<size_t>(m.inputs) / traits.block_elements * traits.block_bytes;
  const uint8_t* data = reinterpret_cast<const uint8_t*>(tensor_data);
  const int first = panel * kPanelRows;
  LeftOut left_out[kPanelRows];
  // Two rows that share bytes at a time, along the row: reads and writes both stream.
  for (int r = 0; r < 16; ++r) {
    const int rows[2] = {first + r, first + r + 16};
    uint8_t* record = out;
    for (int b = 0; b < m.inputs / kBlockInputs; ++b, record += f.RecordBytes()) {
      Block pair[2];
      for (int h = 0; h < 2; ++h) {
        if (rows[h] < m.rows) {
          ReadBlock(type, data + static_cast<size_t>(rows[h]) * row_bytes, b, &pair[h]);
        } else {
          pair[h] = Block{};
        }
        StoreScales(f, pair[h], r + 16 * h, record);
      }
      if (f.split) {
        for (int h = 0; h < 2; ++h) left_out[r + 16 * h].Add(pair[h]);
        const size_t at = static_cast<size_t>(b);
        StoreSplit(pair, r, record, m.Masks(panel) + at * kMaskBytes,
                   m.Fine(panel) + at * kFineBytes);
        continue;
      }
      for (int t = 0; t < 8; ++t) {
        uint8_t* tile = record + t * 64 + r * 4;
        if (f.bits == 4) {
          const uint32_t both = pair[0].codes[t] | (pair[1].codes[t] << 4);
          std::memcpy(tile, &both, 4);
        } else {
          std::memcpy(tile, &pair[0].codes[t], 4);
          std::memcpy(tile + 512, &pair[1].codes[t], 4);
        }
      }
    }
  }
  if (f.split) StoreHeavy(m, panel, left_out);
}

}  // namespace cogumi
