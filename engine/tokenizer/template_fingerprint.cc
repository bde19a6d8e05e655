#include "engine/tokenizer/template_fingerprint.h"

#include "engine/io/message.h"
#include "engine/tokenizer/canonical_jinja.h"

namespace cogumi {
namespace {

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

size_t Count(std::string_view text, std::string_view part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + 1)) {
    ++count;
  }
  return count;
}

// True when an output or a variable is exactly `expression`.
bool Writes(std::string_view canonical, std::string_view expression) {
  return Contains(canonical, Cat("{{", expression, "}}")) ||
         Contains(canonical, Cat("=", expression, "%}"));
}

// True when the template ends in `header`.
bool EndsInHeader(std::string_view canonical, std::string_view header) {
  constexpr std::string_view kEndIf = "{%endif%}";
  if (canonical.ends_with(kEndIf)) canonical.remove_suffix(kEndIf.size());
  return canonical.ends_with(Cat("{{'", header, "'}}"));
}

// Where the beginning-of-sequence token is written; nullopt when not as the first of all.
std::optional<bool> WritesBos(std::string_view canonical) {
  constexpr std::string_view kBos = "bos_token";
  const size_t count = Count(canonical, kBos);
  if (count == 0) return false;
  if (count > 1) return std::nullopt;
  for (const std::string_view first :
       {"{%if loop.index0==0%}{%set content=bos_token+content%}{%endif%}",
        "{%if loop.first%}{{bos_token}}{%endif%}"}) {
    if (Contains(canonical, first)) return true;
  }
  // Before anything else is written, and not under a condition.
  const size_t at = canonical.find("{{");
  const std::string_view before = canonical.substr(0, at);
  if (at == std::string_view::npos || Contains(before, "{%for ") ||
      Count(before, "{%if ") != Count(before, "{%endif%}")) {
    return std::nullopt;
  }
  const std::string_view rest = canonical.substr(at + 2);
  if (!rest.starts_with(kBos)) return std::nullopt;
  const std::string_view next = rest.substr(kBos.size());
  if (next.starts_with("}}") || next.starts_with("+")) return true;
  return std::nullopt;
}

constexpr std::string_view kChatMlSystem = "'<|im_start|>system";

// The system message that the template spells out between its markers.
std::optional<std::string> FindDefaultSystem(std::string_view canonical) {
  constexpr std::string_view kEnd = "<|im_end|>\n";
  const std::string start = Cat(kChatMlSystem, "\n");
  for (size_t at = canonical.find(start); at != std::string_view::npos;
       at = canonical.find(start, at + 1)) {
    std::string_view literal = canonical.substr(at + start.size());
    literal = literal.substr(0, literal.find('\''));
    const size_t end = literal.find(kEnd);
    if (end != std::string_view::npos) return LiteralText(literal.substr(0, end));
  }
  return std::nullopt;
}

// True when a system message is written in another way than any message: with other white space, or
// filled piece by piece, other than for tools.
bool ComposesSystem(std::string_view canonical) {
  constexpr std::string_view kForTools = "{%if tools%}{{";
  for (size_t at = canonical.find(kChatMlSystem); at != std::string_view::npos;
       at = canonical.find(kChatMlSystem, at + 1)) {
    if (canonical.substr(0, at).ends_with(kForTools)) continue;
    std::string_view rest = canonical.substr(at + kChatMlSystem.size());
    rest = rest.substr(0, rest.find("}}"));
    if (!rest.starts_with("\n") || !Contains(rest, "<|im_end|>\n")) return true;
  }
  return false;
}

// How one message is written; with trim when white space around its content is taken away.
bool WritesChatMl(std::string_view canonical, bool trim) {
  return Writes(canonical, Cat("'<|im_start|>'+message.role+'\n'+message.content",
                               trim ? "|trim" : "", "+'<|im_end|>\n'"));
}

bool IsChatMl(std::string_view canonical) {
  return (WritesChatMl(canonical, false) || WritesChatMl(canonical, true)) &&
         EndsInHeader(canonical, "<|im_start|>assistant\n") && !ComposesSystem(canonical) &&
         !Contains(canonical, "<think>");
}

constexpr std::string_view kLlama3System = "<|start_header_id|>system<|end_header_id|>";
constexpr std::string_view kLlama31Dates =
    "Cutting Knowledge Date: December 2023\nToday Date: '+date_string+'\n\n'";

bool IsLlama3(std::string_view canonical) {
  const bool plain_system = !Contains(canonical, kLlama3System);
  return Writes(canonical,
                "'<|start_header_id|>'+message.role+'<|end_header_id|>\n\n'+message.content|trim+"
                "'<|eot_id|>'") &&
         (plain_system || (Contains(canonical, Cat(kLlama3System, "\n\n")) &&
                           Contains(canonical, kLlama31Dates))) &&
         EndsInHeader(canonical, "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

// Llama 3.1's dates. Today's is the one that the template falls back to, not the calendar's: the
// same prompt then always has the same tokens.
std::string Llama31Preamble(std::string_view canonical) {
  constexpr std::string_view kSet = "{%set date_string='";
  std::string date = "26 Jul 2024";
  if (const size_t at = canonical.find(kSet); at != std::string_view::npos) {
    const std::string_view rest = canonical.substr(at + kSet.size());
    date = LiteralText(rest.substr(0, rest.find('\'')));
  }
  return Cat("Cutting Knowledge Date: December 2023\nToday Date: ", date, "\n\n");
}

}  // namespace

TemplateFingerprint RecogniseTemplate(std::string_view source) {
  TemplateFingerprint found;
  const std::string canonical = CanonicalJinja(source);
  const std::optional<bool> bos = WritesBos(canonical);
  if (!bos.has_value()) return found;
  found.bos = *bos;
  if (IsChatMl(canonical)) {
    found.family = TemplateFamily::kChatMl;
    found.trim = WritesChatMl(canonical, true);
    found.default_system = FindDefaultSystem(canonical);
  } else if (IsLlama3(canonical)) {
    found.family = TemplateFamily::kLlama3;
    found.trim = true;
    if (Contains(canonical, kLlama31Dates)) found.system_preamble = Llama31Preamble(canonical);
  }
  return found;
}

}  // namespace cogumi
