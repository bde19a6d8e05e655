// An engine out of parts that somebody else made: the way files become an engine, and the way tests
// put a model of their own under the real scheduler and step loop.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cogumi/engine.h"
#include "cogumi/options.h"
#include "engine/core/thread_pool.h"
#include "engine/model/model.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"

namespace cogumi {

struct EngineParts {
  std::unique_ptr<ThreadPool> pool;  // the model's; null when it has none
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;
  std::unique_ptr<Model> model;
  std::unique_ptr<Model> draft_model;  // on the same pool; null: nobody can choose it
  // Everything but the digest; context_length is filled in by the engine.
  ModelDescription description;
  // SHA-256 of the model file; called once, on a thread of its own, because it may take long.
  std::function<std::string()> digest;
  // Seeds for requests without one; thread-safe. Null: the system's random device.
  std::function<uint64_t()> seed;
};

// INVALID_ARGUMENT naming the option, its range and value.
absl::Status ValidateEngineOptions(const EngineOptions& options);

// What the model must be loaded with, so that it takes every step of such an engine.
ModelOptions ModelOptionsFor(const EngineOptions& options);
// The same for the draft model.
ModelOptions DraftModelOptionsFor(const EngineOptions& options);

// Context: options.context_length, or the model's own, and never more than the KV cache holds.
// Errors: INVALID_ARGUMENT (options), RESOURCE_EXHAUSTED (kv_bytes hold no page).
absl::StatusOr<std::unique_ptr<Engine>> CreateEngineFromParts(const EngineOptions& options,
                                                              EngineParts parts);

}  // namespace cogumi
