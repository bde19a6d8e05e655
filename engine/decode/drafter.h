// Where drafts come from: tokens that may follow, cheap to guess, verified by the model afterwards.
// A wrong guess costs time, never correctness. Not thread-safe: owned by the step loop.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cogumi/types.h"
#include "engine/decode/sampler.h"
#include "engine/model/step_plan.h"

namespace cogumi {

inline constexpr int32_t kMaxDraft = 8;  // tokens drafted for a sequence in a step, at most

// A sequence that waits for its next token, borrowed for a call. Its tokens only grow from call to
// call; so a drafter learns from them what became of its last draft.
struct DraftContext {
  uint64_t sequence = 0;            // its name, the same until Forget
  std::span<const TokenId> tokens;  // prompt and answer; not empty
  std::span<const TokenRole> roles;  // of the tokens; those drafted are generated
  const Sampler* sampler = nullptr;  // the one that will choose the real tokens
};

struct Draft {
  std::vector<TokenId> tokens;
  // How much speaks for the first token; each further one has one more behind it. Only compared
  // with other drafts of the same drafter.
  int32_t evidence = 0;
};

// `draft` gets at most `length` tokens.
struct DraftOrder {
  DraftContext context;
  int32_t length = 0;
  Draft* draft = nullptr;
};

class Drafter {
 public:
  virtual ~Drafter() = default;

  // Fills the drafts of all orders; one stays empty when there is nothing to guess. Answers how
  // many passes of a model that took, 0 when their time says nothing about the next ones.
  virtual int32_t Propose(std::span<DraftOrder> orders) = 0;
  // Tokens to work through before the first one of a draft.
  virtual int32_t Behind(const DraftContext& context) const = 0;
  // The sequence has ended. Unknown ones are ignored.
  virtual void Forget(uint64_t sequence) = 0;
};

}  // namespace cogumi
