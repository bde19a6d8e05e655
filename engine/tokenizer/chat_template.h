// Chat templates by fingerprint of the model's own Jinja text; none is executed.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "cogumi/types.h"
#include "engine/tokenizer/tokenizer.h"

namespace cogumi {

class GgufFile;

class ChatTemplate {
 public:
  // `override_name`: "" to recognise the file's tokenizer.chat_template, or "chatml" | "llama3".
  // A model without a recognisable template gets a ChatTemplate with name() == "" whose Render
  // answers FAILED_PRECONDITION saying how to choose one. INVALID_ARGUMENT: unknown override.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Create(const GgufFile& file,
                                                              const std::string& override_name);
  virtual ~ChatTemplate() = default;

  struct Rendered {
    std::vector<TokenId> ids;
    std::vector<TokenRole> roles;  // as many; kGenerated in the contents of assistant's messages
    int32_t dropped_bytes = 0;     // bytes without a token in the vocabulary
  };

  // Tokens of the conversation, ending where the assistant's answer begins. Markers are control
  // tokens; contents are plain text. With no system message first, the template's own default
  // one is put there. An assistant's content is tokenised on its own, as the answer that it was.
  // Errors: INVALID_ARGUMENT (no messages, order, naming the index).
  virtual absl::StatusOr<Rendered> Render(const std::vector<Message>& messages,
                                          const Tokenizer& tokenizer) const = 0;
  virtual std::string_view name() const = 0;
  // SHA-256 of the template text, lower-case hex; of the override's name when the file's own text
  // is not of that family; empty without either.
  virtual const std::string& digest() const = 0;
};

}  // namespace cogumi
