// `cogumi chat [MODEL]`: a conversation on the terminal, or one line after another from a pipe.
#include <readline/history.h>
#include <readline/readline.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "engine/core/status_macros.h"
#include "services/cli/ask.h"
#include "services/cli/chat_input.h"
#include "services/cli/paths.h"
#include "services/cli/verbs.h"

namespace cogumi::cli {
namespace {

constexpr char kHelp[] =
    "  /set NAME VALUE   a setting for the answers to come; without arguments: all of them\n"
    "  /show             model, settings, and figures of the last answer\n"
    "  /clear            forget the conversation\n"
    "  /bye              leave (also Ctrl-D)\n"
    "  \"\"\" opens and closes a text of several lines; a trailing \\ joins the next line\n"
    "  Ctrl-C stops an answer\n";

// Lines from readline on a terminal, from standard input otherwise.
class Lines {
 public:
  explicit Lines(bool terminal) : terminal_(terminal) {
    if (!terminal_) return;
    if (auto folder = StateFolder(); folder.ok()) history_ = *folder + "/history";
    using_history();
    stifle_history(1000);
    read_history(history_.c_str());
    // Ctrl-C at the prompt throws the line away; the program goes on.
    rl_signal_event_hook = [] {
      rl_crlf();
      rl_replace_line("", 0);
      rl_on_new_line();
      rl_redisplay();
      return 0;
    };
  }

  // Nothing at the end of the input.
  std::optional<std::string> Next(const char* prompt) {
    if (!terminal_) {
      std::string line;
      if (!std::getline(std::cin, line)) return std::nullopt;
      return line;
    }
    char* raw = ::readline(prompt);
    if (raw == nullptr) {
      std::puts("");
      return std::nullopt;
    }
    std::string line = raw;
    std::free(raw);
    if (!line.empty()) {
      add_history(line.c_str());
      write_history(history_.c_str());
    }
    return line;
  }

 private:
  const bool terminal_;
  std::string history_;
};

std::string NewSessionId() {
  std::random_device random;
  return absl::StrFormat("chat-%08x%08x", random(), random());
}

class ChatVerb : public Verb {
 public:
  ChatVerb()
      : Verb("chat", "[MODEL]",
             "Opens a conversation. The last five turns are remembered. /help lists its commands.",
             0, 1) {
    sampling_.Declare(settings_);
    settings_.String("system", &system_, "system message; absent: the template's own");
    sampling_.Declare(options_);
    options_.String("system", &system_, "system message; absent: the template's own")
        .String("session", &session_, "go on with this session, and keep it afterwards");
  }

  absl::StatusOr<int> Run() override {
    const bool keep = !session_.empty();
    if (!keep) session_ = NewSessionId();
    ASSIGN_OR_RETURN(auto connection, Connection::Open(positionals_.empty() ? "" : positionals_[0],
                                                       keep ? Connection::Sessions::kKept
                                                            : Connection::Sessions::kTemporary));
    const bool terminal = ::isatty(STDIN_FILENO) && ::isatty(STDOUT_FILENO) && !json();
    InterruptGuard program;  // Ctrl-C never ends the conversation
    Lines lines(terminal);
    if (terminal) std::puts("A conversation. /help lists commands, /bye leaves.");
    ChatInput input;
    bool failed = false;
    while (auto line = lines.Next(input.pending() ? "... " : ">>> ")) {
      std::optional<std::string> message = input.Add(*line);
      if (!message.has_value() || message->empty()) continue;
      if (input.is_command()) {
        if (Command(*message, *connection)) break;
        continue;
      }
      const absl::Status status = Answer(*message, *connection);
      if (status.ok()) continue;
      // One bad answer ends a script, not a person's conversation.
      std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
      failed = true;
      if (!terminal) break;
    }
    if (!keep) (void)connection->gateway().EraseSession(session_);
    return failed && !terminal ? kExitFailure : kExitOk;
  }

 private:
  absl::Status Answer(const std::string& message, Connection& connection) {
    Question question;
    ASSIGN_OR_RETURN(question.sampling, sampling_.Get());
    question.session_id = session_;
    if (!system_.empty()) question.messages.push_back({MessageRole::kSystem, system_});
    question.messages.push_back({MessageRole::kUser, message});
    last_ = cli::Answer();
    InterruptGuard interrupt;
    const bool quiet = json();
    const absl::Status status = connection.gateway().Ask(
        question,
        [quiet](std::string_view text) {
          if (quiet) return;
          std::fwrite(text.data(), 1, text.size(), stdout);
          std::fflush(stdout);
        },
        &interrupt, &last_);
    if (!quiet) std::puts(interrupt.interrupted() ? "\n(stopped)" : "");
    if (interrupt.interrupted()) return absl::OkStatus();
    RETURN_IF_ERROR(status);
    if (quiet) std::puts(ToJson(last_).str().c_str());
    std::fflush(stdout);
    return absl::OkStatus();
  }

  // Where commands answer: with --json standard output is the answers' alone.
  FILE* Words() const { return json() ? stderr : stdout; }

  // True when the conversation is over.
  bool Command(const std::string& line, Connection& connection) {
    std::vector<std::string> words = absl::StrSplit(line, absl::MaxSplits(' ', 2));
    const std::string& name = words[0];
    if (name == "/bye" || name == "/exit" || name == "/quit") return true;
    if (name == "/help" || name == "/?") {
      std::fputs(kHelp, Words());
    } else if (name == "/clear") {
      auto erased = connection.gateway().EraseSession(session_);
      std::fprintf(Words(), "%s\n",
                   erased.ok() ? absl::StrCat("forgot ", *erased, " turns").c_str()
                               : std::string(erased.status().message()).c_str());
    } else if (name == "/show") {
      Show(connection);
    } else if (name == "/set") {
      Set(words);
    } else {
      const std::string near =
          services::Suggest(name, {"/set", "/show", "/clear", "/bye", "/help"});
      std::fprintf(
          Words(), "there is no command %s%s\n", name.c_str(),
          near.empty() ? "; /help lists them" : absl::StrCat("; is it ", near, "?").c_str());
    }
    return false;
  }

  void Set(const std::vector<std::string>& words) {
    if (words.size() < 3) {
      for (const auto& option : settings_.options()) {
        std::fprintf(Words(), "  %-20s %s\n", option.name.c_str(), option.help.c_str());
      }
      return;
    }
    std::string name = words[1];
    for (char& c : name) c = c == '-' ? '_' : c;
    if (settings_.Find(name) == nullptr) {
      std::vector<std::string> names;
      for (const auto& option : settings_.options()) names.push_back(option.name);
      const std::string near = services::Suggest(name, names);
      std::fprintf(
          Words(), "there is no setting %s%s\n", name.c_str(),
          near.empty() ? "; /set lists them" : absl::StrCat("; is it ", near, "?").c_str());
      return;
    }
    const absl::Status status = settings_.Set(name, words[2]);
    if (!status.ok()) {
      std::fprintf(Words(), "%s\n", std::string(status.message()).c_str());
    } else {
      set_[name] = words[2];
    }
  }

  void Show(Connection& connection) {
    std::fprintf(Words(), "model     %s\nsession   %s\ncluster   %s\n",
                 connection.record().model.c_str(), session_.c_str(),
                 connection.started_here() ? "started for this chat" : "was running already");
    for (const auto& [name, value] : set_) {
      std::fprintf(Words(), "set       %s = %s\n", name.c_str(), value.c_str());
    }
    if (!last_.request_id.empty())
      std::fprintf(Words(), "last      %s\n", ToJson(last_).str().c_str());
  }

  SamplingFlags sampling_;
  services::OptionSet settings_{"set"};
  std::string system_;
  std::string session_;
  std::map<std::string, std::string> set_;
  cli::Answer last_;
};

}  // namespace

std::unique_ptr<Verb> MakeChatVerb() { return std::make_unique<ChatVerb>(); }

}  // namespace cogumi::cli
