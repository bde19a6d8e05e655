// What an engine is made with.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace cogumi {

class Clock;

enum class ActivationFormat {
  kInt16,  // 16 bits, a scale per 32 inputs: the default
  kInt8,   // 8 bits, a scale per 32 inputs: faster where arithmetic binds, less exact
  kF32,    // float32 with the reference kernels: the ruler's arithmetic, slow
};

enum class KvFormat { kF16, kF32 };

struct EngineOptions {
  std::string model_path;
  std::string model_id;       // empty: the file's stem
  std::string chat_template;  // empty: by fingerprint of the model's own; else "chatml" | "llama3"
  int threads = 0;            // 0: one per core this process may run on
  // "reference", "avx2" or "avx512vnni"; "": COGUMI_KERNELS, else the best of this machine.
  std::string kernels;
  ActivationFormat activations = ActivationFormat::kInt16;
  KvFormat kv_format = KvFormat::kF16;
  int32_t context_length = 0;      // 0: the model's own
  int64_t kv_bytes = 512LL << 20;  // budget of the KV cache; address space until used
  int32_t max_running = 32;        // sequences in a step
  int32_t max_queued = 128;        // beyond: RESOURCE_EXHAUSTED
  int32_t prefill_chunk = 256;     // prompt tokens in a step, at most
  double watchdog_seconds = 5;     // a step longer than this makes the engine unhealthy
  const Clock* clock = nullptr;    // null: the real one
};

}  // namespace cogumi
