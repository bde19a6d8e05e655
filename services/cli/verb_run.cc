// `cogumi run [MODEL] PROMPT`.
#include <unistd.h>

#include <cstdio>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/core/status_macros.h"
#include "services/cli/ask.h"
#include "services/cli/paths.h"
#include "services/cli/verbs.h"

namespace cogumi::cli {
namespace {

class RunVerb : public Verb {
 public:
  RunVerb()
      : Verb("run", "[MODEL] PROMPT",
             "Answers a prompt. Uses the running cluster of this build that serves the model, or\n"
             "starts the four services and stops them afterwards. MODEL is a listed name or\n"
             "a GGUF file; a single argument is the prompt.",
             1, 2) {
    sampling_.Declare(options_);
    options_.String("system", &system_, "system message; absent: the template's own")
        .String("session", &session_, "keep the turn in this session, and go on from it")
        .Bool("raw", &raw_, "the prompt as it is, without the chat template")
        .Choice("speculation", &speculation_, {"", "off", "ngram", "draft_model"},
                "who drafts tokens ahead; empty: the decoder's choice. The answer stays the same")
        .Bool("timings", &timings_, "tokens and times on standard error");
  }

  absl::StatusOr<int> Run() override {
    const bool named = positionals_.size() == 2;
    Question question;
    ASSIGN_OR_RETURN(question.sampling, sampling_.Get());
    question.speculation = speculation_ == "off"           ? Speculation::kOff
                           : speculation_ == "ngram"       ? Speculation::kNgram
                           : speculation_ == "draft_model" ? Speculation::kDraftModel
                                                           : Speculation::kDefault;
    const std::string& prompt = positionals_.back();
    if (prompt.empty()) return UsageError("the prompt is empty");
    if (raw_ && !(system_.empty() && session_.empty())) {
      return UsageError("--raw goes with neither --system nor --session");
    }
    if (raw_) {
      question.raw = prompt;
    } else {
      if (!system_.empty()) question.messages.push_back({MessageRole::kSystem, system_});
      question.messages.push_back({MessageRole::kUser, prompt});
      question.session_id = session_;
    }
    ASSIGN_OR_RETURN(auto connection,
                     Connection::Open(named ? positionals_[0] : "",
                                      session_.empty() ? Connection::Sessions::kTemporary
                                                       : Connection::Sessions::kKept));

    InterruptGuard interrupt;
    Answer answer;
    const bool quiet = json();
    const absl::Status status = connection->gateway().Ask(
        question,
        [quiet](std::string_view text) {
          if (quiet) return;
          std::fwrite(text.data(), 1, text.size(), stdout);
          std::fflush(stdout);
        },
        &interrupt, &answer);
    if (!quiet && !answer.text.empty() && answer.text.back() != '\n') std::puts("");
    if (interrupt.interrupted()) return kExitInterrupted;
    RETURN_IF_ERROR(status);
    if (quiet) std::puts(ToJson(answer).str().c_str());
    if (timings_) PrintTimings(answer.completion);
    return kExitOk;
  }

 private:
  static void PrintTimings(const Completion& c) {
    const int32_t further = c.usage.completion_tokens - 1;
    std::fprintf(stderr, "%s\n",
                 absl::StrFormat("%d prompt tokens in %.3f s, first token after %.3f s, %d tokens, "
                                 "%.1f tokens/s, %s",
                                 c.usage.prompt_tokens, c.timings.prefill,
                                 c.timings.time_to_first_token, c.usage.completion_tokens,
                                 c.timings.decode > 0 ? further / c.timings.decode : 0.0,
                                 c.receipt.kernel_configuration)
                     .c_str());
  }

  SamplingFlags sampling_;
  std::string system_;
  std::string session_;
  std::string speculation_;
  bool raw_ = false;
  bool timings_ = false;
};

}  // namespace

std::unique_ptr<Verb> MakeRunVerb() { return std::make_unique<RunVerb>(); }

}  // namespace cogumi::cli
