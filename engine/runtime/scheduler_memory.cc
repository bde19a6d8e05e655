// Who has a place and pages: admission, preemption, and what the prefix index gives and keeps.
#include <algorithm>
#include <utility>

#include "engine/runtime/scheduler.h"

namespace cogumi {

void Scheduler::Preempt(size_t index) {
  std::unique_ptr<Sequence> sequence = std::move(running_[index]);
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(index));
  // If its pages are not needed after all, they are still there when it comes back.
  Remember(*sequence, true);
  ReleasePages(*sequence);
  Tell(*sequence);
  sequence->draft.clear();
  sequence->preempted = true;
  sequence->leader = 0;
  ++stats_.preemptions;
  InsertInOrder(waiting_, std::move(sequence));
}

int32_t Scheduler::RunningOf(const TenantShares::Account* account) const {
  return static_cast<int32_t>(
      std::count_if(running_.begin(), running_.end(),
                    [account](const auto& sequence) { return sequence->account == account; }));
}

size_t Scheduler::Victim(const Sequence* next) const {
  size_t victim = running_.size();
  int32_t most = 0;
  for (size_t i = running_.size(); i-- > 0;) {  // lowest priority and latest arrival first
    const Sequence& sequence = *running_[i];
    const int32_t priority = sequence.request.priority;
    if (most > 0 && priority > running_[victim]->request.priority) break;
    if (next != nullptr) {
      if (priority > next->request.priority) break;
      const bool served_less = sequence.account->served < next->account->served;
      if (priority == next->request.priority && served_less) continue;
    }
    const int32_t running = RunningOf(sequence.account);
    if (running <= most) continue;
    // One place that others of its tenant wait for goes to each newcomer once, so that two tenants
    // do not take it from each other at every token.
    const bool crowded = sequence.account->requests > 1;
    const bool spare = next == nullptr || running > 1 || (crowded && !next->admitted.has_value());
    if (!spare) continue;
    victim = i;
    most = running;
  }
  return victim;
}

size_t Scheduler::NextWaiting() const {
  size_t best = 0;
  for (size_t i = 1; i < waiting_.size(); ++i) {
    const Sequence& a = *waiting_[i];
    const Sequence& b = *waiting_[best];
    if (a.request.priority != b.request.priority) break;
    if (a.account == b.account || a.account->served > b.account->served) continue;
    const int32_t more = RunningOf(a.account) - RunningOf(b.account);
    // What gave way for a newcomer does not come before it.
    const bool gave_way = b.preempted && !a.admitted.has_value();
    if (a.account->served < b.account->served || more < 0 || (more == 0 && gave_way)) best = i;
  }
  return best;
}

void Scheduler::PreemptForNext() {
  if (waiting_.empty()) return;
  Sequence& next = *waiting_[NextWaiting()];
  if (RunningOf(next.account) > 0) return;
  for (;;) {
    int64_t promised = Promised();
    if (running_.size() < static_cast<size_t>(options_.max_running) && TakePages(next, promised)) {
      ReleasePages(next);  // until Admit, a moment later
      return;
    }
    const size_t victim = Victim(&next);
    if (victim == running_.size()) return;
    Preempt(victim);
  }
}

void Scheduler::PreemptForDecoding() {
  for (;;) {
    int64_t needed = 0;
    for (const auto& sequence : running_) {
      if (sequence->request.score || sequence->Remaining() != 1) continue;
      needed += cache_->BytesNeeded(sequence->kv, sequence->kv.length + 1);
    }
    if (needed <= RoomBytes()) return;
    if (running_.size() == 1) {
      index_.Unpin(running_[0]->pin);  // alone it fits, so it is what is remembered that does not
      return;
    }
    Preempt(Victim(nullptr));
  }
}

int64_t Scheduler::Promised() const {
  int64_t promised = 0;
  for (const auto& sequence : running_) {
    promised += std::max<int64_t>(
        0, cache_->BytesFor(sequence->Length()) - cache_->BytesFor(sequence->kv.length));
  }
  return promised;
}

bool Scheduler::TakePages(Sequence& sequence, int64_t& promised) {
  TakePrefix(sequence);
  const int64_t bytes =
      cache_->BytesFor(sequence.Length()) - cache_->BytesFor(sequence.kv.length);
  // A page more, so that it does not run out at its first tokens.
  if (!running_.empty() && RoomBytes() - promised < bytes + cache_->wide().block_bytes()) {
    ReleasePages(sequence);
    return false;
  }
  promised += bytes;
  return true;
}

void Scheduler::Admit(double now) {
  // Bytes that running sequences will still take for tokens they already have.
  int64_t promised = Promised();
  while (!waiting_.empty() && running_.size() < static_cast<size_t>(options_.max_running)) {
    const size_t index = NextWaiting();
    if (!TakePages(*waiting_[index], promised)) break;
    std::unique_ptr<Sequence> next = std::move(waiting_[index]);
    waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(index));
    if (!next->admitted.has_value()) {
      next->admitted = now;
      if (options_.prefix_cache && !next->request.score) {
        stats_.prefix_queries += static_cast<uint64_t>(next->prompt_length);
      }
      CountCached(*next, next->kv.length);
      next->account->served += static_cast<uint64_t>(next->prompt_length - next->kv.length);
    }
    if (next->ScoreDone()) {  // a text of one token
      End(*next, absl::OkStatus(), now);
      continue;
    }
    InsertInOrder(running_, std::move(next));
  }
}

void Scheduler::TakePrefix(Sequence& sequence) {
  // A scored text needs the logits of every row.
  if (!options_.prefix_cache || sequence.request.score) return;
  // One row at least is computed: the next token is chosen from its logits.
  index_.Take(sequence.prefix_key, sequence.tokens, sequence.roles, sequence.Length() - 1,
              sequence.kv, sequence.pin);
}

void Scheduler::CountCached(Sequence& sequence, int32_t tokens) {
  if (sequence.preempted) return;  // what it computed itself before
  sequence.completion.usage.cached_tokens += tokens;
  stats_.prefix_hits += static_cast<uint64_t>(tokens);
}

void Scheduler::Remember(Sequence& sequence, bool resumable) {
  if (!options_.prefix_cache || sequence.request.score) return;
  index_.Insert(sequence.prefix_key, sequence.tokens, sequence.roles, resumable, sequence.kv,
                sequence.pin);
}

void Scheduler::ReleasePages(Sequence& sequence) {
  index_.Unpin(sequence.pin);
  cache_->Release(sequence.kv);
}

bool Scheduler::RelieveStall() {
  if (running_.size() > 1) {
    Preempt(Victim(nullptr));
    return true;
  }
  if (running_.empty() || !running_[0]->pin.held()) return false;
  index_.Unpin(running_[0]->pin);
  return true;
}

}  // namespace cogumi
