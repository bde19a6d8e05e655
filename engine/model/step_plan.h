// What one step computes: built by the scheduler, executed by the model. Plain data.
#pragma once

#include <cstdint>
#include <vector>

#include "cogumi/types.h"
#include "engine/memory/kv_cache.h"

namespace cogumi {

// A sequence contributes rows [first_row, first_row + rows) at consecutive positions. Its pages
// already have room for them. Any of its rows may ask for logits.
struct StepSequence {
  const std::vector<KvPage>* pages = nullptr;  // borrowed until the step ends
  int32_t first_row = 0;
  int32_t rows = 0;
  int32_t first_position = 0;
  // Index into the model's AdapterTable, of an adapter that is held until the step ends; -1: none.
  int32_t adapter = -1;
};

// What of a row's logits is wanted.
enum class LogitNeed : uint8_t {
  kAll,
  // The largest and its token: these as with kAll. The others are no larger; they and what a
  // summary says of them (second, log_sum_exp, entropy) may be estimates, depending on the rest of
  // the step.
  kTop,
};

struct StepPlan {
  std::vector<TokenId> tokens;          // [rows]
  std::vector<TokenRole> roles;         // [rows]
  std::vector<StepSequence> sequences;  // in row order, covering all rows
  std::vector<int32_t> logit_rows;      // ascending row indices whose logits are wanted
  std::vector<LogitNeed> logit_needs;   // [logit_rows]; empty: all of all

  int32_t Rows() const { return static_cast<int32_t>(tokens.size()); }
};

}  // namespace cogumi
