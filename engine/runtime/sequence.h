// One request inside the scheduler, from the queue to its end.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "cogumi/engine.h"
#include "engine/decode/answer_assembler.h"
#include "engine/decode/sampler.h"
#include "engine/memory/kv_cache.h"
#include "engine/memory/prefix_index.h"
#include "engine/model/adapter_table.h"
#include "engine/runtime/tenant_shares.h"

namespace cogumi {

struct Sequence {
  Sequence(GenerationRequest from, std::shared_ptr<ResponseSink> to, uint64_t seed,
           int32_t vocabulary, int32_t token_limit)
      : request(std::move(from)),
        sink(std::move(to)),
        tokens(std::move(request.tokens)),
        roles(std::move(request.roles)),
        prompt_length(static_cast<int32_t>(tokens.size())),
        max_tokens(token_limit),
        sampler(request.sampling, seed, tokens, vocabulary),
        answer(request.sampling.stop),
        prefix_key{request.tenant, request.adapter} {
    roles.resize(tokens.size(), TokenRole::kPrompt);  // when none were given
  }

  int32_t Length() const { return static_cast<int32_t>(tokens.size()); }
  int32_t Generated() const { return Length() - prompt_length; }
  // Tokens whose keys and values are needed before anything more can be said. The last token of a
  // scored text predicts nothing that was asked for.
  int32_t Target() const { return request.score ? prompt_length - 1 : Length(); }
  int32_t Remaining() const { return Target() - kv.length; }
  bool ScoreDone() const {
    return request.score && completion.prompt_logprobs.size() + 1 == tokens.size();
  }

  void Append(TokenId id) {
    tokens.push_back(id);
    roles.push_back(TokenRole::kGenerated);
  }

  GenerationRequest request;  // its tokens and roles have moved to the vectors below
  std::shared_ptr<ResponseSink> sink;
  AdapterRef adapter;        // the version that the request began with
  RequestHandle handle = 0;  // grows with arrival

  std::vector<TokenId> tokens;   // prompt, then answer
  std::vector<TokenRole> roles;  // as many
  const int32_t prompt_length;
  const int32_t max_tokens;
  KvSequence kv;
  PrefixIndex::Pin pin;  // what of kv the prefix index holds too
  Sampler sampler;
  AnswerAssembler answer;
  const PrefixKey prefix_key;
  Completion completion;
  int32_t counted_prompt = 0;  // prompt tokens already in the statistics
  bool preempted = false;      // at least once
  bool cancelled = false;
  TenantShares::Account* account = nullptr;  // from Submit to the end

  // While another sequence computes what this one needs too: whose handle, and how far it was.
  RequestHandle leader = 0;
  int32_t leader_length = 0;
  Speculation drafter = Speculation::kOff;

  double submitted = 0;
  std::optional<double> admitted;  // first time
  std::optional<double> first_token;
  std::optional<double> told;  // when the last chunk was
  Chunk untold;

  // Of the step that is planned.
  std::vector<TokenId> draft;  // rows behind the last token's, to be verified
  int32_t first_logit = 0;  // index into StepPlan::logit_rows
  int32_t logits = 0;
  std::vector<TokenInfo> sampled;  // the last one is not the draft's, all before it are
  absl::Status sample_status;
};

// Who comes first, in the queue and in a step: higher priority, then earlier arrival.
inline bool ComesBefore(const std::unique_ptr<Sequence>& a, const std::unique_ptr<Sequence>& b) {
  return a->request.priority != b->request.priority ? a->request.priority > b->request.priority
                                                    : a->handle < b->handle;
}

inline void InsertInOrder(std::vector<std::unique_ptr<Sequence>>& sequences,
                          std::unique_ptr<Sequence> sequence) {
  const auto place = std::upper_bound(sequences.begin(), sequences.end(), sequence, ComesBefore);
  sequences.insert(place, std::move(sequence));
}

}  // namespace cogumi
