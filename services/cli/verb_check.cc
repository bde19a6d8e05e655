// `cogumi check --golden FILE`: the golden prompts through four processes, held against the exact
// arithmetic's tokens.
#include <unistd.h>

#include <cstdio>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "services/cli/ask.h"
#include "services/cli/paths.h"
#include "services/cli/verbs.h"

namespace cogumi::cli {
namespace {

// Where the two best tokens are closer than this, another rounding may choose the other one; after
// that the texts are different ones.
constexpr double kDecisiveMargin = 0.05;
constexpr size_t kServices = 4;

struct Golden {
  std::string prompt;
  std::vector<TokenId> prompt_tokens;
  std::vector<TokenId> output_tokens;
  std::vector<double> margins;
};

absl::StatusOr<std::vector<Golden>> ReadGolden(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  auto malformed = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
  };
  if (!json.is_array() || json.empty()) return malformed("is no list of prompts");
  std::vector<Golden> all;
  for (const auto& entry : json) {
    Golden golden;
    for (const char* key : {"prompt", "prompt_tokens", "output_tokens", "margins"}) {
      if (!entry.contains(key)) return malformed(absl::StrCat("a prompt lacks ", key));
    }
    entry["prompt"].get_to(golden.prompt);
    entry["prompt_tokens"].get_to(golden.prompt_tokens);
    entry["output_tokens"].get_to(golden.output_tokens);
    entry["margins"].get_to(golden.margins);
    if (golden.margins.size() != golden.output_tokens.size()) {
      return malformed("margins and output_tokens differ in length");
    }
    all.push_back(std::move(golden));
  }
  return all;
}

// "" when the answer is the expected one, or differs first where the margin decides nothing.
std::string Compare(const Golden& golden, const Answer& answer, std::string* note) {
  if (answer.completion.prompt_tokens != golden.prompt_tokens) return "other prompt tokens";
  for (size_t i = 0; i < golden.output_tokens.size(); ++i) {
    const bool same = i < answer.token_ids.size() && answer.token_ids[i] == golden.output_tokens[i];
    if (same) continue;
    if (golden.margins[i] < kDecisiveMargin) {
      *note =
          absl::StrFormat("equal up to token %d, where the margin is %.4f", i, golden.margins[i]);
      return "";
    }
    return absl::StrFormat(
        "token %d is %s, expected %d (margin %.4f)", i,
        i < answer.token_ids.size() ? absl::StrCat(answer.token_ids[i]) : "missing",
        golden.output_tokens[i], golden.margins[i]);
  }
  return "";
}

class CheckVerb : public Verb {
 public:
  CheckVerb()
      : Verb("check", "",
             "Answers the golden prompts through four processes. Fails where an answer differs\n"
             "although the exact arithmetic leaves no doubt.",
             0, 0) {
    options_.String("golden", &golden_, "file of prompts with their exact tokens and margins");
  }

  absl::StatusOr<int> Run() override {
    if (golden_.empty()) return UsageError("--golden FILE is missing");
    ASSIGN_OR_RETURN(const auto golden, ReadGolden(golden_));
    // Never a cluster that runs already: it may be one process, or another build.
    ASSIGN_OR_RETURN(auto connection, Connection::OpenPrivate(""));
    Print(absl::StrCat("model    ", connection->record().model));
    JsonArray services;
    std::set<int64_t> processes;
    for (const auto& service : connection->record().services) {
      processes.insert(service.pid);
      Print(absl::StrFormat("process  %-9s pid %-7d %s", service.service, service.pid,
                            service.address));
      services.Add(JsonObject()
                       .Add("service", service.service)
                       .Add("pid", service.pid)
                       .Add("address", service.address));
    }
    if (processes.size() != kServices || processes.count(::getpid()) > 0) {
      return absl::InternalError(
          absl::StrCat(processes.size(), " processes serve, not ", kServices, " of their own"));
    }

    const std::string session = absl::StrCat("check-", ::getpid());
    JsonArray prompts;
    int failed = 0;
    for (const Golden& entry : golden) {
      Question question;
      question.messages.push_back({MessageRole::kUser, entry.prompt});
      question.sampling.temperature = 0;
      question.sampling.max_tokens = static_cast<int32_t>(entry.output_tokens.size());
      Answer answer;
      RETURN_IF_ERROR(connection->gateway().Ask(
          question, [](std::string_view) {}, nullptr, &answer));
      std::string note;
      const std::string difference = Compare(entry, answer, &note);
      failed += difference.empty() ? 0 : 1;
      const Usage& usage = answer.completion.usage;
      Print(absl::StrCat("\nprompt   ", entry.prompt, "\nanswer   ", answer.text, "\n",
                         difference.empty() ? "ok       " : "WRONG    ",
                         difference.empty() ? note.empty() ? "equal" : note : difference,
                         "; usage: ", usage.prompt_tokens, " prompt + ", usage.completion_tokens,
                         " tokens, first after ",
                         absl::StrFormat("%.3f s", answer.completion.timings.time_to_first_token)));
      prompts.Add(ToJson(answer)
                      .Add("prompt", entry.prompt)
                      .Add("difference", difference)
                      .Add("note", note));
    }

    // One turn in a session, read back from the store.
    Question question;
    question.session_id = session;
    question.messages.push_back({MessageRole::kUser, golden[0].prompt});
    question.sampling.temperature = 0;
    question.sampling.max_tokens = static_cast<int32_t>(golden[0].output_tokens.size());
    Answer answer;
    RETURN_IF_ERROR(connection->gateway().Ask(
        question, [](std::string_view) {}, nullptr, &answer));
    ASSIGN_OR_RETURN(const auto turns, connection->gateway().GetSession(session));
    JsonArray stored;
    for (const StoredTurn& turn : turns) {
      Print(absl::StrFormat("\nsession  %s, turn %d\n         user: %s\n         assistant: %s",
                            session, turn.number, turn.user, turn.assistant));
      stored.Add(JsonObject()
                     .Add("number", turn.number)
                     .Add("user", turn.user)
                     .Add("assistant", turn.assistant));
    }
    const bool kept =
        turns.size() == 1 && turns[0].user == golden[0].prompt && turns[0].assistant == answer.text;
    RETURN_IF_ERROR(connection->gateway().EraseSession(session).status());
    const bool ok = failed == 0 && kept;
    if (!kept) Print("WRONG    the session does not hold the turn that was acknowledged");
    Print(absl::StrFormat("\n%d of %d answers as expected, session %s", golden.size() - failed,
                          golden.size(), kept ? "stored" : "NOT stored"));
    if (json()) {
      std::puts(JsonObject()
                    .Add("ok", ok)
                    .Add("failed", failed)
                    .Add("session_stored", kept)
                    .Add("services", services)
                    .Add("prompts", prompts)
                    .Add("session", stored)
                    .str()
                    .c_str());
    }
    return ok ? kExitOk : kExitFailure;
  }

 private:
  void Print(const std::string& line) const {
    if (!json()) std::puts(line.c_str());
  }

  std::string golden_;
};

}  // namespace

std::unique_ptr<Verb> MakeCheckVerb() { return std::make_unique<CheckVerb>(); }

}  // namespace cogumi::cli
