// The engine: a model, its tokenizer and a continuous-batching step loop behind one small
// interface. Thread-safe. One owner thread runs the steps; callers only enqueue and receive.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cogumi/options.h"
#include "cogumi/types.h"

namespace cogumi {

// Where an answer goes. Called on the step thread, one call at a time, never after OnFinished:
// implementations hand over and return at once.
class ResponseSink {
 public:
  virtual ~ResponseSink() = default;
  virtual void OnChunk(Chunk chunk) = 0;
  // Exactly once. On success `completion` is complete; on an error it holds what was reached.
  // Errors: CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE (shutdown), INTERNAL (NaN logits).
  virtual void OnFinished(absl::Status status, Completion completion) = 0;
};

// Keeps a resident adapter in memory. Leases may outlive the engine.
struct ResidentAdapter;
using AdapterLease = std::shared_ptr<const ResidentAdapter>;

struct GenerationRequest {
  std::string request_id;
  std::string tenant;
  int32_t priority = 0;          // -100..100, higher first
  double deadline = 0;           // Clock::Now() seconds; 0: none
  std::vector<TokenId> tokens;   // the prompt, 1..context-1 tokens
  std::vector<TokenRole> roles;  // of the tokens, as Tokenize gives them; empty: all kPrompt
  std::string template_digest;   // goes into the receipt
  std::string adapter;           // digest of a resident adapter; empty: the base alone
  AdapterLease adapter_lease;    // of it, so that it is found even when it was unloaded meanwhile
  SamplingParams sampling;
  Speculation speculation = Speculation::kDefault;
  bool score = false;  // only log-probabilities of the prompt; nothing is generated
};

using RequestHandle = uint64_t;

// Blocks of the KV cache in one precision, for example "int8" or "int4", that hold something.
struct KvUsage {
  std::string precision;
  int32_t blocks = 0;
  int64_t bytes = 0;
};

// A consistent snapshot of the gauges and counters; counters only grow.
struct EngineStats {
  int32_t running = 0;
  int32_t queued = 0;
  // Bytes of the cache in pages as new tokens fill them; older pages take less in some formats.
  int32_t kv_pages = 0;
  int32_t kv_pages_used = 0;    // by sequences
  int32_t kv_pages_cached = 0;  // only remembered: free when somebody needs them
  int32_t kv_pages_free = 0;
  int64_t kv_tokens = 0;  // of the longest sequence that the budget holds alone
  int64_t kv_bytes = 0;   // the budget
  int64_t kv_bytes_used = 0;
  int64_t kv_bytes_cached = 0;
  std::vector<KvUsage> kv_blocks;  // used and remembered ones, by precision
  uint64_t steps = 0;
  uint64_t step_rows = 0;
  uint64_t prompt_tokens = 0;  // computed for the first time, or found in the prefix cache
  uint64_t generated_tokens = 0;
  uint64_t finished_stop = 0;
  uint64_t finished_length = 0;
  uint64_t cancelled = 0;
  uint64_t deadline_exceeded = 0;
  uint64_t rejected = 0;
  uint64_t failed = 0;
  uint64_t preemptions = 0;
  uint64_t prefix_queries = 0;    // prompt tokens looked for in the prefix cache
  uint64_t prefix_hits = 0;       // prompt tokens found there
  uint64_t prefix_evictions = 0;  // pages
  double step_seconds = 0;        // total time in steps
  uint64_t drafts = 0;            // verified, one a sequence and step
  uint64_t drafted_tokens = 0;
  uint64_t accepted_tokens = 0;
  std::vector<uint64_t> accepted_per_position;  // of the draft, from its first token on
};

struct TokenizedPrompt {
  std::vector<TokenId> tokens;
  // As many as tokens: kGenerated in the assistant's messages of a conversation, so that they are
  // computed as they were when the model said them.
  std::vector<TokenRole> roles;
  int32_t dropped_bytes = 0;    // bytes the vocabulary cannot encode
  std::string template_digest;  // of chat prompts
};

class Engine {
 public:
  // Errors: NOT_FOUND (no file), INVALID_ARGUMENT (malformed file or option, naming it),
  // UNIMPLEMENTED (architecture, tensor type or tokenizer by name), RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineOptions& options);
  virtual ~Engine() = default;

  // Text as it is, or messages rendered with the chat template (a default system message is put
  // first when the template has one and the messages have none). Token prompts are range-checked.
  // A text gets the beginning-of-sequence token in front when the model's tokenizer asks for one
  // and it does not begin with it already; templates write their own.
  virtual absl::StatusOr<TokenizedPrompt> Tokenize(const Prompt& prompt) const = 0;
  // The bytes of tokens as they are. INVALID_ARGUMENT for an id outside the vocabulary.
  virtual absl::StatusOr<std::string> Detokenize(const std::vector<TokenId>& tokens,
                                                 bool special) const = 0;

  // Checks the request and queues it. Errors: INVALID_ARGUMENT naming the field, OUT_OF_RANGE
  // (context overflow, naming both numbers), NOT_FOUND (the adapter is not resident),
  // FAILED_PRECONDITION (a drafter that is not here), RESOURCE_EXHAUSTED (queue full), UNAVAILABLE
  // (draining). On an error the sink is never called.
  virtual absl::StatusOr<RequestHandle> Submit(GenerationRequest request,
                                               std::shared_ptr<ResponseSink> sink) = 0;
  // Ends a request with CANCELLED before the step after next; unknown handles are ignored.
  virtual void Cancel(RequestHandle handle) = 0;

  // Makes an adapter resident under its digest, which is the caller's to verify. While the lease
  // lives, it stays. Errors: INVALID_ARGUMENT naming file, tensor or option; RESOURCE_EXHAUSTED
  // (EngineOptions::adapter_bytes, naming the numbers). Takes milliseconds: a step is not delayed.
  virtual absl::StatusOr<AdapterLease> LoadAdapter(const std::string& digest,
                                                   const AdapterFiles& files) = 0;
  // Null when it is not resident.
  virtual AdapterLease FindAdapter(const std::string& digest) = 0;
  // Requests that use it finish with it; new ones no longer find it.
  virtual void UnloadAdapter(const std::string& digest) = 0;
  virtual std::vector<AdapterInfo> Adapters() const = 0;
  virtual AdapterStats AdapterUse() const = 0;

  virtual EngineStats Stats() const = 0;
  // Model().id, without any wait.
  virtual const std::string& ModelId() const = 0;
  // The first call may wait: the file's digest is computed in the background after Create (about a
  // second per gigabyte). Answers that end before wait for it too; nothing else does.
  virtual const ModelDescription& Model() const = 0;
  // kernel_digest and kernel_configuration filled, for ModelInfo.
  virtual const Receipt& Configuration() const = 0;
  // False once a step has taken longer than the watchdog allows, until it ends.
  virtual bool Healthy() const = 0;

  // Refuses new requests from now on; running and queued ones finish.
  virtual void Drain() = 0;
};

}  // namespace cogumi
