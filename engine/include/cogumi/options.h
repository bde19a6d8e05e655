// What an engine is made with.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "cogumi/types.h"

namespace cogumi {

class Clock;

// Inputs of matrix products; quantised with a scale per 32 of them.
enum class ActivationFormat {
  // 16 bits for generated tokens and the first kWidePositions of a prompt, 8 bits for the rest of
  // it: prompts are bound by arithmetic, where 8 bits are 1.5 times faster, generation by memory,
  // where 16 cost nothing. Adapters are held in 8 bits. The default.
  kMixed,
  kExact,  // 16 bits everywhere, adapters too
  kFast,   // 8 bits everywhere: less exact, also for short prompts
  kF32,    // float32 with the reference kernels: the ruler's arithmetic, slow
};

// A rule by absolute position, so that an answer does not depend on how its prompt was divided.
// Short prompts have the smallest margins: "The capital of France is" is decided by 0.08 logits,
// and 8 bits move differences by about 0.1.
inline constexpr int kWidePositions = 128;

inline constexpr struct {
  const char* name;
  ActivationFormat format;
} kActivationFormats[] = {{"mixed", ActivationFormat::kMixed},
                          {"exact", ActivationFormat::kExact},
                          {"fast", ActivationFormat::kFast},
                          {"f32", ActivationFormat::kF32}};

constexpr const char* NameOf(ActivationFormat format) {
  for (const auto& known : kActivationFormats) {
    if (known.format == format) return known.name;
  }
  return "";
}

// Of a name that was checked before; mixed for any other.
constexpr ActivationFormat ActivationFormatOf(std::string_view name) {
  for (const auto& known : kActivationFormats) {
    if (known.name == name) return known.format;
  }
  return ActivationFormat::kMixed;
}

// Of keys and values. The last two keep the first page and a window of 64-127 tokens as kInt8.
enum class KvFormat {
  kF16,
  kF32,
  kInt8,  // 8 bits, a scale per token and head
  kInt4,  // older pages: 4 bits, K per channel, V rotated and per token
  kK8V4,  // older pages: K 8 bits per channel, V as kInt4
};

// What options and kernel configurations call them.
inline constexpr struct {
  const char* name;
  KvFormat format;
} kKvFormats[] = {{"f16", KvFormat::kF16},
                  {"f32", KvFormat::kF32},
                  {"int8", KvFormat::kInt8},
                  {"int4", KvFormat::kInt4},
                  {"k8v4", KvFormat::kK8V4}};

constexpr const char* NameOf(KvFormat format) {
  for (const auto& known : kKvFormats) {
    if (known.format == format) return known.name;
  }
  return "";
}

// Of a name that was checked before; f16 for any other.
constexpr KvFormat KvFormatOf(std::string_view name) {
  for (const auto& known : kKvFormats) {
    if (known.name == name) return known.format;
  }
  return KvFormat::kF16;
}

// What the numbers below may be; the engine refuses others, and flags have the same ranges.
struct IntegerRange {
  int64_t low;
  int64_t high;
};
inline constexpr IntegerRange kThreadsRange = {0, 1024};
inline constexpr IntegerRange kContextLengthRange = {0, 1 << 24};
inline constexpr IntegerRange kKvBytesRange = {1, int64_t{1} << 46};
inline constexpr IntegerRange kAdapterBytesRange = {0, int64_t{1} << 46};
inline constexpr IntegerRange kMaxRunningRange = {1, 1024};
inline constexpr IntegerRange kMaxQueuedRange = {0, 1 << 20};
inline constexpr IntegerRange kPrefillChunkRange = {1, 8192};

struct EngineOptions {
  std::string model_path;
  std::string model_id;       // empty: the file's stem
  std::string chat_template;  // empty: by fingerprint of the model's own; else "chatml" | "llama3"
  int threads = 0;            // 0: one per core this process may run on
  // "reference", "avx2", "avx512vnni" or "avx512amx"; "": COGUMI_KERNELS, else the best of this
  // machine.
  std::string kernels;
  ActivationFormat activations = ActivationFormat::kMixed;
  KvFormat kv_format = KvFormat::kF16;
  int32_t context_length = 0;           // 0: the model's own
  int64_t kv_bytes = 512LL << 20;       // budget of the KV cache; address space until used
  int64_t adapter_bytes = 256LL << 20;  // budget of resident adapters; 0: none
  int32_t max_running = 32;             // sequences in a step
  int32_t max_queued = 128;             // beyond: RESOURCE_EXHAUSTED
  int32_t prefill_chunk = 256;          // prompt tokens in a step, at most
  // A step that computes prompts should take no longer, so that who waits or comes does not wait
  // longer: the chunk is made smaller, by measurement. 0: it is always prefill_chunk.
  double step_target_seconds = 0.05;
  // Between two chunks of an answer, at least, while steps take no longer: the tokens of meanwhile
  // come together. The first token and the end are told at once. 0: every token is.
  double stream_interval_seconds = 0;
  bool prefix_cache = true;  // keep computed prompts and answers for requests that go on
  // Of requests that do not choose; kOff refuses those that do. With kDraftModel n-gram lookup can
  // be chosen too.
  Speculation speculation = Speculation::kNgram;
  std::string draft_model_path;          // GGUF with the same vocabulary; for kDraftModel only
  int64_t draft_kv_bytes = 128LL << 20;  // budget of the draft model's own KV cache
  double watchdog_seconds = 5;           // a step longer than this makes the engine unhealthy
  const Clock* clock = nullptr;          // null: the real one
};

}  // namespace cogumi
