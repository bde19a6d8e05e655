#include "engine/tokenizer/chat_template.h"

#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "engine/core/sha256.h"
#include "engine/core/status_macros.h"
#include "engine/io/gguf.h"
#include "engine/io/message.h"

namespace cogumi {
namespace {

constexpr std::string_view kTemplateKey = "tokenizer.chat_template";
constexpr std::string_view kChatMl = "chatml";
constexpr std::string_view kLlama3 = "llama3";

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
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

// Text inside a Jinja string literal, its escapes resolved; nullopt when it is not plain text (the
// literal ends in it, or an expression begins).
std::optional<std::string> PlainLiteral(std::string_view raw) {
  if (Contains(raw, "{{") || Contains(raw, "{%") || Contains(raw, "{#") ||
      Contains(raw, "' +") || Contains(raw, "\" +") || Contains(raw, "}}") ||
      Contains(raw, "%}")) {
    return std::nullopt;
  }
  std::string text;
  for (size_t i = 0; i < raw.size(); ++i) {
    if (raw[i] == '\\' && i + 1 < raw.size()) {
      ++i;
      text.push_back(raw[i] == 'n' ? '\n' : raw[i] == 't' ? '\t' : raw[i]);
    } else {
      text.push_back(raw[i]);
    }
  }
  return text;
}

// The literal text between `prefix` and `end` wherever the template spells it out; `prefix` is
// followed by a line break, written as such or as \n.
std::optional<std::string> LiteralBetween(std::string_view source, std::string_view prefix,
                                          std::string_view end) {
  for (size_t at = source.find(prefix); at != std::string_view::npos;
       at = source.find(prefix, at + 1)) {
    std::string_view rest = source.substr(at + prefix.size());
    size_t skip = 0;
    while (rest.substr(skip, 1) == "\n" || rest.substr(skip, 2) == "\\n") {
      skip += rest[skip] == '\n' ? 1 : 2;
    }
    if (skip == 0) continue;
    rest.remove_prefix(skip);
    const size_t stop = rest.find(end);
    if (stop == std::string_view::npos) continue;
    if (auto text = PlainLiteral(rest.substr(0, stop)); text.has_value() && !text->empty()) {
      return text;
    }
  }
  return std::nullopt;
}

// Puts together control tokens and plain text. Text between two control tokens is encoded as one
// piece, as it is when the rendered template is tokenised whole.
class Writer {
 public:
  Writer(const Tokenizer& tokenizer, std::string_view template_name)
      : tokenizer_(tokenizer), template_name_(template_name) {}

  absl::Status Marker(std::string_view name) {
    Flush();
    const TokenId id = tokenizer_.FindToken(name);
    if (id < 0 || !tokenizer_.IsControl(id)) {
      return absl::FailedPreconditionError(Cat("chat template ", template_name_,
                                               ": the model has no control token ", name));
    }
    out_.ids.push_back(id);
    return absl::OkStatus();
  }

  void Text(std::string_view text) { pending_.append(text); }

  Tokenizer::Encoded Finish() {
    Flush();
    return std::move(out_);
  }

 private:
  void Flush() {
    if (pending_.empty()) return;
    const Tokenizer::Encoded encoded = tokenizer_.Encode(pending_, false);
    out_.ids.insert(out_.ids.end(), encoded.ids.begin(), encoded.ids.end());
    out_.dropped_bytes += encoded.dropped_bytes;
    pending_.clear();
  }

  const Tokenizer& tokenizer_;
  std::string_view template_name_;
  std::string pending_;
  Tokenizer::Encoded out_;
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

class TemplateBase : public ChatTemplate {
 public:
  TemplateBase(std::string_view name, std::string digest)
      : name_(name), digest_(std::move(digest)) {}
  std::string_view name() const override { return name_; }
  const std::string& digest() const override { return digest_; }

 private:
  std::string_view name_;
  std::string digest_;
};

// <|im_start|>ROLE\nCONTENT<|im_end|>\n for every message.
class ChatMl : public TemplateBase {
 public:
  ChatMl(std::string_view source, std::string digest)
      : TemplateBase(kChatMl, std::move(digest)),
        default_system_(LiteralBetween(source, "<|im_start|>system", "<|im_end|>")),
        trim_(Contains(source, "| trim") || Contains(source, "|trim")) {}

  absl::StatusOr<Tokenizer::Encoded> Render(const std::vector<Message>& messages,
                                            const Tokenizer& tokenizer) const override {
    RETURN_IF_ERROR(CheckMessages(messages));
    Writer writer(tokenizer, name());
    if (messages[0].role != MessageRole::kSystem && default_system_.has_value()) {
      RETURN_IF_ERROR(Put(MessageRole::kSystem, *default_system_, &writer));
    }
    for (const Message& message : messages) {
      RETURN_IF_ERROR(
          Put(message.role, trim_ ? Trimmed(message.content) : message.content, &writer));
    }
    RETURN_IF_ERROR(writer.Marker("<|im_start|>"));
    writer.Text("assistant\n");
    return writer.Finish();
  }

 private:
  static absl::Status Put(MessageRole role, std::string_view content, Writer* writer) {
    RETURN_IF_ERROR(writer->Marker("<|im_start|>"));
    writer->Text(RoleName(role));
    writer->Text("\n");
    writer->Text(content);
    RETURN_IF_ERROR(writer->Marker("<|im_end|>"));
    writer->Text("\n");
    return absl::OkStatus();
  }

  std::optional<std::string> default_system_;
  bool trim_;
};

// <|start_header_id|>ROLE<|end_header_id|>\n\nCONTENT<|eot_id|> for every message, after the
// beginning of the text. Llama 3.1's adds two dates to the system message, which is then always
// there.
class Llama3 : public TemplateBase {
 public:
  Llama3(std::string_view source, std::string digest) : TemplateBase(kLlama3, std::move(digest)) {
    if (!Contains(source, "Cutting Knowledge Date: December 2023")) return;
    // The date that the template falls back to, rather than today's: the same prompt then always
    // has the same tokens.
    constexpr std::string_view kDate = "date_string = \"";
    std::string_view date = "26 Jul 2024";
    for (size_t at = source.find(kDate); at != std::string_view::npos;
         at = source.find(kDate, at + 1)) {
      const std::string_view rest = source.substr(at + kDate.size());
      date = rest.substr(0, rest.find('"'));
    }
    system_preamble_ = Cat("Cutting Knowledge Date: December 2023\nToday Date: ", date, "\n\n");
  }

  absl::StatusOr<Tokenizer::Encoded> Render(const std::vector<Message>& messages,
                                            const Tokenizer& tokenizer) const override {
    RETURN_IF_ERROR(CheckMessages(messages));
    Writer writer(tokenizer, name());
    RETURN_IF_ERROR(writer.Marker("<|begin_of_text|>"));
    if (messages[0].role != MessageRole::kSystem && !system_preamble_.empty()) {
      RETURN_IF_ERROR(Put(MessageRole::kSystem, "", &writer));
    }
    for (const Message& message : messages) {
      RETURN_IF_ERROR(Put(message.role, message.content, &writer));
    }
    RETURN_IF_ERROR(Header(MessageRole::kAssistant, &writer));
    return writer.Finish();
  }

 private:
  static absl::Status Header(MessageRole role, Writer* writer) {
    RETURN_IF_ERROR(writer->Marker("<|start_header_id|>"));
    writer->Text(RoleName(role));
    RETURN_IF_ERROR(writer->Marker("<|end_header_id|>"));
    writer->Text("\n\n");
    return absl::OkStatus();
  }

  absl::Status Put(MessageRole role, std::string_view content, Writer* writer) const {
    RETURN_IF_ERROR(Header(role, writer));
    if (role == MessageRole::kSystem) writer->Text(system_preamble_);
    writer->Text(Trimmed(content));
    return writer->Marker("<|eot_id|>");
  }

  std::string system_preamble_;
};

class UnknownTemplate : public TemplateBase {
 public:
  UnknownTemplate(std::string reason, std::string digest)
      : TemplateBase("", std::move(digest)), reason_(std::move(reason)) {}

  absl::StatusOr<Tokenizer::Encoded> Render(const std::vector<Message>& /*messages*/,
                                            const Tokenizer& /*tokenizer*/) const override {
    return absl::FailedPreconditionError(
        Cat(reason_, "; choose one with --chat-template chatml or --chat-template llama3, or send "
                     "the prompt as text"));
  }

 private:
  std::string reason_;
};

// The fingerprint: all markers of a family, the loop over messages, and the generation prompt. A
// template with tools or more beside that still belongs to its family; conversations of system,
// user and assistant messages render the same.
std::string_view Recognise(std::string_view source) {
  const bool loops = Contains(source, "messages") && Contains(source, "role") &&
                     Contains(source, "content") && Contains(source, "add_generation_prompt");
  if (!loops) return "";
  const bool chatml = Contains(source, "<|im_start|>") && Contains(source, "<|im_end|>") &&
                      !Contains(source, "<|im_sep|>") && Contains(source, "<|im_start|>assistant");
  const bool llama3 = Contains(source, "<|start_header_id|>") &&
                      Contains(source, "<|end_header_id|>") && Contains(source, "<|eot_id|>");
  if (chatml == llama3) return "";
  return chatml ? kChatMl : kLlama3;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Create(
    const GgufFile& file, const std::string& override_name) {
  std::string_view source;
  if (file.Has(kTemplateKey)) {
    ASSIGN_OR_RETURN(source, file.GetString(kTemplateKey));
  }
  std::string_view name = Recognise(source);
  if (!override_name.empty()) {
    if (override_name != kChatMl && override_name != kLlama3) {
      return absl::InvalidArgumentError(Cat("chat template \"", override_name,
                                            "\" is unknown; known are chatml and llama3"));
    }
    // The file's own text still tells the default system message when it is of that family.
    if (override_name != name) source = {};
    name = override_name == kChatMl ? kChatMl : kLlama3;
  }
  std::string digest =
      source.empty() && name.empty() ? "" : Sha256::Hex(source.empty() ? name : source);
  if (name == kChatMl) return std::make_unique<ChatMl>(source, std::move(digest));
  if (name == kLlama3) return std::make_unique<Llama3>(source, std::move(digest));
  return std::make_unique<UnknownTemplate>(
      Cat(file.path(), source.empty() ? " has no chat template"
                                      : " has a chat template that is not known here"),
      std::move(digest));
}

}  // namespace cogumi
