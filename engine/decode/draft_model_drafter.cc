#include "engine/decode/draft_model_drafter.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace cogumi {
namespace {

// More rows than this for a sequence are no ordinary pass: after a draft that was accepted in full
// there are two.
constexpr int32_t kOrdinaryRows = kMaxDraft + 1;

}  // namespace

absl::StatusOr<std::unique_ptr<DraftModelDrafter>> DraftModelDrafter::Create(
    std::unique_ptr<Model> model, int64_t kv_bytes, int32_t chunk) {
  absl::StatusOr<std::unique_ptr<KvCache>> cache = KvCache::Create(model->kv_shape(), kv_bytes);
  if (!cache.ok()) {
    const std::string reason(cache.status().message().data(), cache.status().message().size());
    return absl::Status(cache.status().code(), absl::StrCat("draft_", reason));
  }
  return std::unique_ptr<DraftModelDrafter>(
      new DraftModelDrafter(std::move(model), *std::move(cache), chunk));
}

DraftModelDrafter::DraftModelDrafter(std::unique_ptr<Model> model, std::unique_ptr<KvCache> cache,
                                     int32_t chunk)
    : model_(std::move(model)), cache_(std::move(cache)), chunk_(chunk) {}

int32_t DraftModelDrafter::Common(const State& state, const DraftContext& context) const {
  const auto end = std::mismatch(state.tokens.begin(), state.tokens.end(), context.tokens.begin(),
                                 context.tokens.end());
  // The last token is computed again when need be: its logits are what a draft begins with.
  return std::min(static_cast<int32_t>(end.first - state.tokens.begin()),
                  static_cast<int32_t>(context.tokens.size()) - 1);
}

int32_t DraftModelDrafter::Behind(const DraftContext& context) const {
  const auto found = states_.find(context.sequence);
  const int32_t length = static_cast<int32_t>(context.tokens.size());
  return length - 1 - (found == states_.end() ? 0 : Common(found->second, context));
}

void DraftModelDrafter::Forget(uint64_t sequence) {
  const auto found = states_.find(sequence);
  if (found == states_.end()) return;
  cache_->Release(found->second.kv);
  states_.erase(found);
}

int32_t DraftModelDrafter::Propose(std::span<DraftOrder> orders) {
  ++calls_;
  active_.clear();
  plan_ = {};
  int32_t rows_left = chunk_;
  int32_t rows_before = 0;
  bool ordinary = true;
  for (DraftOrder& order : orders) {
    order.draft->tokens.clear();
    order.draft->evidence = 0;
    if (order.length < 1 || !Begin(order, rows_left)) continue;
    ordinary = ordinary && plan_.Rows() - rows_before <= kOrdinaryRows;
    rows_before = plan_.Rows();
  }
  int32_t passes = 0;
  while (!active_.empty() && Pass()) {
    ++passes;
    std::erase_if(active_, [](const Active& active) {
      return !active.drafts ||
             static_cast<int32_t>(active.order->draft->tokens.size()) >= active.order->length;
    });
    plan_ = {};
    for (Active& active : active_) {
      const TokenId token = active.order->draft->tokens.back();
      if (!Extend(*active.state, active.state->kv.length + 1)) {
        active.drafts = false;
        continue;
      }
      AddRow(*active.order, *active.state, token);
      WantLogits(*active.order);
    }
    std::erase_if(active_, [](const Active& active) { return !active.drafts; });
  }
  return ordinary ? passes : 0;
}

bool DraftModelDrafter::Begin(DraftOrder& order, int32_t& rows_left) {
  const DraftContext& context = order.context;
  const int32_t length = static_cast<int32_t>(context.tokens.size());
  // The last drafted token is never computed.
  const int32_t room = model_->config().context_length - length + 1;
  order.length = std::min(order.length, room);
  if (order.length < 1 || rows_left < 1) return false;
  State& state = states_[context.sequence];
  state.used = calls_;
  const int32_t common = Common(state, context);
  cache_->Truncate(state.kv, common);
  cache_->Commit(state.kv, common);
  state.tokens.resize(static_cast<size_t>(common));
  const int32_t rows = std::min(length - common, rows_left);
  if (!Extend(state, common + rows)) return false;
  rows_left -= rows;
  const bool drafts = common + rows == length;
  for (int32_t i = common; i < common + rows; ++i) {
    AddRow(order, state, context.tokens[static_cast<size_t>(i)]);
  }
  if (drafts) WantLogits(order);
  active_.push_back({&order, &state, drafts});
  return true;
}

bool DraftModelDrafter::Extend(State& state, int32_t length) {
  while (!cache_->Extend(state.kv, length).ok()) {
    State* oldest = nullptr;
    for (auto& [sequence, other] : states_) {
      if (other.used == calls_ || other.kv.length == 0) continue;
      if (oldest == nullptr || other.used < oldest->used) oldest = &other;
    }
    if (oldest == nullptr) return false;
    cache_->Release(oldest->kv);
    oldest->tokens.clear();
  }
  return true;
}

void DraftModelDrafter::AddRow(const DraftOrder& order, State& state, TokenId token) {
  const int32_t position = static_cast<int32_t>(state.tokens.size());
  if (plan_.sequences.empty() || plan_.sequences.back().pages != &state.kv.pages) {
    StepSequence sequence;
    sequence.pages = &state.kv.pages;
    sequence.first_row = plan_.Rows();
    sequence.first_position = position;
    plan_.sequences.push_back(sequence);
  }
  ++plan_.sequences.back().rows;
  plan_.tokens.push_back(token);
  const std::span<const TokenRole> roles = order.context.roles;
  const size_t index = static_cast<size_t>(position);
  plan_.roles.push_back(index < roles.size() ? roles[index] : TokenRole::kGenerated);
  state.tokens.push_back(token);
}

void DraftModelDrafter::WantLogits(const DraftOrder& order) {
  plan_.logit_rows.push_back(plan_.Rows() - 1);
  plan_.logit_needs.push_back(order.context.sampler->choice_need());
}

bool DraftModelDrafter::Pass() {
  if (!model_->Forward(plan_, *cache_).ok()) {
    // Nothing of it can be relied on.
    for (const Active& active : active_) {
      cache_->Release(active.state->kv);
      active.state->tokens.clear();
    }
    return false;
  }
  scratch_.vocabulary = &model_->kernels().vocabulary;
  int32_t row = 0;
  for (Active& active : active_) {
    if (!active.drafts) continue;
    std::vector<TokenId>& draft = active.order->draft->tokens;
    const int64_t position = static_cast<int64_t>(active.order->context.tokens.size()) +
                             static_cast<int64_t>(draft.size());
    const absl::StatusOr<TokenInfo> info = active.order->context.sampler->Sample(
        model_->Logits(row), model_->Summary(row), position, scratch_);
    ++row;
    if (info.ok()) {
      draft.push_back(info->id);
    } else {  // not finite: such a model has nothing to say
      active.drafts = false;
    }
  }
  return true;
}

}  // namespace cogumi
