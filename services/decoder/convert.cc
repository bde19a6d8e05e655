#include "services/decoder/convert.h"

#include <array>
#include <utility>

#include "services/common/status.h"
#include "services/common/text.h"

namespace cogumi::services {
namespace {

absl::Status CheckBytes(std::string_view field, size_t bytes) {
  if (bytes <= kMaxPromptBytes) return absl::OkStatus();
  return FieldError(field, Cat(bytes, " bytes, at most ", kMaxPromptBytes, " are taken"));
}

absl::StatusOr<Prompt> TextOf(const std::string& text, bool parse_special) {
  const absl::Status status = CheckBytes("text", text.size());
  if (!status.ok()) return status;
  return Prompt(TextPrompt{text, parse_special});
}

absl::StatusOr<Prompt> TokensOf(const v1::TokenIds& tokens) {
  if (tokens.ids().empty()) return FieldError("tokens.ids", "empty");
  return Prompt(std::vector<TokenId>(tokens.ids().begin(), tokens.ids().end()));
}

absl::StatusOr<Prompt> MessagesOf(const v1::Messages& messages) {
  if (messages.messages().empty()) return FieldError("messages.messages", "empty");
  if (messages.messages_size() > kMaxMessages) {
    return FieldError("messages.messages", Cat(messages.messages_size(), " messages, at most ",
                                               kMaxMessages, " are taken"));
  }
  std::vector<Message> out;
  out.reserve(static_cast<size_t>(messages.messages_size()));
  size_t bytes = 0;
  for (int i = 0; i < messages.messages_size(); ++i) {
    const v1::Message& message = messages.messages(i);
    MessageRole role = MessageRole::kUser;
    switch (message.role()) {
      case v1::ROLE_SYSTEM:
        role = MessageRole::kSystem;
        break;
      case v1::ROLE_USER:
        role = MessageRole::kUser;
        break;
      case v1::ROLE_ASSISTANT:
        role = MessageRole::kAssistant;
        break;
      default:
        return FieldError(Cat("messages.messages[", i, "].role"),
                          Cat(static_cast<int>(message.role()),
                              " is not one of ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT"));
    }
    bytes += message.content().size();
    out.push_back({role, message.content()});
  }
  const absl::Status status = CheckBytes("messages", bytes);
  if (!status.ok()) return status;
  return Prompt(std::move(out));
}

// Fields of SamplingParams and of the request, as the engine's messages name them; a longer name
// stands before its own ending.
constexpr std::array<std::string_view, 17> kEngineFields = {
    "temperature",        "top_k",          "top_p",
    "min_p",              "presence_penalty", "frequency_penalty",
    "repetition_penalty", "seed",           "logit_bias",
    "max_tokens",         "stop_token_ids", "stop",
    "ignore_eos",         "top_logprobs",   "logprobs",
    "priority",           "tokens"};

bool IsWordCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

// Where `word` stands in `text` as a whole word; npos when nowhere.
size_t FindWord(std::string_view text, std::string_view word) {
  for (size_t at = text.find(word); at != text.npos; at = text.find(word, at + 1)) {
    const size_t end = at + word.size();
    if ((at == 0 || !IsWordCharacter(text[at - 1])) &&
        (end == text.size() || !IsWordCharacter(text[end]))) {
      return at;
    }
  }
  return text.npos;
}

}  // namespace

absl::Status CheckGenerateRequest(const v1::GenerateRequest& request) {
  if (request.has_grammar()) return NotBuilt("grammar");
  if (!request.tools().empty()) return NotBuilt("tools");
  if (request.adapter().size() > kMaxAdapterNameBytes) {
    return FieldError("adapter", Cat(request.adapter().size(), " bytes, at most ",
                                     kMaxAdapterNameBytes, " are taken"));
  }
  if (request.priority() < kMinPriority || request.priority() > kMaxPriority) {
    return FieldError("priority", Cat(request.priority(), " is outside [", kMinPriority, ", ",
                                      kMaxPriority, "]"));
  }
  if (!v1::Speculation_IsValid(request.speculation())) {
    return FieldError("speculation", Cat(request.speculation(), " is none of the known values"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Prompt> PromptOf(const v1::GenerateRequest& request) {
  switch (request.input_case()) {
    case v1::GenerateRequest::kText:
      return TextOf(request.text(), request.parse_special());
    case v1::GenerateRequest::kTokens:
      return TokensOf(request.tokens());
    case v1::GenerateRequest::kMessages:
      return MessagesOf(request.messages());
    case v1::GenerateRequest::INPUT_NOT_SET:
      break;
  }
  return FieldError("input", "one of text, tokens and messages is wanted");
}

absl::StatusOr<Prompt> PromptOf(const v1::TokenizeRequest& request) {
  switch (request.input_case()) {
    case v1::TokenizeRequest::kText:
      return TextOf(request.text(), request.parse_special());
    case v1::TokenizeRequest::kMessages:
      return MessagesOf(request.messages());
    case v1::TokenizeRequest::INPUT_NOT_SET:
      break;
  }
  return FieldError("input", "one of text and messages is wanted");
}

absl::StatusOr<Prompt> PromptOf(const v1::ScoreRequest& request) {
  switch (request.input_case()) {
    case v1::ScoreRequest::kText:
      return TextOf(request.text(), request.parse_special());
    case v1::ScoreRequest::kTokens:
      return TokensOf(request.tokens());
    case v1::ScoreRequest::INPUT_NOT_SET:
      break;
  }
  return FieldError("input", "one of text and tokens is wanted");
}

SamplingParams SamplingOf(const v1::SamplingParams& sampling) {
  SamplingParams out;
  if (sampling.has_temperature()) out.temperature = sampling.temperature();
  if (sampling.has_top_k()) out.top_k = sampling.top_k();
  if (sampling.has_top_p()) out.top_p = sampling.top_p();
  if (sampling.has_min_p()) out.min_p = sampling.min_p();
  if (sampling.has_presence_penalty()) out.presence_penalty = sampling.presence_penalty();
  if (sampling.has_frequency_penalty()) out.frequency_penalty = sampling.frequency_penalty();
  if (sampling.has_repetition_penalty()) out.repetition_penalty = sampling.repetition_penalty();
  if (sampling.has_seed()) out.seed = sampling.seed();
  out.logit_bias.assign(sampling.logit_bias().begin(), sampling.logit_bias().end());
  if (sampling.has_max_tokens()) out.max_tokens = sampling.max_tokens();
  out.stop.assign(sampling.stop().begin(), sampling.stop().end());
  out.stop_token_ids.assign(sampling.stop_token_ids().begin(), sampling.stop_token_ids().end());
  if (sampling.has_ignore_eos()) out.ignore_eos = sampling.ignore_eos();
  if (sampling.has_logprobs()) out.logprobs = sampling.logprobs();
  if (sampling.has_top_logprobs()) out.top_logprobs = sampling.top_logprobs();
  return out;
}

absl::Status WithEngineDetails(const absl::Status& status) {
  if (absl::IsOutOfRange(status)) return WithReason(status, "CONTEXT_OVERFLOW");
  if (absl::IsResourceExhausted(status)) return WithReason(status, "QUEUE_FULL");
  if (absl::IsUnavailable(status)) return WithReason(status, "DRAINING");
  if (!absl::IsInvalidArgument(status) || !FieldOf(status).empty()) return status;
  const std::string_view message = Std(status.message());
  std::string_view field;
  size_t first = message.npos;
  for (const std::string_view candidate : kEngineFields) {
    const size_t at = FindWord(message, candidate);
    if (at < first) {
      first = at;
      field = candidate;
    }
  }
  if (field.empty()) return status;
  const bool of_request = field == "priority" || field == "tokens";
  return WithReason(WithField(status, Cat(of_request ? "" : "sampling.", field)),
                    "INVALID_FIELD");
}

Speculation SpeculationOf(v1::Speculation speculation) {
  switch (speculation) {
    case v1::SPECULATION_OFF:
      return Speculation::kOff;
    case v1::SPECULATION_NGRAM:
      return Speculation::kNgram;
    case v1::SPECULATION_DRAFT_MODEL:
      return Speculation::kDraftModel;
    default:
      return Speculation::kDefault;
  }
}

v1::FinishReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

void ToProto(const TokenInfo& token, v1::TokenLogprob* out) {
  out->set_token_id(token.id);
  out->set_logprob(token.logprob);
  out->set_token(token.bytes);
  for (const TopLogprob& top : token.top) {
    v1::TopLogprob* added = out->add_top();
    added->set_token_id(top.id);
    added->set_logprob(top.logprob);
    added->set_token(top.bytes);
  }
}

void ToProto(const Chunk& chunk, bool logprobs, bool features, v1::GenerateChunk* out) {
  out->set_text(chunk.text);
  out->mutable_token_ids()->Reserve(static_cast<int>(chunk.tokens.size()));
  for (const TokenInfo& token : chunk.tokens) {
    out->add_token_ids(token.id);
    if (logprobs) ToProto(token, out->add_logprobs());
    if (features) {
      v1::TokenFeatures* added = out->add_features();
      added->set_logprob(token.logprob);
      added->set_margin(token.margin);
      added->set_entropy(token.entropy);
    }
  }
}

void MergeChunk(v1::GenerateChunk&& next, v1::GenerateChunk* chunk) {
  chunk->mutable_text()->append(next.text());
  chunk->mutable_token_ids()->MergeFrom(next.token_ids());
  for (auto& logprob : *next.mutable_logprobs()) *chunk->add_logprobs() = std::move(logprob);
  for (auto& feature : *next.mutable_features()) *chunk->add_features() = std::move(feature);
}

void ToProto(const Receipt& receipt, v1::Receipt* out) {
  out->set_model_digest(receipt.model_digest);
  out->set_template_digest(receipt.template_digest);
  out->set_kernel_digest(receipt.kernel_digest);
  out->set_kernel_configuration(receipt.kernel_configuration);
  out->set_seed(receipt.seed);
  out->set_adapter_digest(receipt.adapter_digest);
}

void ToProto(const Completion& completion, v1::GenerateComplete* out) {
  out->set_finish_reason(ToProto(completion.finish_reason));
  // A stop string may have been given in bytes that are no text on their own.
  out->set_matched_stop(ToValidUtf8(completion.matched_stop));
  out->mutable_usage()->set_prompt_tokens(completion.usage.prompt_tokens);
  out->mutable_usage()->set_completion_tokens(completion.usage.completion_tokens);
  out->mutable_usage()->set_cached_tokens(completion.usage.cached_tokens);
  v1::Timings* timings = out->mutable_timings();
  timings->set_queue_seconds(completion.timings.queue);
  timings->set_prefill_seconds(completion.timings.prefill);
  timings->set_decode_seconds(completion.timings.decode);
  timings->set_time_to_first_token_seconds(completion.timings.time_to_first_token);
  v1::SpeculationStats* speculation = out->mutable_speculation();
  speculation->set_drafts(completion.speculation.drafts);
  speculation->set_drafted_tokens(completion.speculation.drafted_tokens);
  speculation->set_accepted_tokens(completion.speculation.accepted_tokens);
  for (const int32_t accepted : completion.speculation.accepted_per_position) {
    speculation->add_accepted_per_position(accepted);
  }
  out->set_layers_skipped(completion.layers_skipped);
  ToProto(completion.receipt, out->mutable_receipt());
  out->mutable_prompt_token_ids()->Assign(completion.prompt_tokens.begin(),
                                          completion.prompt_tokens.end());
}

void ToProto(const ModelDescription& model, v1::ModelDescription* out) {
  out->set_id(ToValidUtf8(model.id));
  out->set_architecture(ToValidUtf8(model.architecture));
  out->set_digest(model.digest);
  out->set_file_bytes(model.file_bytes);
  out->set_parameters(model.parameters);
  out->set_context_length(model.context_length);
  out->set_vocabulary_size(model.vocabulary_size);
  out->set_layers(model.layers);
  out->set_embedding_length(model.embedding_length);
  out->set_chat_template(model.chat_template);
  out->set_quantization(model.quantization);
  out->set_created(model.created);
}

}  // namespace cogumi::services
