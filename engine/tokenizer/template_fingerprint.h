// Recognises the chat template of a model by its Jinja text, without executing it.
//
// The template is brought into one spelling (canonical_jinja.h) and searched for what must be there
// to the letter, white space and line breaks of the output included: how one message is written,
// and that the template ends in the empty header of the answer. Templates that open a system
// message of their own in another way, write the beginning-of-sequence token anywhere but first, or
// put thoughts into the answer, are not recognised, because they would be rendered wrongly.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace cogumi {

enum class TemplateFamily { kUnknown, kChatMl, kLlama3 };

struct TemplateFingerprint {
  TemplateFamily family = TemplateFamily::kUnknown;
  bool bos = false;   // the beginning-of-sequence token comes first
  bool trim = false;  // white space around contents is taken away
  // ChatML: the system message that is put first when the conversation has none.
  std::optional<std::string> default_system;
  // Llama 3.1: what stands in front of every system message, which then is always there.
  std::string system_preamble;
};

TemplateFingerprint RecogniseTemplate(std::string_view source);

}  // namespace cogumi
