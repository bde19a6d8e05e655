// Plain types of the engine's public interface. No gRPC, no protobuf.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace cogumi {

using TokenId = int32_t;

// Whether a token was given or said by the model. Arithmetic may depend on it and on the absolute
// position, never on what is computed beside it.
enum class TokenRole : uint8_t { kPrompt, kGenerated };

// Who said a message of a conversation.
enum class MessageRole { kSystem, kUser, kAssistant };

struct Message {
  MessageRole role = MessageRole::kUser;
  std::string content;  // UTF-8; special tokens written in it stay text
};

struct TextPrompt {
  std::string text;
  bool parse_special = false;  // true: `<|im_end|>` in the text becomes that token
};
using Prompt = std::variant<TextPrompt, std::vector<TokenId>, std::vector<Message>>;

// How the next token is chosen. Order: logit bias, penalties (repetition, then presence and
// frequency), temperature, top-k, top-p, min-p, draw. Ranges are those of common.proto; the engine
// checks them and answers INVALID_ARGUMENT naming the field.
struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  int32_t top_k = 0;         // 0: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float presence_penalty = 0.0f;    // counts generated tokens
  float frequency_penalty = 0.0f;   // counts generated tokens
  float repetition_penalty = 1.0f;  // counts prompt and generated tokens
  std::optional<uint64_t> seed;     // drawn by the engine when absent
  std::vector<std::pair<TokenId, float>> logit_bias;
  std::optional<int32_t> max_tokens;  // absent: what is left of the context
  std::vector<std::string> stop;
  std::vector<TokenId> stop_token_ids;
  bool ignore_eos = false;
  bool logprobs = false;
  int32_t top_logprobs = 0;
};

struct TopLogprob {
  TokenId id = 0;
  float logprob = 0;
  std::string bytes;
};

// One generated (or scored) token. Log-probabilities, margin and entropy are of the raw logits:
// before bias, penalties and temperature. Where SamplingParams::logprobs is not set they may be
// estimates, since a greedy choice does not need all logits.
struct TokenInfo {
  TokenId id = 0;
  float logprob = 0;
  float margin = 0;   // difference of the two largest logits
  float entropy = 0;  // nats
  std::string bytes;
  std::vector<TopLogprob> top;
};

struct Chunk {
  std::string text;  // whole UTF-8 characters; may be empty while a character or stop is pending
  // An end token is among them, without text. Tokens that have a part in a stop string are in no
  // chunk; the usage counts them.
  std::vector<TokenInfo> tokens;
};

enum class FinishReason { kStop, kLength };

struct Usage {
  int32_t prompt_tokens = 0;
  int32_t completion_tokens = 0;
  int32_t cached_tokens = 0;
};

struct Timings {  // seconds
  double queue = 0;
  double prefill = 0;
  double decode = 0;
  double time_to_first_token = 0;
};

// Who drafts tokens ahead. Drafts are verified: they change how fast an answer comes, never it.
enum class Speculation {
  kDefault,     // of a request: what the engine was made with
  kOff,         // nobody
  kNgram,       // the last tokens are looked up in prompt and answer
  kDraftModel,  // a smaller model, EngineOptions::draft_model_path
};

struct SpeculationStats {
  int32_t drafts = 0;  // steps with a draft
  int32_t drafted_tokens = 0;
  int32_t accepted_tokens = 0;
  std::vector<int32_t> accepted_per_position;
};

struct Receipt {
  std::string model_digest;     // SHA-256 of the file, hex
  std::string template_digest;  // of the chat template; empty for raw prompts
  std::string adapter_digest;   // empty: the base alone
  std::string kernel_digest;
  std::string kernel_configuration;  // e.g. "avx512vnni/mixed/kv-f16"
  uint64_t seed = 0;
};

struct Completion {
  FinishReason finish_reason = FinishReason::kStop;
  std::string matched_stop;
  Usage usage;
  Timings timings;
  SpeculationStats speculation;
  int32_t layers_skipped = 0;
  Receipt receipt;
  std::vector<TokenId> prompt_tokens;
  // Score only: info of prompt token i + 1 given tokens 0..i.
  std::vector<TokenInfo> prompt_logprobs;
};

// The files of a LoRA adapter as PEFT writes them.
struct AdapterFiles {
  std::string config;   // adapter_config.json
  std::string weights;  // adapter_model.safetensors
};

struct AdapterInfo {
  std::string digest;
  int32_t rank = 0;
  int64_t bytes = 0;  // of memory
};

struct AdapterStats {
  int32_t resident = 0;
  int64_t bytes = 0;  // of memory, also of those that were unloaded and are still in use
  int64_t budget_bytes = 0;
  uint64_t loads = 0;      // adapters that became resident
  uint64_t evictions = 0;  // that had to go for others
};

struct ModelDescription {
  std::string id;  // EngineOptions::model_id or the file's stem
  std::string architecture;
  std::string path;
  std::string digest;  // SHA-256 of the file, hex
  int64_t file_bytes = 0;
  int64_t bytes_per_token = 0;  // weights in the file that a token reads
  int64_t parameters = 0;
  int32_t context_length = 0;
  int32_t vocabulary_size = 0;
  int32_t layers = 0;
  int32_t embedding_length = 0;
  std::string chat_template;  // "chatml", "llama3" or "" when unknown
  std::string quantization;   // most frequent tensor type, e.g. "Q4_1"
  int64_t created = 0;        // file modification time, Unix seconds
};

}  // namespace cogumi
