// `cogumi tokenize TEXT`.
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "cogumi/engine.h"
#include "engine/core/status_macros.h"
#include "services/cli/json.h"
#include "services/cli/paths.h"
#include "services/cli/verbs.h"
#include "services/common/logging.h"

namespace cogumi::cli {
namespace {

class TokenizeVerb : public Verb {
 public:
  TokenizeVerb() : Verb("tokenize", "[MODEL] TEXT", "Prints the tokens of a text.", 1, 2) {
    options_.Bool("special", &special_, "special tokens written in the text become those tokens")
        .Bool("chat", &chat_, "as a user's message in the chat template");
  }

  absl::StatusOr<int> Run() override {
    ASSIGN_OR_RETURN(const ModelFile file,
                     FindModel(positionals_.size() == 2 ? positionals_[0] : ""));
    EngineOptions options;
    options.model_path = file.path;
    ASSIGN_OR_RETURN(const auto engine, Engine::Create(options));
    const std::string& text = positionals_.back();
    const Prompt prompt = chat_ ? Prompt(std::vector<Message>{{MessageRole::kUser, text}})
                                : Prompt(TextPrompt{text, special_});
    ASSIGN_OR_RETURN(const TokenizedPrompt tokens, engine->Tokenize(prompt));
    JsonArray pieces;
    for (const TokenId id : tokens.tokens) {
      ASSIGN_OR_RETURN(const std::string piece, engine->Detokenize({id}, /*special=*/true));
      if (json()) {
        pieces.Add(piece);
      } else {
        std::printf("%8d  %s\n", id, services::JsonString(piece).c_str());
      }
    }
    if (json()) {
      std::puts(JsonObject()
                    .Add("ids", tokens.tokens)
                    .Add("pieces", pieces)
                    .Add("dropped_bytes", tokens.dropped_bytes)
                    .str()
                    .c_str());
    } else {
      std::printf("%zu tokens%s\n", tokens.tokens.size(),
                  tokens.dropped_bytes == 0
                      ? ""
                      : absl::StrCat(", ", tokens.dropped_bytes, " bytes have no token").c_str());
    }
    return kExitOk;
  }

 private:
  bool special_ = false;
  bool chat_ = false;
};

}  // namespace

std::unique_ptr<Verb> MakeTokenizeVerb() { return std::make_unique<TokenizeVerb>(); }

}  // namespace cogumi::cli
