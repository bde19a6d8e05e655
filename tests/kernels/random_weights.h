// Random blocks of every GGUF type with sane scales, for kernel tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "engine/core/half.h"
#include "engine/io/gguf.h"
#include "engine/kernels/packed_matrix.h"
#include "engine/model/packing.h"

namespace cogumi {

inline constexpr GgmlType kAllTypes[] = {GgmlType::kF32,  GgmlType::kF16,  GgmlType::kBF16,
                                         GgmlType::kQ4_0, GgmlType::kQ4_1, GgmlType::kQ5_0,
                                         GgmlType::kQ5_1, GgmlType::kQ8_0, GgmlType::kQ4_K,
                                         GgmlType::kQ5_K, GgmlType::kQ6_K};

// `elements` values of about unit variance as the type stores them.
inline std::vector<std::byte> RandomTensor(GgmlType type, size_t elements, std::mt19937& random) {
  const GgmlTypeTraits traits = *TraitsOf(type);
  std::vector<std::byte> bytes(elements / traits.block_elements * traits.block_bytes);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  const auto put_half = [&](size_t at, float value) {
    const uint16_t half = FloatToHalf(value);
    std::memcpy(bytes.data() + at, &half, 2);
  };
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random() & 255);
  for (size_t at = 0; at < bytes.size(); at += traits.block_bytes) {
    switch (type) {
      case GgmlType::kF32: {
        const float value = uniform(random);
        std::memcpy(bytes.data() + at, &value, 4);
        break;
      }
      case GgmlType::kF16:
        put_half(at, uniform(random));
        break;
      case GgmlType::kBF16: {
        const float value = uniform(random);
        std::memcpy(bytes.data() + at, reinterpret_cast<const std::byte*>(&value) + 2, 2);
        break;
      }
      case GgmlType::kQ4_0:
        put_half(at, uniform(random) / 8);
        break;
      case GgmlType::kQ5_0:
        put_half(at, uniform(random) / 16);
        break;
      case GgmlType::kQ8_0:
        put_half(at, uniform(random) / 128);
        break;
      case GgmlType::kQ4_1:
      case GgmlType::kQ5_1:
        put_half(at, uniform(random) / 16);
        put_half(at + 2, uniform(random));
        break;
      case GgmlType::kQ4_K:
      case GgmlType::kQ5_K:
        put_half(at, uniform(random) / 512);
        put_half(at + 2, uniform(random) / 64);
        break;
      case GgmlType::kQ6_K:
        put_half(at + 208, uniform(random) / 2048);
        break;
    }
  }
  return bytes;
}

// A random matrix, as the file stores it and as the kernels read it (`head`: one of the head's).
struct TestMatrix {
  TestMatrix(GgmlType t, int rows, int inputs, std::mt19937& random, bool head = false) : type(t) {
    raw = RandomTensor(t, static_cast<size_t>(rows) * static_cast<size_t>(inputs), random);
    packed.format = head ? PackedHeadFormatOf(t) : PackedFormatOf(t);
    packed.rows = rows;
    packed.inputs = inputs;
    // Anywhere: 7 and the inputs, a multiple of 32, have no factor in common.
    for (int i = 0; packed.format.split && i < kHeavyInputs; ++i) heavy.push_back(7 * i % inputs);
    packed.heavy = heavy.data();
    Pack();
  }

  void Pack() {
    memory.assign(packed.Bytes() + 64, 0);
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    packed.data = memory.data() + (64 - address % 64) % 64;
    for (int i = 0; i < packed.Panels(); ++i) PackPanel(type, raw.data(), packed, i);
  }

  GgmlType type;
  std::vector<std::byte> raw;
  std::vector<int32_t> heavy;
  std::vector<uint8_t> memory;
  PackedMatrix packed;
};

}  // namespace cogumi
