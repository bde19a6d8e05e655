#include "engine/tokenizer/chat_template.h"

#include <utility>

#include "absl/status/status.h"
#include "engine/core/sha256.h"
#include "engine/core/status_macros.h"
#include "engine/io/gguf.h"
#include "engine/io/message.h"
#include "engine/tokenizer/template_fingerprint.h"

namespace cogumi {
namespace {

constexpr std::string_view kTemplateKey = "tokenizer.chat_template";
constexpr std::string_view kChatMl = "chatml";
constexpr std::string_view kLlama3 = "llama3";

std::string_view FamilyName(TemplateFamily family) {
  switch (family) {
    case TemplateFamily::kChatMl:
      return kChatMl;
    case TemplateFamily::kLlama3:
      return kLlama3;
    case TemplateFamily::kUnknown:
      break;
  }
  return "";
}

std::string_view RoleName(MessageRole role) {
  switch (role) {
    case MessageRole::kSystem:
      return "system";
    case MessageRole::kUser:
      return "user";
    case MessageRole::kAssistant:
      break;
  }
  return "assistant";
}

std::string_view Trimmed(std::string_view text) {
  constexpr std::string_view kWhiteSpace = " \t\r\n\v\f";
  const size_t first = text.find_first_not_of(kWhiteSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kWhiteSpace) - first + 1);
}

// Puts together control tokens and plain text. Text of one role between two control tokens is
// encoded as one piece, as it is when the rendered template is tokenised whole.
class Writer {
 public:
  Writer(const Tokenizer& tokenizer, std::string_view template_name)
      : tokenizer_(tokenizer), template_name_(template_name) {}

  absl::Status Marker(std::string_view name) {
    const TokenId id = tokenizer_.FindToken(name);
    if (id < 0 || !tokenizer_.IsControl(id)) {
      return absl::FailedPreconditionError(
          Cat("chat template ", template_name_, ": the model has no control token ", name));
    }
    Flush(TokenRole::kPrompt);
    Add(id, TokenRole::kPrompt);
    return absl::OkStatus();
  }

  // Nothing for a model without that token.
  void BeginningOfSequence() {
    if (tokenizer_.bos() >= 0) Add(tokenizer_.bos(), TokenRole::kPrompt);
  }

  void Text(std::string_view text) { pending_.append(text); }

  // Generation began at the end of a header, so nothing may merge across it.
  void Answer(std::string_view text) {
    Flush(TokenRole::kPrompt);
    Text(text);
    Flush(TokenRole::kGenerated);
  }

  ChatTemplate::Rendered Finish() {
    Flush(TokenRole::kPrompt);
    return std::move(out_);
  }

 private:
  void Flush(TokenRole role) {
    if (pending_.empty()) return;
    const Tokenizer::Encoded encoded = tokenizer_.Encode(pending_, false);
    for (const TokenId id : encoded.ids) Add(id, role);
    out_.dropped_bytes += encoded.dropped_bytes;
    pending_.clear();
  }

  void Add(TokenId id, TokenRole role) {
    out_.ids.push_back(id);
    out_.roles.push_back(role);
  }

  const Tokenizer& tokenizer_;
  std::string_view template_name_;
  std::string pending_;
  ChatTemplate::Rendered out_;
};

absl::Status CheckMessages(const std::vector<Message>& messages) {
  if (messages.empty()) return absl::InvalidArgumentError("messages: there is none");
  for (size_t i = 1; i < messages.size(); ++i) {
    if (messages[i].role == MessageRole::kSystem) {
      return absl::InvalidArgumentError(
          Cat("messages[", i, "]: a system message can only be the first"));
    }
  }
  if (messages.back().role != MessageRole::kUser) {
    return absl::InvalidArgumentError(Cat("messages[", messages.size() - 1,
                                          "]: the last message must be the user's, not the ",
                                          RoleName(messages.back().role), "'s"));
  }
  return absl::OkStatus();
}

class KnownTemplate : public ChatTemplate {
 public:
  KnownTemplate(TemplateFingerprint fingerprint, std::string digest)
      : fingerprint_(std::move(fingerprint)), digest_(std::move(digest)) {}

  absl::StatusOr<Rendered> Render(const std::vector<Message>& messages,
                                  const Tokenizer& tokenizer) const override {
    RETURN_IF_ERROR(CheckMessages(messages));
    Writer writer(tokenizer, name());
    if (fingerprint_.bos) writer.BeginningOfSequence();
    if (messages[0].role != MessageRole::kSystem) {
      if (fingerprint_.default_system.has_value()) {
        RETURN_IF_ERROR(Put(MessageRole::kSystem, *fingerprint_.default_system, &writer));
      } else if (!fingerprint_.system_preamble.empty()) {
        RETURN_IF_ERROR(Put(MessageRole::kSystem, "", &writer));
      }
    }
    for (const Message& message : messages) {
      RETURN_IF_ERROR(Put(message.role,
                          fingerprint_.trim ? Trimmed(message.content) : message.content, &writer));
    }
    RETURN_IF_ERROR(Header(MessageRole::kAssistant, &writer));
    return writer.Finish();
  }

  std::string_view name() const override { return FamilyName(fingerprint_.family); }
  const std::string& digest() const override { return digest_; }

 private:
  absl::Status Header(MessageRole role, Writer* writer) const {
    if (fingerprint_.family == TemplateFamily::kChatMl) {  // <|im_start|>ROLE\n
      RETURN_IF_ERROR(writer->Marker("<|im_start|>"));
      writer->Text(RoleName(role));
      writer->Text("\n");
      return absl::OkStatus();
    }
    // <|start_header_id|>ROLE<|end_header_id|>\n\n
    RETURN_IF_ERROR(writer->Marker("<|start_header_id|>"));
    writer->Text(RoleName(role));
    RETURN_IF_ERROR(writer->Marker("<|end_header_id|>"));
    writer->Text("\n\n");
    return absl::OkStatus();
  }

  absl::Status Put(MessageRole role, std::string_view content, Writer* writer) const {
    RETURN_IF_ERROR(Header(role, writer));
    if (role == MessageRole::kSystem) writer->Text(fingerprint_.system_preamble);
    if (role == MessageRole::kAssistant) {
      writer->Answer(content);
    } else {
      writer->Text(content);
    }
    if (fingerprint_.family == TemplateFamily::kLlama3) return writer->Marker("<|eot_id|>");
    RETURN_IF_ERROR(writer->Marker("<|im_end|>"));
    writer->Text("\n");
    return absl::OkStatus();
  }

  const TemplateFingerprint fingerprint_;
  const std::string digest_;
};

class UnknownTemplate : public ChatTemplate {
 public:
  UnknownTemplate(std::string reason, std::string digest)
      : reason_(std::move(reason)), digest_(std::move(digest)) {}

  absl::StatusOr<Rendered> Render(const std::vector<Message>& /*messages*/,
                                  const Tokenizer& /*tokenizer*/) const override {
    return absl::FailedPreconditionError(
        Cat(reason_,
            "; choose one with --chat-template chatml or --chat-template llama3, or send "
            "the prompt as text"));
  }

  std::string_view name() const override { return ""; }
  const std::string& digest() const override { return digest_; }

 private:
  const std::string reason_;
  const std::string digest_;
};

// A family chosen by name for a file whose own template is not of it.
absl::StatusOr<TemplateFingerprint> PlainFingerprint(std::string_view name) {
  TemplateFingerprint plain;
  if (name == kChatMl) {
    plain.family = TemplateFamily::kChatMl;
  } else if (name == kLlama3) {
    plain.family = TemplateFamily::kLlama3;
    plain.bos = true;
    plain.trim = true;
  } else {
    return absl::InvalidArgumentError(
        Cat("chat template \"", name, "\" is unknown; known are chatml and llama3"));
  }
  return plain;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Create(
    const GgufFile& file, const std::string& override_name) {
  std::string_view source;
  if (file.Has(kTemplateKey)) {
    ASSIGN_OR_RETURN(source, file.GetString(kTemplateKey));
  }
  std::string digest = source.empty() ? "" : Sha256::Hex(source);
  TemplateFingerprint fingerprint = RecogniseTemplate(source);
  if (!override_name.empty() && override_name != FamilyName(fingerprint.family)) {
    ASSIGN_OR_RETURN(fingerprint, PlainFingerprint(override_name));
    digest = Sha256::Hex(override_name);  // not the file's text, so its name stands for it
  }
  if (fingerprint.family != TemplateFamily::kUnknown) {
    return std::make_unique<KnownTemplate>(std::move(fingerprint), std::move(digest));
  }
  return std::make_unique<UnknownTemplate>(
      Cat(file.path(),
          source.empty() ? " has no chat template" : " has a chat template that is not known here"),
      std::move(digest));
}

}  // namespace cogumi
