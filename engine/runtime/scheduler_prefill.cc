// Which rows of prompts a step holds, and who shares them.
#include <algorithm>
#include <iterator>
#include <utility>

#include "engine/runtime/scheduler.h"

namespace cogumi {
namespace {

// Whether two sequences begin with the same `length` tokens in the same roles.
bool BeginEqually(const Sequence& a, const Sequence& b, int32_t length) {
  return a.prefix_key == b.prefix_key &&
         std::equal(a.tokens.begin(), a.tokens.begin() + length, b.tokens.begin()) &&
         std::equal(a.roles.begin(), a.roles.begin() + length, b.roles.begin());
}

bool Fresh(const Sequence& sequence) {
  return !sequence.request.score && sequence.Generated() == 0;
}

}  // namespace

void Scheduler::PlanPrefill() {
  prompt_rows_ = 0;
  prefilling_.clear();
  for (const auto& sequence : running_) {
    if (sequence->Remaining() > 0) prefilling_.push_back(sequence.get());
  }
  if (prefilling_.empty()) return;
  if (options_.prefix_cache) ShareUnderWay();
  const int32_t others = plan_.Rows();
  int32_t budget = sizer_.Rows(others);
  int32_t score_budget = options_.extra_logit_rows - draft_rows_;
  // A tenant that decodes has its share of the step already: the prompts of those who do not go
  // first. A newcomer's prompt then has at least half of the time, see ChunkSizer.
  const auto new_here = [this, decoding = std::ssize(planned_)](const Sequence* sequence) {
    return std::none_of(
        planned_.begin(), planned_.begin() + decoding,
        [sequence](const Sequence* one) { return one->account == sequence->account; });
  };
  const std::span<Sequence*> all(prefilling_);
  for (size_t begin = 0, end = 0; begin < all.size() && budget > 0; begin = end) {
    while (end < all.size() && all[end]->request.priority == all[begin]->request.priority) ++end;
    const std::span<Sequence*> equals = all.subspan(begin, end - begin);
    const auto second = std::stable_partition(equals.begin(), equals.end(), new_here);
    for (const std::span<Sequence*> part :
         {std::span(equals.begin(), second), std::span(second, equals.end())}) {
      if (budget > 0) budget -= PlanTenants(part, budget, score_budget);
    }
  }
  prompt_rows_ = plan_.Rows() - others;
}

void Scheduler::ShareUnderWay() {
  size_t leaders = 0;
  for (size_t i = 0; i < prefilling_.size(); ++i) {
    Sequence& sequence = *prefilling_[i];
    const RequestHandle followed = std::exchange(sequence.leader, 0);
    if (followed != 0 && index_.Match(sequence.prefix_key, sequence.tokens, sequence.roles,
                                      sequence.Length() - 1) > sequence.kv.length) {
      const int32_t before = sequence.kv.length;
      TakePrefix(sequence);
      CountCached(sequence, sequence.kv.length - before);
    }
    if (Fresh(sequence)) ShareTwin(sequence);
    for (size_t j = 0; j < leaders && sequence.leader == 0; ++j) {
      if (!WaitsFor(sequence, *prefilling_[j])) continue;
      const int32_t length = prefilling_[j]->kv.length;
      // As long as the leader gets on; otherwise this one computes for itself.
      if (followed == prefilling_[j]->handle && sequence.leader_length == length) break;
      sequence.leader = prefilling_[j]->handle;
      sequence.leader_length = length;
    }
    if (sequence.leader == 0) prefilling_[leaders++] = &sequence;
  }
  prefilling_.resize(leaders);
}

// Of a prompt that another has computed to its end, only the last token is computed again. The page
// that it falls into is copied when it is written.
void Scheduler::ShareTwin(Sequence& sequence) {
  const int32_t shared = sequence.prompt_length - 1;
  if (sequence.kv.length % kKvPageTokens != 0 || sequence.kv.length >= shared) return;
  for (const auto& twin : running_) {
    if (twin.get() == &sequence || twin->request.score || twin->kv.length < shared ||
        twin->prompt_length != sequence.prompt_length ||
        !BeginEqually(sequence, *twin, sequence.prompt_length) ||
        !KvCache::CanResume(twin->kv.pages, shared, cache_->shape().format)) {
      continue;
    }
    CountCached(sequence, shared - sequence.kv.length);
    ReleasePages(sequence);
    sequence.kv = cache_->Share(twin->kv, shared);
    sequence.pin = index_.PinAlso(twin->pin, shared / kKvPageTokens);
    return;
  }
}

bool Scheduler::WaitsFor(const Sequence& sequence, const Sequence& leader) const {
  const int32_t start = sequence.kv.length;
  int32_t end = start + kKvPageTokens;  // of the page that is next
  if (sequence.request.score || leader.request.score || start % kKvPageTokens != 0 ||
      leader.kv.length < start || leader.kv.length >= end) {
    return false;
  }
  if (end >= sequence.Length() || end > leader.prompt_length) {
    // No full page that could be taken, but perhaps the whole prompt.
    if (!Fresh(sequence) || leader.prompt_length != sequence.prompt_length ||
        start >= sequence.prompt_length - 1) {
      return false;
    }
    end = sequence.prompt_length;
  }
  return BeginEqually(sequence, leader, end);
}

int32_t Scheduler::PlanTenants(std::span<Sequence*> sequences, int32_t budget,
                               int32_t& score_budget) {
  struct Share {
    TenantShares::Account* account = nullptr;
    std::vector<Sequence*> sequences;
    int32_t wanted = 0;
    int32_t given = 0;
  };
  std::vector<Share> shares;
  for (Sequence* sequence : sequences) {
    auto share = std::find_if(shares.begin(), shares.end(), [sequence](const Share& one) {
      return one.account == sequence->account;
    });
    if (share == shares.end()) {
      share = shares.insert(shares.end(), Share());
      share->account = sequence->account;
    }
    share->sequences.push_back(sequence);
    share->wanted += sequence->Remaining();
  }
  // Even shares. What one does not want is the others'; the odd rows go to who was given least.
  std::stable_sort(shares.begin(), shares.end(), [](const Share& a, const Share& b) {
    return a.account->prompt_rows < b.account->prompt_rows;
  });
  for (int32_t left = budget; left > 0;) {
    const auto hungry = std::count_if(shares.begin(), shares.end(), [](const Share& share) {
      return share.wanted > share.given;
    });
    if (hungry == 0) break;
    const int32_t each = std::max(1, left / static_cast<int32_t>(hungry));
    for (Share& share : shares) {
      const int32_t rows = std::min({each, share.wanted - share.given, left});
      share.given += rows;
      left -= rows;
    }
  }
  int32_t planned = 0;
  for (Share& share : shares) {
    if (share.given == 0) continue;
    const int32_t rows = PlanTenant(share.sequences, share.given, score_budget);
    share.account->prompt_rows += static_cast<uint64_t>(rows);
    planned += rows;
  }
  return planned;
}

int32_t Scheduler::PlanTenant(std::span<Sequence*> sequences, int32_t budget,
                              int32_t& score_budget) {
  // The first in order always gets half of the rows, so it ends; the shortest prompts share the
  // other half, so a short question does not wait for a long document.
  const Sequence* first = sequences.front();
  std::stable_sort(
      sequences.begin() + 1, sequences.end(),
      [](const Sequence* a, const Sequence* b) { return a->Remaining() < b->Remaining(); });
  int32_t wanted_by_others = 0;
  for (const Sequence* sequence : sequences.subspan(1)) wanted_by_others += sequence->Remaining();
  int32_t left = budget;
  for (Sequence* sequence : sequences) {
    const int32_t limit =
        sequence == first ? std::max((left + 1) / 2, left - wanted_by_others) : left;
    left -= PlanPrompt(*sequence, limit, score_budget);
    if (left == 0) break;
  }
  return budget - left;
}

int32_t Scheduler::PlanPrompt(Sequence& sequence, int32_t limit, int32_t& score_budget) {
  const int32_t remaining = sequence.Remaining();
  const int32_t start = sequence.kv.length;
  const int32_t wanted = start + std::min(remaining, limit);
  while (cache_->BytesNeeded(sequence.kv, wanted) > cache_->free_bytes() && index_.EvictOne()) {
  }
  int32_t rows = cache_->Reach(sequence.kv, wanted) - start;
  int32_t logits = rows == remaining ? 1 : 0;
  if (sequence.request.score) {
    // Rows that were described before a preemption are not described again.
    const int32_t done = static_cast<int32_t>(sequence.completion.prompt_logprobs.size());
    const int32_t silent = std::max(0, done - start);
    rows = std::min(rows, silent + score_budget);
    logits = std::max(0, rows - silent);
    score_budget -= logits;
  }
  if (rows == 0 || !cache_->Extend(sequence.kv, start + rows).ok()) return 0;
  AddRows(sequence, rows, logits);
  return rows;
}

}  // namespace cogumi
