#include "tests/services/support/fake_engine.h"

#include <chrono>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "engine/core/clock.h"

namespace cogumi::test {
namespace {

// A text's characters; malformed bytes stand alone.
std::vector<std::string> Characters(const std::string& text) {
  std::vector<std::string> characters;
  for (const char c : text) {
    const bool continues = (static_cast<unsigned char>(c) & 0xC0) == 0x80;
    if (continues && !characters.empty()) {
      characters.back() += c;
    } else {
      characters.emplace_back(1, c);
    }
  }
  return characters;
}

TokenInfo MakeToken(const std::string& piece, int32_t top) {
  TokenInfo token;
  token.id = piece.empty() ? FakeEngine::kEnd : static_cast<unsigned char>(piece[0]);
  token.logprob = -0.25f;
  token.margin = 2.0f;
  token.entropy = 0.5f;
  token.bytes = piece;
  for (int32_t i = 0; i < top; ++i) {
    token.top.push_back({token.id + i, -0.25f - static_cast<float>(i), piece});
  }
  return token;
}

}  // namespace

FakeEngine::FakeEngine(FakeEngineOptions options) : options_(std::move(options)) {
  model_.id = "fake";
  model_.architecture = "llama";
  model_.path = "/nowhere/fake.gguf";
  model_.digest = std::string(64, 'a');
  model_.file_bytes = 1234;
  model_.parameters = 99;
  model_.context_length = options_.context_length;
  model_.vocabulary_size = kVocabulary;
  model_.layers = 2;
  model_.embedding_length = 8;
  model_.chat_template = "chatml";
  model_.quantization = "F32";
  model_.created = 1700000000;
  configuration_.model_digest = model_.digest;
  configuration_.kernel_digest = std::string(64, 'b');
  configuration_.kernel_configuration = "fake/f32/kv-f16";
  stats_.kv_pages = 64;
  stats_.kv_bytes = 1 << 20;
  stats_.kv_blocks = {{"int8", 3, 3 << 14}, {"int4", 5, 5 << 13}};
  // Made up: nothing is drafted here.
  stats_.drafts = 6;
  stats_.drafted_tokens = 9;
  stats_.accepted_tokens = 7;
  stats_.accepted_per_position = {5, 2};
  if (options_.automatic) thread_ = std::thread([this] { Loop(); });
}

FakeEngine::~FakeEngine() {
  std::map<RequestHandle, std::shared_ptr<Sequence>> left;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  left.swap(sequences_);
  for (const auto& [handle, sequence] : left) {
    sequence->sink->OnFinished(absl::UnavailableError("the engine is shutting down"), {});
  }
}

absl::StatusOr<TokenizedPrompt> FakeEngine::Tokenize(const Prompt& prompt) const {
  TokenizedPrompt result;
  std::string text;
  if (const auto* plain = std::get_if<TextPrompt>(&prompt)) {
    text = plain->text;
  } else if (const auto* messages = std::get_if<std::vector<Message>>(&prompt)) {
    for (const Message& message : *messages) {
      const char* role = message.role == MessageRole::kSystem      ? "system"
                         : message.role == MessageRole::kAssistant ? "assistant"
                                                                   : "user";
      absl::StrAppend(&text, role, ":", message.content, "\n");
    }
    result.template_digest = std::string(64, 'c');
  } else {
    for (const TokenId id : std::get<std::vector<TokenId>>(prompt)) {
      if (id < 0 || id >= kVocabulary) {
        return absl::InvalidArgumentError(
            absl::StrCat("tokens: id ", id, " is outside [0, ", kVocabulary, ")"));
      }
      if (id < 256) text += static_cast<char>(id);
    }
  }
  for (const char c : text) result.tokens.push_back(static_cast<unsigned char>(c));
  result.roles.assign(result.tokens.size(), TokenRole::kPrompt);
  std::lock_guard<std::mutex> lock(mutex_);
  last_prompt_ = text;
  return result;
}

absl::StatusOr<std::string> FakeEngine::Detokenize(const std::vector<TokenId>& tokens,
                                                   bool special) const {
  std::string text;
  for (const TokenId id : tokens) {
    if (id < 0 || id >= kVocabulary) {
      return absl::InvalidArgumentError(absl::StrCat("id ", id, " is outside the vocabulary"));
    }
    if (id < 256) text += static_cast<char>(id);
    if (id == kEnd && special) text += "<end>";
  }
  return text;
}

absl::StatusOr<RequestHandle> FakeEngine::Submit(GenerationRequest request,
                                                 std::shared_ptr<ResponseSink> sink) {
  const auto& sampling = request.sampling;
  if (!(sampling.temperature >= 0 && sampling.temperature <= 2)) {
    return absl::InvalidArgumentError(
        absl::StrCat("temperature: ", sampling.temperature, " is outside [0, 2]"));
  }
  if (sampling.max_tokens && *sampling.max_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens: ", *sampling.max_tokens, " is below 1"));
  }
  if (request.tokens.empty()) return absl::InvalidArgumentError("tokens: empty");
  if (request.tokens.size() >= static_cast<size_t>(options_.context_length)) {
    return absl::OutOfRangeError(absl::StrCat("the prompt has ", request.tokens.size(),
                                              " tokens, the context ", options_.context_length));
  }
  std::lock_guard<std::mutex> lock(mutex_);
  if (draining_) return absl::UnavailableError("draining");
  const size_t room = static_cast<size_t>(options_.max_running + options_.max_queued);
  if (sequences_.size() >= room) {
    ++stats_.rejected;
    return absl::ResourceExhaustedError("the queue is full");
  }
  auto sequence = std::make_shared<Sequence>();
  sequence->handle = next_handle_++;
  if (!options_.answer.empty()) {
    sequence->pieces = options_.answer;
  } else {
    std::string text = "echo: ";
    for (const TokenId id : request.tokens) {
      if (id < 256) text += static_cast<char>(id);
    }
    sequence->pieces = Characters(text);
  }
  last_request_ = request;
  sequence->request = std::move(request);
  sequence->sink = std::move(sink);
  const RequestHandle handle = sequence->handle;
  sequences_[handle] = std::move(sequence);
  ++submitted_;
  changed_.notify_all();
  return handle;
}

void FakeEngine::Cancel(RequestHandle handle) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = sequences_.find(handle);
  if (it == sequences_.end()) return;
  it->second->cancelled = true;
  changed_.notify_all();
}

namespace {

// A lease is opaque: this one keeps the files alive.
AdapterLease LeaseOf(const std::shared_ptr<AdapterFiles>& files) {
  return {files, reinterpret_cast<const ResidentAdapter*>(files.get())};
}

}  // namespace

absl::StatusOr<AdapterLease> FakeEngine::LoadAdapter(const std::string& digest,
                                                     const AdapterFiles& files) {
  if (files.config == "bad") return absl::InvalidArgumentError("adapter_config.json: bad");
  const std::lock_guard<std::mutex> lock(mutex_);
  auto& place = adapters_[digest];
  if (place == nullptr) {
    place = std::make_shared<AdapterFiles>(files);
    ++adapter_stats_.loads;
  }
  return LeaseOf(place);
}

AdapterLease FakeEngine::FindAdapter(const std::string& digest) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = adapters_.find(digest);
  return found == adapters_.end() ? nullptr : LeaseOf(found->second);
}

void FakeEngine::UnloadAdapter(const std::string& digest) {
  const std::lock_guard<std::mutex> lock(mutex_);
  adapters_.erase(digest);
}

std::vector<AdapterInfo> FakeEngine::Adapters() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<AdapterInfo> list;
  for (const auto& [digest, files] : adapters_) {
    list.push_back({digest, 1, static_cast<int64_t>(files->weights.size())});
  }
  return list;
}

AdapterStats FakeEngine::AdapterUse() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  AdapterStats stats = adapter_stats_;
  stats.budget_bytes = 1000;
  stats.resident = static_cast<int32_t>(adapters_.size());
  for (const auto& [digest, files] : adapters_) {
    stats.bytes += static_cast<int64_t>(files->weights.size());
  }
  return stats;
}

EngineStats FakeEngine::Stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  EngineStats stats = stats_;
  for (const auto& [handle, sequence] : sequences_) {
    ++(sequence->running ? stats.running : stats.queued);
  }
  stats.kv_pages_used = stats.running;
  stats.kv_pages_free = stats.kv_pages - stats.kv_pages_used;
  stats.kv_bytes_used = stats.kv_bytes / stats.kv_pages * stats.running;
  return stats;
}

void FakeEngine::Drain() {
  std::lock_guard<std::mutex> lock(mutex_);
  draining_ = true;
}

void FakeEngine::FailNextStep(absl::Status status) {
  std::lock_guard<std::mutex> lock(mutex_);
  fail_next_ = std::move(status);
}

bool FakeEngine::WaitSubmitted(uint64_t count, double seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  return changed_.wait_for(lock, std::chrono::duration<double>(seconds),
                           [&] { return submitted_ >= count; });
}

bool FakeEngine::WaitIdle(double seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  return changed_.wait_for(lock, std::chrono::duration<double>(seconds),
                           [&] { return sequences_.empty(); });
}

GenerationRequest FakeEngine::LastRequest() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return last_request_;
}

std::string FakeEngine::LastPromptText() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return last_prompt_;
}

void FakeEngine::Step() {
  std::lock_guard<std::mutex> one_step(step_mutex_);
  std::vector<std::shared_ptr<Sequence>> running;
  absl::Status fail;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ++stats_.steps;
    std::swap(fail, fail_next_);
    for (const auto& [handle, sequence] : sequences_) {
      if (!sequence->running && running.size() >= static_cast<size_t>(options_.max_running)) {
        if (!sequence->cancelled) continue;
      }
      if (!sequence->running) {
        sequence->running = true;
        stats_.prompt_tokens += sequence->request.tokens.size();
      }
      running.push_back(sequence);
    }
  }
  // Sinks are called without the lock, as the engine's contract says.
  for (const auto& sequence : running) {
    Completion completion;
    completion.usage.prompt_tokens = static_cast<int32_t>(sequence->request.tokens.size());
    completion.usage.completion_tokens = static_cast<int32_t>(sequence->next);
    absl::Status status = fail;
    bool finished = !fail.ok();
    const double deadline = sequence->request.deadline;
    bool cancelled = false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      cancelled = sequence->cancelled;
    }
    if (cancelled) {
      status = absl::CancelledError("cancelled");
      finished = true;
    } else if (deadline > 0 && Clock::Real()->Now() > deadline) {
      status = absl::DeadlineExceededError("the deadline has passed");
      finished = true;
    } else if (!finished && sequence->request.score) {
      finished = true;
      for (size_t i = 1; i < sequence->request.tokens.size(); ++i) {
        completion.prompt_logprobs.push_back(
            MakeToken(std::string(1, static_cast<char>(sequence->request.tokens[i])),
                      sequence->request.sampling.top_logprobs));
      }
    } else if (!finished) {
      const auto& sampling = sequence->request.sampling;
      const std::string& piece = sequence->pieces[sequence->next % sequence->pieces.size()];
      ++sequence->next;
      Chunk chunk;
      chunk.text = piece;
      chunk.tokens.push_back(MakeToken(piece, sampling.top_logprobs));
      sequence->sink->OnChunk(std::move(chunk));
      completion.usage.completion_tokens = static_cast<int32_t>(sequence->next);
      const bool at_limit =
          sampling.max_tokens && static_cast<int32_t>(sequence->next) >= *sampling.max_tokens;
      completion.finish_reason = at_limit ? FinishReason::kLength : FinishReason::kStop;
      finished = at_limit || (!options_.endless && sequence->next >= sequence->pieces.size());
      std::lock_guard<std::mutex> lock(mutex_);
      ++stats_.generated_tokens;
    }
    if (!finished) continue;
    completion.prompt_tokens = sequence->request.tokens;
    completion.receipt = configuration_;
    completion.receipt.template_digest = sequence->request.template_digest;
    completion.receipt.adapter_digest = sequence->request.adapter;
    completion.receipt.seed = sequence->request.sampling.seed.value_or(7);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (status.ok()) {
        ++(completion.finish_reason == FinishReason::kStop ? stats_.finished_stop
                                                           : stats_.finished_length);
      } else if (absl::IsCancelled(status)) {
        ++stats_.cancelled;
      } else if (absl::IsDeadlineExceeded(status)) {
        ++stats_.deadline_exceeded;
      } else {
        ++stats_.failed;
      }
    }
    sequence->sink->OnFinished(status, std::move(completion));
    std::lock_guard<std::mutex> lock(mutex_);
    sequences_.erase(sequence->handle);
    changed_.notify_all();
  }
}

void FakeEngine::Loop() {
  while (true) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || HasWorkLocked(); });
      if (stopping_) return;
    }
    Step();
  }
}

}  // namespace cogumi::test
