#include "engine/decode/speculator.h"

#include <algorithm>
#include <utility>

namespace cogumi {
namespace {

// Drafts must promise this much more tokens per second: predictions are never exact, least of all
// those of a batch, where a row more costs nearly what it may yield.
constexpr double kMargin = 1.03;
constexpr double kBatchMargin = 1.05;
// The plain step that drafts are compared with must have been measured within so many steps, or is
// due after a few with drafts.
constexpr int64_t kPlainIsKnown = 256;
constexpr int64_t kUnknownPlainEvery = 8;
// A draft model that was not measured yet, in plain steps a pass.
constexpr double kPassGuess = 0.25;
// Steps until a draft model that lost is asked again; twice as many each time.
constexpr int64_t kFirstProbe = 64;
constexpr int64_t kLastProbe = 4096;
constexpr int32_t kProbeLength = 2;
// Tokens that a draft model reads in the time of a pass, until that was measured.
constexpr double kTokensPerPass = 6;
// Drafts that double the speed save half of the time that the rest of an answer takes.
constexpr double kMostSaved = 0.5;
// What one more measurement of reading counts.
constexpr double kNew = 0.3;

// Before anything was seen: by length of the match, and by position in a model's draft.
constexpr Acceptance::Prior kLookupPrior = {0.3f, 0.4f, 0.5f, 0.6f, 0.7f, 0.8f, 0.85f, 0.9f};
constexpr Acceptance::Prior kModelPrior = {0.6f, 0.6f, 0.6f, 0.6f, 0.6f, 0.6f, 0.6f, 0.6f};

}  // namespace

Speculator::Speculator(std::unique_ptr<Drafter> ngram, std::unique_ptr<Drafter> model,
                       const Clock* clock)
    : lookup_(std::move(ngram)),
      model_(std::move(model)),
      clock_(clock),
      lookup_chances_(kLookupPrior),
      model_chances_(kModelPrior),
      drafted_steps_(kUnknownPlainEvery),
      probe_after_(kFirstProbe) {}

bool Speculator::Has(Speculation drafter) const {
  return drafter == Speculation::kNgram ? lookup_ != nullptr
                                        : drafter == Speculation::kDraftModel && model_ != nullptr;
}

void Speculator::Speculate(std::span<DraftTarget> targets, int32_t most_rows) {
  sequences_ = static_cast<int32_t>(targets.size());
  if (targets.empty()) return;
  tokens_ = 0;
  may_ask_ = asked_ = read_much_ = false;
  for (const DraftTarget& target : targets) {
    may_ask_ = may_ask_ || target.drafter == Speculation::kDraftModel;
    if (target.drafter == Speculation::kOff) {
      ++tokens_;  // not observed
      continue;
    }
    State& state = states_[target.context.sequence];
    state.drafter = target.drafter;
    state.proposal.tokens.clear();
  }
  extras_.clear();
  draft_seconds_ = 0;
  ProposeByLookup(targets);
  AddModelExtras(targets, most_rows);
  lengths_.assign(targets.size(), 0);
  Choose(targets, most_rows);
  Probe(targets, most_rows);
  int32_t rows_left = most_rows;
  for (size_t i = 0; i < targets.size(); ++i) {
    if (targets[i].drafter != Speculation::kNgram || lengths_[i] == 0) continue;
    const std::vector<TokenId>& tokens = states_[targets[i].context.sequence].proposal.tokens;
    targets[i].draft->assign(tokens.begin(), tokens.begin() + lengths_[i]);
    rows_left -= lengths_[i];
  }
  ProposeByModel(targets, rows_left);
  drafted_ = std::any_of(targets.begin(), targets.end(),
                         [](const DraftTarget& target) { return !target.draft->empty(); });
}

void Speculator::ProposeByLookup(std::span<DraftTarget> targets) {
  orders_.clear();
  for (const DraftTarget& target : targets) {
    if (target.drafter != Speculation::kNgram) continue;
    // One token is looked up even when none is of use, so that the index keeps up.
    orders_.push_back({target.context, std::clamp(target.limit, 1, kMaxDraft),
                       &states_[target.context.sequence].proposal});
  }
  if (!orders_.empty()) lookup_->Propose(orders_);
  for (size_t i = 0; i < targets.size(); ++i) {
    if (targets[i].drafter != Speculation::kNgram) continue;
    const State& state = states_[targets[i].context.sequence];
    const int32_t length = static_cast<int32_t>(state.proposal.tokens.size());
    AddExtras(i, std::min(length, targets[i].limit), state, state.proposal.evidence);
  }
}

double Speculator::PassSeconds(int32_t sequences) const {
  return passes_.Known() ? passes_.Estimate(sequences) : kPassGuess * steps_.Estimate(sequences);
}

double Speculator::Price(int32_t behind, int32_t passes) const {
  if (!steps_.Known()) return 0;
  const double pass = PassSeconds(1);
  return behind * (token_seconds_ > 0 ? token_seconds_ : pass / kTokensPerPass) + passes * pass;
}

void Speculator::AddModelExtras(std::span<DraftTarget> targets, int32_t most_rows) {
  double reading = 0;
  for (size_t i = 0; i < targets.size(); ++i) {
    const DraftTarget& target = targets[i];
    if (target.drafter != Speculation::kDraftModel) continue;
    State& state = states_[target.context.sequence];
    state.behind = model_->Behind(target.context);
    const double own = Price(state.behind, 0);
    if (!allowance_.Covers(reading + own) ||
        own > SavedShare(state, most_rows) * PlainSeconds(target)) {
      continue;
    }
    reading += own;
    AddExtras(i, std::min(target.limit, kMaxDraft), state, 0);
  }
}

double Speculator::PlainSeconds(const DraftTarget& target) const {
  return steps_.Known() ? target.limit * steps_.Estimate(sequences_) / sequences_ : 0;
}

double Speculator::SavedShare(const State& state, int32_t most_rows) const {
  if (!passes_.Known()) return kMostSaved;
  const double plain = steps_.Estimate(sequences_);
  const double pass = PassSeconds(sequences_);
  double share = 0;
  double tokens = 1;
  double chance = 1;
  for (int32_t k = 1; k <= kMaxDraft && k * sequences_ <= most_rows; ++k) {
    chance *= static_cast<double>(model_chances_.Rate(state.counts, k - 1));
    tokens += chance;
    const double seconds = steps_.Estimate((1 + k) * sequences_) + k * pass;
    share = std::max(share, 1 - kMargin * seconds / (tokens * plain));
  }
  return std::min(share, kMostSaved);
}

void Speculator::AddExtras(size_t index, int32_t length, const State& state, int32_t evidence) {
  const Acceptance& chances = Chances(state.drafter);
  float chance = 1;
  for (int32_t position = 0; position < length; ++position) {
    chance *= chances.Rate(state.counts, evidence + position);
    extras_.push_back({chance, index, position});
  }
}

void Speculator::Choose(std::span<DraftTarget> targets, int32_t most_rows) {
  const int32_t plain = static_cast<int32_t>(targets.size());
  const bool known = steps_.Age(plain) <= kPlainIsKnown;
  const bool plain_is_due =
      !ledger_.Allows(plain) ||
      drafted_steps_ >= (known ? ledger_.PlainEvery(plain) : kUnknownPlainEvery);
  drafted_steps_ = plain_is_due || extras_.empty() ? 0 : drafted_steps_ + 1;
  if (drafted_steps_ == 0) return;
  // Chances fall within a sequence, so a token never comes before the one that it needs.
  std::stable_sort(extras_.begin(), extras_.end(),
                   [](const Extra& a, const Extra& b) { return a.chance > b.chance; });
  const double plain_seconds = steps_.Estimate(plain);
  int32_t by_model = 0;
  for (const Extra& extra : extras_) {
    by_model += extra.position == 0 && targets[extra.target].drafter == Speculation::kDraftModel;
  }
  const double pass = by_model == 0 ? 0 : PassSeconds(by_model);
  double best = (plain > 1 ? kBatchMargin : kMargin) * plain / plain_seconds;
  size_t chosen = 0;
  double tokens = plain;
  int32_t passes = 0;
  const size_t most = std::min(extras_.size(), static_cast<size_t>(std::max(0, most_rows)));
  for (size_t i = 0; i < most; ++i) {
    const Extra& extra = extras_[i];
    tokens += static_cast<double>(extra.chance);
    if (targets[extra.target].drafter == Speculation::kDraftModel) {
      passes = std::max(passes, extra.position + 1);
    }
    const int32_t rows = plain + static_cast<int32_t>(i) + 1;
    const double rate = tokens / (steps_.Estimate(rows) + passes * pass);
    if (rate > best) {
      best = rate;
      chosen = i + 1;
    }
  }
  for (size_t i = 0; i < chosen; ++i) ++lengths_[extras_[i].target];
  if (chosen == 0) drafted_steps_ = 0;
}

void Speculator::Probe(std::span<DraftTarget> targets, int32_t most_rows) {
  size_t nearest = targets.size();
  int32_t behind = 0;
  for (size_t i = 0; i < targets.size(); ++i) {
    if (targets[i].drafter != Speculation::kDraftModel) continue;
    if (lengths_[i] > 0) {
      unasked_ = 0;
      probe_after_ = kFirstProbe;
      return;
    }
    const int32_t tokens = states_[targets[i].context.sequence].behind;
    if (targets[i].limit > 0 && (nearest == targets.size() || tokens < behind)) {
      nearest = i;
      behind = tokens;
    }
  }
  if (nearest == targets.size()) return;
  const double cost = Price(behind, kProbeLength);
  if (++unasked_ < probe_after_ || !allowance_.Covers(cost) ||
      cost > kMostSaved * PlainSeconds(targets[nearest])) {
    return;
  }
  int32_t taken = 0;
  for (const int32_t length : lengths_) taken += length;
  lengths_[nearest] =
      std::clamp(most_rows - taken, 0, std::min(kProbeLength, targets[nearest].limit));
  unasked_ = 0;
  probe_after_ = std::min(2 * probe_after_, kLastProbe);
}

void Speculator::ProposeByModel(std::span<DraftTarget> targets, int32_t rows_left) {
  orders_.clear();
  for (size_t i = 0; i < targets.size(); ++i) {
    if (targets[i].drafter != Speculation::kDraftModel || lengths_[i] == 0) continue;
    const int32_t length = std::min(lengths_[i], rows_left);
    if (length < 1) break;
    rows_left -= length;
    orders_.push_back({targets[i].context, length, &states_[targets[i].context.sequence].proposal});
  }
  if (orders_.empty()) return;
  const double start = clock_->Now();
  const int32_t passes = model_->Propose(orders_);
  draft_seconds_ = clock_->Now() - start;
  asked_ = true;
  allowance_.Add(-draft_seconds_);
  if (passes > 0) {
    passes_.Observe(static_cast<int32_t>(orders_.size()), draft_seconds_ / passes);
  } else {
    ObserveReading();
  }
  for (const DraftTarget& target : targets) {
    if (target.drafter == Speculation::kDraftModel) {
      *target.draft = states_[target.context.sequence].proposal.tokens;
    }
  }
}

void Speculator::ObserveReading() {
  int32_t read = 0;
  for (const DraftOrder& order : orders_) {
    read += states_[order.context.sequence].behind - model_->Behind(order.context);
  }
  if (read <= 0 || draft_seconds_ <= 0) return;
  read_much_ = true;
  const double measured = draft_seconds_ / read;
  token_seconds_ += (token_seconds_ > 0 ? kNew : 1) * (measured - token_seconds_);
}

void Speculator::Observe(uint64_t sequence, std::span<const TokenId> chosen) {
  tokens_ += static_cast<int32_t>(chosen.size());
  const auto found = states_.find(sequence);
  if (found == states_.end()) return;
  State& state = found->second;
  const std::vector<TokenId>& proposed = state.proposal.tokens;
  for (size_t i = 0; i < std::min(proposed.size(), chosen.size()); ++i) {
    const bool accepted = proposed[i] == chosen[i];
    Chances(state.drafter)
        .Observe(state.counts, state.proposal.evidence + static_cast<int32_t>(i), accepted);
    if (!accepted) break;
  }
  state.proposal.tokens.clear();
}

void Speculator::ObserveStep(int32_t rows, double seconds) {
  steps_.Observe(rows, seconds);
  if (sequences_ > 0) Account(seconds);
  sequences_ = 0;
}

void Speculator::Account(double step_seconds) {
  const double plain_rate = ledger_.PlainRate(sequences_);
  if (asked_ && drafted_ && plain_rate > 0) {
    allowance_.Add(tokens_ / plain_rate - step_seconds);
  } else if (!asked_ && may_ask_) {
    allowance_.Grow(step_seconds);
  }
  // What was read once is of use to many steps: the allowance pays it, and such drafts are not
  // judged.
  if (read_much_ && drafted_) return;
  ledger_.Observe(sequences_, drafted_, tokens_, step_seconds + (read_much_ ? 0 : draft_seconds_));
}

void Speculator::Forget(uint64_t sequence) {
  if (states_.erase(sequence) == 0) return;
  if (lookup_ != nullptr) lookup_->Forget(sequence);
  if (model_ != nullptr) model_->Forget(sequence);
}

}  // namespace cogumi
