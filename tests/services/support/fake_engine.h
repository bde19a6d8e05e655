// A deterministic double of the engine: byte tokens, scripted answers, steps by hand or by its own
// thread. Thread-safe.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cogumi/engine.h"

namespace cogumi::test {

struct FakeEngineOptions {
  int32_t context_length = 4096;
  int32_t max_running = 4;
  int32_t max_queued = 8;
  // True: a thread steps as long as there is work. False: only Step() does.
  bool automatic = true;
  // The pieces of every answer, one token each. Empty: the answer is "echo: " and the prompt's
  // text, a token per character.
  std::vector<std::string> answer;
  // The pieces come again and again, until max_tokens or a cancel.
  bool endless = false;
};

// Token ids: 0..255 are bytes, 256 is the end token; the vocabulary has 300.
class FakeEngine : public Engine {
 public:
  static constexpr TokenId kEnd = 256;
  static constexpr int32_t kVocabulary = 300;

  explicit FakeEngine(FakeEngineOptions options = {});
  ~FakeEngine() override;

  absl::StatusOr<TokenizedPrompt> Tokenize(const Prompt& prompt) const override;
  absl::StatusOr<std::string> Detokenize(const std::vector<TokenId>& tokens,
                                         bool special) const override;
  absl::StatusOr<RequestHandle> Submit(GenerationRequest request,
                                       std::shared_ptr<ResponseSink> sink) override;
  void Cancel(RequestHandle handle) override;
  // Adapters are taken as they are (a config of "bad" is refused); the budget says a thousand
  // bytes.
  absl::StatusOr<AdapterLease> LoadAdapter(const std::string& digest,
                                           const AdapterFiles& files) override;
  AdapterLease FindAdapter(const std::string& digest) override;
  void UnloadAdapter(const std::string& digest) override;
  std::vector<AdapterInfo> Adapters() const override;
  AdapterStats AdapterUse() const override;
  EngineStats Stats() const override;
  const std::string& ModelId() const override { return model_.id; }
  const ModelDescription& Model() const override {
    ++model_calls_;
    return model_;
  }
  const Receipt& Configuration() const override { return configuration_; }
  bool Healthy() const override { return healthy_; }
  void Drain() override;

  // One step: cancels and deadlines first, then one token of every running sequence.
  void Step();
  void SetHealthy(bool healthy) { healthy_ = healthy; }
  // Every running request ends with this at the next step.
  void FailNextStep(absl::Status status);
  // Waits until `count` requests were submitted since the start; false after `seconds`.
  bool WaitSubmitted(uint64_t count, double seconds = 10);
  // Waits until nothing runs or waits; false after `seconds`.
  bool WaitIdle(double seconds = 10);
  // The last request that was submitted.
  GenerationRequest LastRequest() const;
  // Calls of Model(), which may wait in a real engine.
  int model_calls() const { return model_calls_; }
  // The last prompt that was tokenised, as text.
  std::string LastPromptText() const;

 private:
  struct Sequence {
    RequestHandle handle = 0;
    GenerationRequest request;
    std::shared_ptr<ResponseSink> sink;
    std::vector<std::string> pieces;
    size_t next = 0;
    bool cancelled = false;
    bool running = false;
  };

  void Loop();
  bool HasWorkLocked() const { return !sequences_.empty(); }

  const FakeEngineOptions options_;
  ModelDescription model_;
  Receipt configuration_;
  std::atomic<bool> healthy_{true};
  mutable std::atomic<int> model_calls_{0};

  std::mutex step_mutex_;  // one step at a time
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::map<RequestHandle, std::shared_ptr<Sequence>> sequences_;  // in order of arrival
  mutable std::string last_prompt_;
  GenerationRequest last_request_;
  std::map<std::string, std::shared_ptr<AdapterFiles>> adapters_;
  AdapterStats adapter_stats_;
  EngineStats stats_;
  RequestHandle next_handle_ = 1;
  uint64_t submitted_ = 0;
  absl::Status fail_next_;
  bool draining_ = false;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace cogumi::test
