// A model, tokenizer, chat template and sink without files, for tests of the scheduler, the engine
// and the services above it.
//
// The model's next token is a hash of the prefix and of the roles it was computed in. The hash of
// each position lives in the KV pages, so a wrong page, position, role or recompute changes the
// answer. AnswerOf predicts it without batches, pages or chunks.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "engine/decode/sampler.h"
#include "engine/decode/utf8.h"
#include "engine/kernels/registry.h"
#include "engine/model/model.h"
#include "engine/runtime/engine_parts.h"
#include "tests/unit/decode/logits_for_tests.h"
#include "tests/unit/decode/naive_text.h"

namespace cogumi {

inline constexpr int32_t kFakeVocabulary = 97;
inline constexpr TokenId kFakeEnd = 0;
inline constexpr TokenId kFakeBos = 1;
// The logits after this token are not finite.
inline constexpr TokenId kFakePoison = 96;

// Ids from 2: single letters, short words, and the bytes of UTF-8 characters one by one.
class FakeTokenizer : public Tokenizer {
 public:
  explicit FakeTokenizer(bool add_bos = false) : add_bos_(add_bos) {
    const std::string pieces = "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xFF\n";
    for (TokenId id = 0; id < kFakeVocabulary; ++id) {
      std::string bytes;
      if (id < 2) {
        bytes = id == kFakeEnd ? "<end>" : "<bos>";
      } else if (id < 30) {
        bytes = std::string(1, static_cast<char>('a' + id % 26));
      } else if (id < 60) {
        bytes = std::string(1, static_cast<char>('a' + id % 3)) + static_cast<char>('a' + id % 4);
      } else {
        bytes = pieces.substr(static_cast<size_t>(id) % pieces.size(), 1);
      }
      bytes_.push_back(bytes);
    }
  }
  Encoded Encode(std::string_view text, bool parse_special) const override {
    Encoded encoded;
    while (!text.empty()) {
      TokenId id = -1;
      for (TokenId i = parse_special ? 0 : 2; i < kFakeVocabulary && id < 0; ++i) {
        if (text.substr(0, bytes_[static_cast<size_t>(i)].size()) ==
            bytes_[static_cast<size_t>(i)]) {
          id = i;
        }
      }
      if (id < 0) {
        ++encoded.dropped_bytes;
        text.remove_prefix(1);
        continue;
      }
      encoded.ids.push_back(id);
      text.remove_prefix(bytes_[static_cast<size_t>(id)].size());
    }
    return encoded;
  }
  std::string_view TokenBytes(TokenId id, bool special) const override {
    if (id < 2 && !special) return {};
    return bytes_[static_cast<size_t>(id)];
  }
  int32_t VocabularySize() const override { return kFakeVocabulary; }
  bool IsControl(TokenId id) const override { return id < 2; }
  TokenId FindToken(std::string_view text) const override {
    for (size_t i = 0; i < bytes_.size(); ++i) {
      if (bytes_[i] == text) return static_cast<TokenId>(i);
    }
    return -1;
  }
  TokenId bos() const override { return kFakeBos; }
  bool add_bos() const override { return add_bos_; }
  const std::vector<TokenId>& end_tokens() const override { return end_tokens_; }

 private:
  bool add_bos_;
  std::vector<std::string> bytes_;
  std::vector<TokenId> end_tokens_ = {kFakeEnd};
};

class FakeChatTemplate : public ChatTemplate {
 public:
  absl::StatusOr<Rendered> Render(const std::vector<Message>& messages,
                                  const Tokenizer& tokenizer) const override {
    if (messages.empty()) return absl::InvalidArgumentError("messages: are empty");
    Rendered encoded;
    for (const Message& message : messages) {
      const Tokenizer::Encoded part = tokenizer.Encode(message.content, false);
      encoded.ids.push_back(kFakeBos);
      encoded.roles.push_back(TokenRole::kPrompt);
      encoded.ids.insert(encoded.ids.end(), part.ids.begin(), part.ids.end());
      encoded.roles.resize(encoded.ids.size(), message.role == MessageRole::kAssistant
                                                   ? TokenRole::kGenerated
                                                   : TokenRole::kPrompt);
      encoded.dropped_bytes += part.dropped_bytes;
    }
    return encoded;
  }
  std::string_view name() const override { return "fake"; }
  const std::string& digest() const override { return digest_; }

 private:
  std::string digest_ = "template-digest";
};

// The state after a prefix.
inline uint64_t FakeState(uint64_t before, TokenId token, TokenRole role) {
  uint64_t x = before ^ (static_cast<uint64_t>(token) * 2 + (role == TokenRole::kPrompt ? 0 : 1) +
                         0x9E3779B97F4A7C15);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

inline std::vector<float> FakeLogits(uint64_t state, TokenId token) {
  std::vector<float> logits(kFakeVocabulary);
  for (TokenId id = 0; id < kFakeVocabulary; ++id) {
    const uint64_t x = FakeState(state, id, TokenRole::kPrompt);
    logits[static_cast<size_t>(id)] = static_cast<float>(x >> 40) * 0x1p-21f;  // [0, 8)
  }
  logits[kFakePoison] = -8;  // never chosen by itself
  if (token == kFakePoison) logits[3] = std::numeric_limits<float>::quiet_NaN();
  return logits;
}

class FakeModel : public Model {
 public:
  explicit FakeModel(int32_t context_length = 512, ModelOptions options = {})
      : options_(std::move(options)) {
    config_.name = "fake";
    config_.layers = 1;
    config_.context_length = context_length;
    config_.vocabulary_size = kFakeVocabulary;
  }

  const ModelConfig& config() const override { return config_; }
  // One 64-bit state per token is all of K.
  KvShape kv_shape() const override { return {1, 1, 2, KvFormat::kF32}; }
  const std::string& kernel_configuration() const override { return configuration_; }
  const KernelTable& kernels() const override { return table; }

  absl::Status Forward(const StepPlan& plan, KvCache& cache) override {
    if (on_forward) {
      absl::Status status = on_forward(plan);
      if (!status.ok()) return status;
    }
    absl::Status status = Check(plan);
    if (!status.ok()) return status;
    logits_.clear();
    summaries_.clear();
    size_t wanted = 0;
    for (const StepSequence& sequence : plan.sequences) {
      for (int32_t i = 0; i < sequence.rows; ++i) {
        const int32_t row = sequence.first_row + i;
        const int32_t position = sequence.first_position + i;
        const TokenId token = plan.tokens[static_cast<size_t>(row)];
        uint64_t state = 0;
        if (position > 0) std::memcpy(&state, Slot(cache, sequence, position - 1), sizeof(state));
        state = FakeState(state, token, plan.roles[static_cast<size_t>(row)]);
        std::memcpy(Slot(cache, sequence, position), &state, sizeof(state));
        if (wanted < plan.logit_rows.size() && plan.logit_rows[wanted] == row) {
          logits_.push_back(logits_of ? logits_of(state, token) : FakeLogits(state, token));
          summaries_.push_back(Summarise(logits_.back()));
          ++wanted;
        }
      }
    }
    return absl::OkStatus();
  }
  const float* Logits(int32_t index) const override {
    return logits_[static_cast<size_t>(index)].data();
  }
  const LogitSummary& Summary(int32_t index) const override {
    return summaries_[static_cast<size_t>(index)];
  }

  KernelTable table = ReferenceKernels();
  // Called first in Forward, on the caller's thread; an error is what Forward answers.
  std::function<absl::Status(const StepPlan&)> on_forward;
  // Instead of FakeLogits.
  std::function<std::vector<float>(uint64_t state, TokenId token)> logits_of;

 private:
  static std::byte* Slot(const KvCache& cache, const StepSequence& sequence, int32_t position) {
    const KvPage& page = (*sequence.pages)[static_cast<size_t>(position / kKvPageTokens)];
    return cache.Head(page.wide, 0, 0) + 8 * (position % kKvPageTokens);
  }

  // step_plan.h, word by word.
  absl::Status Check(const StepPlan& plan) const {
    const auto refuse = [](const char* what) { return absl::InvalidArgumentError(what); };
    int32_t next = 0;
    for (const StepSequence& sequence : plan.sequences) {
      if (sequence.first_row != next || sequence.rows < 1) return refuse("sequences cover no rows");
      next += sequence.rows;
      if (sequence.first_position < 0) return refuse("first_position");
      const int32_t end = sequence.first_position + sequence.rows;
      if (end > config_.context_length) return refuse("beyond the context");
      if (static_cast<int>(sequence.pages->size()) < KvCache::PagesFor(end)) return refuse("pages");
    }
    if (next != plan.Rows() || plan.roles.size() != plan.tokens.size()) return refuse("rows");
    if (next == 0 || next > options_.max_rows) return refuse("too many rows");
    if (static_cast<int32_t>(plan.logit_rows.size()) > options_.max_logit_rows) {
      return refuse("too many rows of logits");
    }
    for (size_t i = 0; i < plan.logit_rows.size(); ++i) {
      if (plan.logit_rows[i] < (i == 0 ? 0 : plan.logit_rows[i - 1] + 1) ||
          plan.logit_rows[i] >= next) {
        return refuse("logit_rows");
      }
    }
    return absl::OkStatus();
  }

  ModelConfig config_;
  ModelOptions options_;
  std::string configuration_ = "fake/f32/kv-f32";
  std::vector<std::vector<float>> logits_;
  std::vector<LogitSummary> summaries_;
};

// What a request's answer must be when nothing disturbs it. `roles`: empty for kPrompt throughout.
struct FakeAnswer {
  std::vector<TokenId> tokens;
  std::vector<TokenId> told;  // those that have no part in a stop string
  std::string text;
  std::string matched_stop;
  FinishReason finish_reason = FinishReason::kLength;
};

inline FakeAnswer AnswerOf(const std::vector<TokenId>& prompt, const SamplingParams& sampling,
                           int32_t context_length, const std::vector<TokenRole>& roles = {}) {
  uint64_t state = 0;
  for (size_t i = 0; i < prompt.size(); ++i) {
    state = FakeState(state, prompt[i], roles.empty() ? TokenRole::kPrompt : roles[i]);
  }
  const FakeTokenizer tokenizer;
  Sampler sampler(sampling, sampling.seed.value_or(0), prompt, kFakeVocabulary);
  SamplerScratch scratch;
  FakeAnswer answer;
  std::string bytes;
  std::vector<std::string> pieces;
  TokenId last = prompt.back();
  const int32_t left = context_length - static_cast<int32_t>(prompt.size());
  for (int32_t i = 0; i < sampling.max_tokens.value_or(left); ++i) {
    const std::vector<float> logits = FakeLogits(state, last);
    last = sampler
               .Sample(logits.data(), Summarise(logits), static_cast<int64_t>(prompt.size()) + i,
                       scratch)
               ->id;
    sampler.Accept(last);
    answer.tokens.push_back(last);
    const std::vector<TokenId>& stops = sampling.stop_token_ids;
    if ((last == kFakeEnd && !sampling.ignore_eos) ||
        std::find(stops.begin(), stops.end(), last) != stops.end()) {
      answer.finish_reason = FinishReason::kStop;
      pieces.emplace_back();
      break;
    }
    pieces.emplace_back(tokenizer.TokenBytes(last, false));
    bytes += pieces.back();
    if (!sampling.stop.empty()) {
      // Held-back bytes may still turn into something else: only whole characters can stop.
      std::string whole;
      Utf8Assembler utf8;
      utf8.Append(bytes, whole);
      if (!NaiveStop(whole, sampling.stop).matched.empty()) break;
    }
    state = FakeState(state, last, TokenRole::kGenerated);
  }
  const NaiveAnswer cut = NaiveStop(NaiveUtf8(bytes), sampling.stop);
  answer.told.assign(answer.tokens.begin(),
                     answer.tokens.begin() +
                         static_cast<std::ptrdiff_t>(NaiveTold(pieces, sampling.stop)));
  answer.text = cut.text;
  answer.matched_stop = cut.matched;
  if (!cut.matched.empty()) answer.finish_reason = FinishReason::kStop;
  return answer;
}

// Collects what a request is told; Wait blocks until its end.
class RecordingSink : public ResponseSink {
 public:
  void OnChunk(Chunk chunk) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (ends_ > 0) ++chunks_after_end_;
    text_ += chunk.text;
    texts_.push_back(std::move(chunk.text));
    for (TokenInfo& info : chunk.tokens) infos_.push_back(std::move(info));
    changed_.notify_all();
  }
  void OnFinished(absl::Status status, Completion completion) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++ends_;
    status_ = std::move(status);
    completion_ = std::move(completion);
    changed_.notify_all();
  }

  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return ends_ > 0; });
  }
  void WaitForTokens(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return infos_.size() >= count || ends_ > 0; });
  }
  int ends() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return ends_;
  }
  int chunks_after_end() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return chunks_after_end_;
  }
  std::string text() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return text_;
  }
  std::vector<TokenId> tokens() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<TokenId> ids;
    for (const TokenInfo& info : infos_) ids.push_back(info.id);
    return ids;
  }
  // Only after the end.
  const absl::Status& status() const { return status_; }
  const Completion& completion() const { return completion_; }
  const std::vector<TokenInfo>& infos() const { return infos_; }
  const std::vector<std::string>& texts() const { return texts_; }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int ends_ = 0;
  int chunks_after_end_ = 0;
  std::string text_;
  std::vector<std::string> texts_;
  std::vector<TokenInfo> infos_;
  absl::Status status_;
  Completion completion_;
};

// `model`: null for a plain FakeModel.
inline EngineParts FakeParts(const EngineOptions& options,
                             std::unique_ptr<FakeModel> model = nullptr, bool add_bos = false) {
  EngineParts parts;
  parts.tokenizer = std::make_unique<FakeTokenizer>(add_bos);
  parts.chat_template = std::make_unique<FakeChatTemplate>();
  parts.model = model != nullptr ? std::move(model)
                                 : std::make_unique<FakeModel>(512, ModelOptionsFor(options));
  parts.description.id = "fake";
  parts.description.architecture = "fake";
  parts.description.vocabulary_size = kFakeVocabulary;
  parts.description.chat_template = "fake";
  parts.digest = [] { return std::string(64, 'd'); };
  return parts;
}

}  // namespace cogumi
