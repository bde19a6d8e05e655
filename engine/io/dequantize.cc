// Block formats of ggml (ggml-common.h, ggml-quants.c): little-endian, read byte by byte, because a
// block of 18 or 210 bytes has no alignment. Every product and sum rounds as ggml's scalar code
// does, so the results are equal bit for bit (contraction to FMA is off in ISO C++ mode).
#include <array>
#include <cstdint>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/core/half.h"
#include "engine/io/gguf.h"

namespace cogumi {
namespace {

constexpr size_t kSuperBlock = 256;  // elements of a K-quant block

uint8_t Byte(const std::byte* data, size_t index) { return static_cast<uint8_t>(data[index]); }

uint16_t Word(const std::byte* data) {
  return static_cast<uint16_t>(Byte(data, 0) | (Byte(data, 1) << 8));
}

float Half(const std::byte* data) { return HalfToFloat(Word(data)); }

int Low(uint8_t byte) { return byte & 15; }
int High(uint8_t byte) { return byte >> 4; }

void Q4_0(const std::byte* block, float* out) {
  const float d = Half(block);
  for (size_t j = 0; j < 16; ++j) {
    const uint8_t q = Byte(block, 2 + j);
    out[j] = static_cast<float>(Low(q) - 8) * d;
    out[j + 16] = static_cast<float>(High(q) - 8) * d;
  }
}

void Q4_1(const std::byte* block, float* out) {
  const float d = Half(block);
  const float m = Half(block + 2);
  for (size_t j = 0; j < 16; ++j) {
    const uint8_t q = Byte(block, 4 + j);
    out[j] = static_cast<float>(Low(q)) * d + m;
    out[j + 16] = static_cast<float>(High(q)) * d + m;
  }
}

// The fifth bits of a block of 32: bit j belongs to element j.
uint32_t FifthBits(const std::byte* data) {
  return static_cast<uint32_t>(Word(data)) | (static_cast<uint32_t>(Word(data + 2)) << 16);
}

int Bit4(uint32_t bits, size_t index) { return static_cast<int>((bits >> index) & 1u) << 4; }

void Q5_0(const std::byte* block, float* out) {
  const float d = Half(block);
  const uint32_t high = FifthBits(block + 2);
  for (size_t j = 0; j < 16; ++j) {
    const uint8_t q = Byte(block, 6 + j);
    out[j] = static_cast<float>((Low(q) | Bit4(high, j)) - 16) * d;
    out[j + 16] = static_cast<float>((High(q) | Bit4(high, j + 16)) - 16) * d;
  }
}

void Q5_1(const std::byte* block, float* out) {
  const float d = Half(block);
  const float m = Half(block + 2);
  const uint32_t high = FifthBits(block + 4);
  for (size_t j = 0; j < 16; ++j) {
    const uint8_t q = Byte(block, 8 + j);
    out[j] = static_cast<float>(Low(q) | Bit4(high, j)) * d + m;
    out[j + 16] = static_cast<float>(High(q) | Bit4(high, j + 16)) * d + m;
  }
}

void Q8_0(const std::byte* block, float* out) {
  const float d = Half(block);
  for (size_t j = 0; j < 32; ++j) {
    out[j] = static_cast<float>(static_cast<int8_t>(Byte(block, 2 + j))) * d;
  }
}

// Scale and minimum of the eight groups of 32 in a Q4_K or Q5_K block: 6 bits each, in 12 bytes.
struct ScaleMin {
  int scale;
  int minimum;
};
ScaleMin UnpackScaleMin(const std::byte* packed, size_t group) {
  if (group < 4) return {Byte(packed, group) & 63, Byte(packed, group + 4) & 63};
  const uint8_t low = Byte(packed, group + 4);
  return {Low(low) | ((Byte(packed, group - 4) >> 6) << 4),
          High(low) | ((Byte(packed, group) >> 6) << 4)};
}

void Q4_K(const std::byte* block, float* out) {
  const float d = Half(block);
  const float dmin = Half(block + 2);
  const std::byte* quants = block + 16;
  for (size_t group = 0; group < 8; ++group) {
    const ScaleMin sm = UnpackScaleMin(block + 4, group);
    const float scale = d * static_cast<float>(sm.scale);
    const float minimum = dmin * static_cast<float>(sm.minimum);
    const std::byte* q = quants + (group / 2) * 32;
    for (size_t j = 0; j < 32; ++j) {
      const uint8_t byte = Byte(q, j);
      const int value = group % 2 == 0 ? Low(byte) : High(byte);
      out[group * 32 + j] = scale * static_cast<float>(value) - minimum;
    }
  }
}

void Q5_K(const std::byte* block, float* out) {
  const float d = Half(block);
  const float dmin = Half(block + 2);
  const std::byte* high = block + 16;
  const std::byte* quants = block + 48;
  for (size_t group = 0; group < 8; ++group) {
    const ScaleMin sm = UnpackScaleMin(block + 4, group);
    const float scale = d * static_cast<float>(sm.scale);
    const float minimum = dmin * static_cast<float>(sm.minimum);
    const std::byte* q = quants + (group / 2) * 32;
    for (size_t j = 0; j < 32; ++j) {
      const uint8_t byte = Byte(q, j);
      const int value = (group % 2 == 0 ? Low(byte) : High(byte)) + Bit4(Byte(high, j), group);
      out[group * 32 + j] = scale * static_cast<float>(value) - minimum;
    }
  }
}

void Q6_K(const std::byte* block, float* out) {
  const std::byte* scales = block + 192;
  const float d = Half(block + 208);
  for (size_t half = 0; half < 2; ++half) {
    const std::byte* low = block + half * 64;
    const std::byte* high = block + 128 + half * 32;
    for (size_t part = 0; part < 4; ++part) {  // 32 elements each
      for (size_t j = 0; j < 32; ++j) {
        const uint8_t low_byte = Byte(low, (part % 2) * 32 + j);
        const int low_bits = part < 2 ? Low(low_byte) : High(low_byte);
        const int high_bits = (Byte(high, j) >> (2 * part)) & 3;
        const auto scale = static_cast<int8_t>(Byte(scales, half * 8 + part * 2 + j / 16));
        out[half * 128 + part * 32 + j] =
            d * static_cast<float>(scale) * static_cast<float>((low_bits | (high_bits << 4)) - 32);
      }
    }
  }
}

using BlockFunction = void (*)(const std::byte* block, float* out);

struct Format {
  GgmlType type;
  const char* name;
  GgmlTypeTraits traits;
  BlockFunction dequantize;
};

constexpr std::array<Format, 11> kFormats = {{
    {GgmlType::kF32,
     "F32",
     {1, 4},
     [](const std::byte* block, float* out) { std::memcpy(out, block, sizeof(float)); }},
    {GgmlType::kF16,
     "F16",
     {1, 2},
     [](const std::byte* block, float* out) { *out = HalfToFloat(Word(block)); }},
    {GgmlType::kBF16,
     "BF16",
     {1, 2},
     [](const std::byte* block, float* out) { *out = Bf16ToFloat(Word(block)); }},
    {GgmlType::kQ4_0, "Q4_0", {32, 18}, Q4_0},
    {GgmlType::kQ4_1, "Q4_1", {32, 20}, Q4_1},
    {GgmlType::kQ5_0, "Q5_0", {32, 22}, Q5_0},
    {GgmlType::kQ5_1, "Q5_1", {32, 24}, Q5_1},
    {GgmlType::kQ8_0, "Q8_0", {32, 34}, Q8_0},
    {GgmlType::kQ4_K, "Q4_K", {kSuperBlock, 144}, Q4_K},
    {GgmlType::kQ5_K, "Q5_K", {kSuperBlock, 176}, Q5_K},
    {GgmlType::kQ6_K, "Q6_K", {kSuperBlock, 210}, Q6_K},
}};

const Format* FindFormat(GgmlType type) {
  for (const Format& format : kFormats) {
    if (format.type == type) return &format;
  }
  return nullptr;
}

}  // namespace

std::string GgmlTypeName(GgmlType type) {
  if (const Format* format = FindFormat(type)) return format->name;
  return absl::StrCat("type ", static_cast<uint32_t>(type));
}

std::optional<GgmlTypeTraits> TraitsOf(GgmlType type) {
  if (const Format* format = FindFormat(type)) return format->traits;
  return std::nullopt;
}

void Dequantize(GgmlType type, const std::byte* data, size_t elements, float* out) {
  const Format* format = FindFormat(type);
  if (format == nullptr || elements == 0) return;
  if (type == GgmlType::kF32) {
    std::memcpy(out, data, elements * sizeof(float));
    return;
  }
  const size_t block_elements = format->traits.block_elements;
  const size_t block_bytes = format->traits.block_bytes;
  for (size_t block = 0; block < elements / block_elements; ++block) {
    format->dequantize(data + block * block_bytes, out + block * block_elements);
  }
}

}  // namespace cogumi
