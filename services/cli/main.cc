// cogumi: finds the verb, runs it, reports errors.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "services/cli/json.h"
#include "services/cli/verb.h"
#include "services/common/logging.h"
#include "services/common/status.h"

namespace cogumi::cli {
namespace {

using Verbs = std::vector<std::unique_ptr<Verb>>;

// The first statement of a summary.
std::string Brief(std::string summary) {
  std::replace(summary.begin(), summary.end(), '\n', ' ');
  return summary.substr(0, summary.find_first_of(".:;"));
}

std::string HelpText(const Verbs& verbs) {
  std::string text =
      "cogumi answers prompts with a language model behind four services.\n\n"
      "Usage: cogumi VERB [arguments] [options]\n\n";
  for (const auto& verb : verbs) {
    std::string left =
        absl::StrCat("  ", verb->name(), verb->arguments().empty() ? "" : " ", verb->arguments());
    left.append(left.size() < 32 ? 32 - left.size() : 1, ' ');
    absl::StrAppend(&text, left, Brief(verb->summary()), "\n");
  }
  absl::StrAppend(&text,
                  "  help [VERB]                   this text, or that of a verb\n\n"
                  "Every verb takes --json and --help. Exit codes: 0 ok, 1 failure, 2 usage.\n");
  return text;
}

JsonObject DescribeVerb(const Verb& verb) {
  JsonArray options;
  for (const auto& option : verb.options().options()) {
    JsonObject object;
    object.Add("name", option.name)
        .Add("kind", option.is_bool ? "flag" : option.kind)
        .Add("default", option.default_text)
        .Add("help", option.help);
    options.Add(object);
  }
  JsonObject object;
  object.Add("name", verb.name())
      .Add("arguments", verb.arguments())
      .Add("summary", verb.summary())
      .Add("options", options);
  return object;
}

int PrintHelp(const Verbs& verbs, const std::vector<std::string>& words) {
  const bool json = std::find(words.begin(), words.end(), "--json") != words.end();
  std::string name;
  for (const std::string& word : words) {
    if (word == "--json") continue;
    absl::StrAppend(&name, name.empty() ? "" : " ", word);
  }
  JsonArray array;
  bool found = name.empty();
  for (const auto& verb : verbs) {
    if (!name.empty() && verb->name() != name) continue;
    found = true;
    array.Add(DescribeVerb(*verb));
    if (!name.empty() && !json) std::fputs(verb->Help().c_str(), stdout);
  }
  if (!found) {
    std::fprintf(stderr, "cogumi help: there is no verb '%s'\n", name.c_str());
    return kExitUsage;
  }
  if (json) {
    std::puts(JsonObject().Add("verbs", array).str().c_str());
  } else if (name.empty()) {
    std::fputs(HelpText(verbs).c_str(), stdout);
  }
  return kExitOk;
}

int Report(const std::string& verb, const absl::Status& status, bool json) {
  services::FlushLog();
  std::string advice = AdviceOf(status);
  if (IsUsageError(status) && advice.empty()) {
    advice = absl::StrCat("cogumi ", verb, " --help");
  }
  const std::string message(status.message().data(), status.message().size());
  if (json) {
    JsonObject error;
    error.Add("code", std::string(services::CodeName(status.code())))
        .Add("message", message)
        .Add("advice", advice);
    std::puts(JsonObject().Add("error", error).str().c_str());
  }
  std::fprintf(stderr, "cogumi %s: %s\n", verb.c_str(), message.c_str());
  if (!advice.empty()) std::fprintf(stderr, "  then: %s\n", advice.c_str());
  return IsUsageError(status) ? kExitUsage : kExitFailure;
}

int Main(std::vector<std::string> words) {
  const Verbs verbs = MakeVerbs();
  if (words.empty() || words[0] == "--help" || words[0] == "-h") {
    std::fputs(HelpText(verbs).c_str(), stdout);
    return words.empty() ? kExitUsage : kExitOk;
  }
  if (words[0] == "--version") words[0] = "version";
  if (words[0] == "help") return PrintHelp(verbs, {words.begin() + 1, words.end()});

  std::vector<std::string> names;
  for (const auto& verb : verbs) {
    names.push_back(verb->name());
    const std::vector<std::string> parts = absl::StrSplit(verb->name(), ' ');
    if (words.size() < parts.size() || !std::equal(parts.begin(), parts.end(), words.begin())) {
      continue;
    }
    const std::vector<std::string> rest(words.begin() + static_cast<std::ptrdiff_t>(parts.size()),
                                        words.end());
    const auto parsed = verb->Parse(rest);
    const bool json = verb->json() || std::find(rest.begin(), rest.end(), "--json") != rest.end();
    if (!parsed.ok()) return Report(verb->name(), parsed.status(), json);
    if (*parsed == services::ConfigOutcome::kExit) return kExitOk;
    const auto code = verb->Run();
    if (!code.ok()) return Report(verb->name(), code.status(), json);
    services::FlushLog();
    return *code;
  }
  // The second word of a verb may be missing or wrong.
  const std::string two = words.size() > 1 ? absl::StrCat(words[0], " ", words[1]) : words[0];
  std::string near = services::Suggest(two, names);
  if (near.empty()) near = services::Suggest(words[0], names);
  for (const std::string& name : names) {
    if (near.empty() && name.rfind(words[0] + " ", 0) == 0) near = name;
  }
  std::fprintf(stderr, "cogumi: there is no verb '%s'%s\n  then: cogumi help\n", words[0].c_str(),
               near.empty() ? "" : absl::StrCat("; is it '", near, "'?").c_str());
  return kExitUsage;
}

}  // namespace
}  // namespace cogumi::cli

int main(int argc, char** argv) {
  return cogumi::cli::Main(std::vector<std::string>(argv + 1, argv + argc));
}
