// Decides what is drafted in a step: by whom, for which sequences, how many tokens.
//
// Every further row of a step is worth the chance that its token is accepted, and costs what the
// curve of measured step times says. Rows are taken in order of their chance, as long as the
// tokens per second that may be expected grow. So drafts are long where text is copied, short where
// guesses are poor, and there are none when all they do is cost time, as in a large batch. A ledger
// of what they really yielded has the last word, and what a draft model may lose is bounded.
//
// Being off costs nothing and is not for ever: n-gram drafts are compared with what comes even when
// they were not verified; a draft model is asked again rarely; old measurements are not believed.
// Deterministic given its inputs: clock, texts and step times. Not thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "cogumi/types.h"
#include "engine/core/clock.h"
#include "engine/decode/acceptance.h"
#include "engine/decode/cost_curve.h"
#include "engine/decode/draft_allowance.h"
#include "engine/decode/draft_ledger.h"
#include "engine/decode/drafter.h"

namespace cogumi {

// A sequence that takes its next token in the step to come. Without a draft it has one row.
struct DraftTarget {
  DraftContext context;
  Speculation drafter = Speculation::kOff;
  int32_t limit = 0;                      // tokens that are of use at most, in all steps to come
  std::vector<TokenId>* draft = nullptr;  // empty before
};

class Speculator {
 public:
  // `model` may be null; the clock measures its drafts and must outlive the speculator.
  Speculator(std::unique_ptr<Drafter> ngram, std::unique_ptr<Drafter> model, const Clock* clock);

  bool Has(Speculation drafter) const;

  // Fills the drafts, of `most_rows` tokens together at most. Called before each step; without
  // targets where none of its sequences drafts.
  void Speculate(std::span<DraftTarget> targets, int32_t most_rows);
  // What the sequence's rows of the step chose, in order, up to the first that was not the draft's.
  void Observe(uint64_t sequence, std::span<const TokenId> chosen);
  // The step, of `rows` rows that all generate, took so long; after what its sequences chose.
  void ObserveStep(int32_t rows, double seconds);
  void Forget(uint64_t sequence);

 private:
  struct State {
    Speculation drafter = Speculation::kOff;
    AcceptanceCounts counts;
    Draft proposal;      // of this step; what was verified is a beginning of it
    int32_t behind = 0;  // tokens that the draft model had to read before this step
  };
  // A drafted token that may be verified: a row more in the step.
  struct Extra {
    float chance = 0;  // of it and all before it
    size_t target = 0;
    int32_t position = 0;
  };

  void ProposeByLookup(std::span<DraftTarget> targets);
  void ProposeByModel(std::span<DraftTarget> targets, int32_t rows_left);
  void AddExtras(size_t index, int32_t length, const State& state, int32_t evidence);
  // For the sequences that the draft model may work for: what it is behind can be paid and will
  // come back.
  void AddModelExtras(std::span<DraftTarget> targets, int32_t most_rows);
  // How many tokens to draft for each target, into lengths_.
  void Choose(std::span<DraftTarget> targets, int32_t most_rows);
  void Probe(std::span<DraftTarget> targets, int32_t most_rows);
  // Of the draft model, for so many sequences; only good for comparison until steps were measured.
  double PassSeconds(int32_t sequences) const;
  // Of reading so many tokens and of passes for one sequence; 0 until steps were measured.
  double Price(int32_t behind, int32_t passes) const;
  // Of the rest of an answer without drafts; 0 until steps were measured.
  double PlainSeconds(const DraftTarget& target) const;
  // How much of it the draft model may save if it drafts for all sequences.
  double SavedShare(const State& state, int32_t most_rows) const;
  // The draft model has mostly read.
  void ObserveReading();
  // Who yielded and saved what in the step.
  void Account(double step_seconds);
  Acceptance& Chances(Speculation drafter) {
    return drafter == Speculation::kNgram ? lookup_chances_ : model_chances_;
  }

  const std::unique_ptr<Drafter> lookup_;
  const std::unique_ptr<Drafter> model_;
  const Clock* const clock_;
  Acceptance lookup_chances_;
  Acceptance model_chances_;
  CostCurve steps_;
  CostCurve passes_;          // of the draft model, by sequences
  double token_seconds_ = 0;  // to read one more token of a prompt; 0: not measured yet
  DraftLedger ledger_;
  DraftAllowance allowance_;

  std::unordered_map<uint64_t, State> states_;
  int64_t drafted_steps_;  // in a row
  int64_t unasked_ = 0;    // steps in which the draft model was not asked, in a row
  int64_t probe_after_;

  // Of a call of Speculate.
  std::vector<DraftOrder> orders_;
  std::vector<Extra> extras_;
  std::vector<int32_t> lengths_;  // by target
  int32_t sequences_ = 0;
  bool drafted_ = false;
  bool may_ask_ = false;    // there are sequences for the draft model
  bool asked_ = false;      // it worked
  bool read_much_ = false;  // it was mostly busy with what it was behind
  double draft_seconds_ = 0;
  // Since then.
  int32_t tokens_ = 0;
};

}  // namespace cogumi
