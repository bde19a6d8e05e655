// A drafter that knows what the fake model will say, and says it with a given chance a token.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "engine/decode/drafter.h"
#include "tests/unit/runtime/fake_parts.h"

namespace cogumi {

class OracleDrafter : public Drafter {
 public:
  OracleDrafter(double chance, uint64_t seed) : chance_(chance), random_(seed) {}

  int32_t Propose(std::span<DraftOrder> orders) override {
    for (DraftOrder& order : orders) {
      const DraftContext& context = order.context;
      order.draft->tokens.clear();
      order.draft->evidence = 10;
      uint64_t state = 0;
      for (size_t i = 0; i < context.tokens.size(); ++i) {
        state = FakeState(state, context.tokens[i], context.roles[i]);
      }
      TokenId last = context.tokens.back();
      Sampler sampler = *context.sampler;
      SamplerScratch scratch;
      const int32_t length =
          1 + static_cast<int32_t>(random_() % static_cast<uint64_t>(order.length));
      for (int32_t i = 0; i < length; ++i) {
        const std::vector<float> logits = FakeLogits(state, last);
        const int64_t position = static_cast<int64_t>(context.tokens.size()) + i;
        const auto info = sampler.Sample(logits.data(), Largest(logits), position, scratch);
        if (!info.ok()) break;
        last = info->id;
        if (static_cast<double>(random_() % 1000) >= chance_ * 1000) {
          // Wrong; at times a token after which the model breaks down.
          last = random_() % 4 == 0 ? kFakePoison
                                    : static_cast<TokenId>((last + 1) % (kFakePoison - 1));
        }
        sampler.Accept(last);
        order.draft->tokens.push_back(last);
        state = FakeState(state, last, TokenRole::kGenerated);
      }
    }
    return 0;
  }
  int32_t Behind(const DraftContext& /*context*/) const override { return 0; }
  void Forget(uint64_t /*sequence*/) override { ++forgotten_; }

  int forgotten() const { return forgotten_; }

 private:
  // All of a summary that choosing a token needs.
  static LogitSummary Largest(const std::vector<float>& logits) {
    LogitSummary summary;
    const auto largest = std::max_element(logits.begin(), logits.end());
    summary.max = *largest;
    summary.argmax = static_cast<TokenId>(largest - logits.begin());
    for (const float logit : logits) summary.finite = summary.finite && std::isfinite(logit);
    return summary;
  }

  const double chance_;
  std::mt19937_64 random_;
  int forgotten_ = 0;
};

}  // namespace cogumi
