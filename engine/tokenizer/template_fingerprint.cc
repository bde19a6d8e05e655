#include "engine/tokenizer/template_fingerprint.h"

#include <utility>

#include "engine/io/message.h"

namespace cogumi {
namespace {

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

void ReplaceAll(std::string_view from, std::string_view to, std::string* text) {
  std::string result;
  size_t done = 0;
  for (size_t at = text->find(from); at != std::string::npos; at = text->find(from, done)) {
    result.append(*text, done, at - done).append(to);
    done = at + from.size();
  }
  result.append(*text, done);
  *text = std::move(result);
}

// The text without spaces and line breaks (written as such or as \n), in one spelling.
std::string Compact(std::string_view source) {
  std::string text(source);
  for (const std::string_view gap : {" ", "\t", "\r", "\n", "\\n"}) ReplaceAll(gap, "", &text);
  ReplaceAll("\"", "'", &text);
  ReplaceAll("['role']", ".role", &text);
  ReplaceAll("['content']", ".content", &text);
  for (const std::string_view brace : {"{{", "{%"}) ReplaceAll(Cat(brace, "-"), brace, &text);
  for (const std::string_view brace : {"}}", "%}"}) ReplaceAll(Cat("-", brace), brace, &text);
  return text;
}

// True when the compact template ends in `header`, as a string literal or as bare text.
bool EndsInHeader(std::string_view compact, std::string_view header) {
  constexpr std::string_view kEndIf = "{%endif%}";
  if (compact.ends_with(kEndIf)) compact.remove_suffix(kEndIf.size());
  return compact.ends_with(Cat("{{'", header, "'}}")) || compact.ends_with(Cat("%}", header));
}

// Text inside a Jinja string literal, its escapes resolved; nullopt when it is not plain text (the
// literal ends in it, or an expression begins).
std::optional<std::string> PlainLiteral(std::string_view raw) {
  for (const std::string_view code : {"{{", "{%", "{#", "}}", "%}", "' +", "\" +", "'+", "\"+"}) {
    if (Contains(raw, code)) return std::nullopt;
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

// The system message that the template spells out between its markers.
std::optional<std::string> FindDefaultSystem(std::string_view source) {
  constexpr std::string_view kStart = "<|im_start|>system";
  constexpr std::string_view kEnd = "<|im_end|>";
  for (size_t at = source.find(kStart); at != std::string_view::npos;
       at = source.find(kStart, at + 1)) {
    std::string_view rest = source.substr(at + kStart.size());
    if (rest.starts_with("\n")) {
      rest.remove_prefix(1);
    } else if (rest.starts_with("\\n")) {
      rest.remove_prefix(2);
    } else {
      continue;
    }
    const size_t end = rest.find(kEnd);
    if (end == std::string_view::npos) continue;
    if (auto text = PlainLiteral(rest.substr(0, end)); text.has_value()) return text;
  }
  return std::nullopt;
}

// True when a system message is opened and then filled piece by piece, other than for tools.
bool ComposesSystem(std::string_view compact) {
  constexpr std::string_view kOpen = "{{'<|im_start|>system'}}";
  constexpr std::string_view kForTools = "{%iftools%}";
  for (size_t at = compact.find(kOpen); at != std::string_view::npos;
       at = compact.find(kOpen, at + 1)) {
    if (!compact.substr(0, at).ends_with(kForTools)) return true;
  }
  return false;
}

// How one message is written; with trim when white space around its content is taken away.
bool WritesChatMl(std::string_view compact, bool trim) {
  const std::string_view filter = trim ? "|trim" : "";
  return Contains(compact,
                  Cat("<|im_start|>'+message.role+''+message.content", filter, "+'<|im_end|>")) ||
         Contains(compact,
                  Cat("<|im_start|>{{message.role}}{{message.content", filter, "}}<|im_end|>"));
}

bool IsChatMl(std::string_view compact) {
  return (WritesChatMl(compact, false) || WritesChatMl(compact, true)) &&
         EndsInHeader(compact, "<|im_start|>assistant") && !ComposesSystem(compact) &&
         !Contains(compact, "<think>");
}

constexpr std::string_view kLlama3System = "<|start_header_id|>system<|end_header_id|>";
constexpr std::string_view kLlama31Dates =
    "{{'CuttingKnowledgeDate:December2023'}}{{'TodayDate:'+date_string+''}}";

bool IsLlama3(std::string_view compact) {
  const bool writes_messages = Contains(compact,
                                        "'<|start_header_id|>'+message.role+'<|end_header_id|>'+"
                                        "message.content|trim+'<|eot_id|>'");
  const bool plain_system = !Contains(compact, kLlama3System);
  return writes_messages && (plain_system || Contains(compact, kLlama31Dates)) &&
         EndsInHeader(compact, "<|start_header_id|>assistant<|end_header_id|>");
}

// Llama 3.1's dates. Today's is the one that the template falls back to, not the calendar's: the
// same prompt then always has the same tokens.
std::string Llama31Preamble(std::string_view source) {
  std::string_view date = "26 Jul 2024";
  for (const std::string_view set : {"date_string = \"", "date_string = '"}) {
    const size_t at = source.find(set);
    if (at == std::string_view::npos) continue;
    const std::string_view rest = source.substr(at + set.size());
    date = rest.substr(0, rest.find(set.back()));
  }
  return Cat("Cutting Knowledge Date: December 2023\nToday Date: ", date, "\n\n");
}

}  // namespace

TemplateFingerprint RecogniseTemplate(std::string_view source) {
  TemplateFingerprint found;
  const std::string compact = Compact(source);
  found.bos = Contains(compact, "bos_token");
  if (IsChatMl(compact)) {
    found.family = TemplateFamily::kChatMl;
    found.trim = WritesChatMl(compact, true);
    found.default_system = FindDefaultSystem(source);
  } else if (IsLlama3(compact)) {
    found.family = TemplateFamily::kLlama3;
    found.trim = true;
    if (Contains(compact, kLlama31Dates)) found.system_preamble = Llama31Preamble(source);
  }
  return found;
}

}  // namespace cogumi
