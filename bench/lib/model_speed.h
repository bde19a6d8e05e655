// How fast a model computes: the rows that peers' benchmarks show, measured the same way.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/core/thread_pool.h"
#include "engine/memory/kv_cache.h"
#include "engine/model/model.h"

namespace cogumi::bench {

// `depth` tokens of prompt a sequence that are not timed; then `steps` timed steps of
// `rows` tokens for each of `sequences`.
struct SpeedTest {
  std::string name;
  int32_t sequences = 1;
  int32_t depth = 0;
  int32_t steps = 1;
  int32_t rows = 1;
  TokenRole role = TokenRole::kGenerated;
  bool all_logits = true;  // else of the last row only, as a prompt needs

  int64_t Tokens() const { return int64_t{sequences} * steps * rows; }
};

// The known tests: decode, prefill, five, batch8, batch32, depth4096, streams1024.
const std::vector<SpeedTest>& KnownTests();

// Measures one model; keeps its cache between tests. The model must outlive it.
class SpeedRunner {
 public:
  // `text`: what all sequences read, over and over; empty: any tokens. RESOURCE_EXHAUSTED when the
  // cache for the largest of the tests cannot be had.
  static absl::StatusOr<std::unique_ptr<SpeedRunner>> Create(Model* model, int32_t chunk,
                                                             const std::vector<SpeedTest>& tests,
                                                             std::vector<TokenId> text);

  // Seconds of the timed steps. A prompt longer than the chunk is divided.
  absl::StatusOr<double> Measure(const SpeedTest& test);

  // Bytes that one sequence keeps in the cache halfway through the test, in whole pages.
  int64_t KvBytes(const SpeedTest& test) const;

 private:
  SpeedRunner(Model* model, int32_t chunk, std::vector<TokenId> text)
      : model_(model), chunk_(chunk), text_(std::move(text)) {}
  absl::Status Step(std::vector<KvSequence>& sequences, size_t first, size_t count, int32_t rows,
                    TokenRole role, bool all_logits);
  absl::Status Prompt(std::vector<KvSequence>& sequences, size_t index, int32_t tokens);
  // At a place of a sequence.
  TokenId NextToken(size_t sequence, int32_t position);

  Model* model_;
  const int32_t chunk_;
  const std::vector<TokenId> text_;
  std::unique_ptr<KvCache> cache_;
  uint64_t random_ = 1;
};

}  // namespace cogumi::bench
