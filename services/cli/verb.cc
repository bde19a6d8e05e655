#include "services/cli/verb.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "engine/core/status_macros.h"

namespace cogumi::cli {
namespace {

constexpr char kUsagePayload[] = "cogumi/usage";
constexpr char kAdvicePayload[] = "cogumi/advice";

std::string FlagOf(const std::string& name) {
  return absl::StrCat("--", absl::StrReplaceAll(name, {{"_", "-"}}));
}

}  // namespace

absl::Status UsageError(const std::string& message) {
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kUsagePayload, absl::Cord());
  return status;
}

bool IsUsageError(const absl::Status& status) {
  return status.GetPayload(kUsagePayload).has_value();
}

absl::Status WithAdvice(absl::Status status, const std::string& advice) {
  if (!status.ok()) status.SetPayload(kAdvicePayload, absl::Cord(advice));
  return status;
}

std::string AdviceOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kAdvicePayload);
  return payload.has_value() ? std::string(*payload) : "";
}

Verb::Verb(std::string name, std::string arguments, std::string summary, size_t min_positionals,
           size_t max_positionals)
    : options_(absl::StrReplaceAll(name, {{" ", "_"}})),
      name_(std::move(name)),
      arguments_(std::move(arguments)),
      summary_(std::move(summary)),
      min_positionals_(min_positionals),
      max_positionals_(max_positionals) {
  options_.Bool("json", &json_, "print JSON instead of text");
}

absl::Status Verb::ParseFlag(const std::vector<std::string>& words, size_t* index) {
  const std::string& word = words[*index];
  std::string name = word.substr(2);
  std::string value;
  const size_t equals = name.find('=');
  const bool has_value = equals != std::string::npos;
  if (has_value) {
    value = name.substr(equals + 1);
    name.resize(equals);
  }
  const std::string shown = absl::StrCat("--", name);
  name = absl::StrReplaceAll(name, {{"-", "_"}});
  const services::OptionSet::Option* option = options_.Find(name);
  if (option == nullptr && !has_value && absl::StartsWith(name, "no_")) {
    option = options_.Find(name.substr(3));
    if (option != nullptr && option->is_bool) return options_.Set(option->name, "false");
    option = nullptr;
  }
  if (option == nullptr) {
    if (TakesUnknownFlags()) {
      unknown_flags_.push_back(word);
      // Its value, when it has one: the child that gets the flag knows whether it takes it.
      if (!has_value && *index + 1 < words.size() && !absl::StartsWith(words[*index + 1], "--")) {
        unknown_flags_.push_back(words[++*index]);
      }
      return absl::OkStatus();
    }
    std::vector<std::string> known;
    for (const auto& candidate : options_.options()) known.push_back(candidate.name);
    const std::string near = services::Suggest(name, known);
    return UsageError(near.empty()
                          ? absl::StrCat("unknown option ", shown)
                          : absl::StrCat("unknown option ", shown, "; is it ", FlagOf(near), "?"));
  }
  if (option->is_bool) {
    return options_.Set(name, has_value ? value : "true");
  }
  if (!has_value) {
    if (*index + 1 >= words.size()) return UsageError(absl::StrCat(shown, " needs a value"));
    value = words[++*index];
  }
  return options_.Set(name, value);
}

absl::Status Verb::ReadVariables() {
  const std::string prefix =
      absl::StrCat("COGUMI_", absl::AsciiStrToUpper(options_.section()), "_");
  std::vector<std::string> known;
  for (const auto& option : options_.options()) {
    known.push_back(absl::StrCat(
        prefix, absl::AsciiStrToUpper(absl::StrReplaceAll(option.name, {{".", "_"}}))));
  }
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::pair<std::string, std::string> variable =
        absl::StrSplit(*entry, absl::MaxSplits('=', 1));
    const auto& [name, value] = variable;
    if (!absl::StartsWith(name, "COGUMI_")) continue;
    if (!absl::StartsWith(name, prefix)) {
      RETURN_IF_ERROR(services::CheckVariable(name));
      continue;
    }
    const auto found = std::find(known.begin(), known.end(), name);
    if (found == known.end()) {
      const std::string near = services::Suggest(name, known);
      return absl::InvalidArgumentError(
          absl::StrCat("unknown environment variable ", name,
                       near.empty() ? "" : absl::StrCat("; did you mean ", near, "?")));
    }
    const auto& option = options_.options()[static_cast<size_t>(found - known.begin())];
    if (const absl::Status status = options_.Set(option.name, value); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(name, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<services::ConfigOutcome> Verb::Parse(const std::vector<std::string>& words) {
  auto usage = [](const absl::Status& status) {
    return status.ok() || IsUsageError(status) ? status : UsageError(std::string(status.message()));
  };
  RETURN_IF_ERROR(usage(ReadVariables()));
  bool flags = true;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (flags && word == "--") {
      flags = false;
    } else if (flags && (word == "--help" || word == "-h")) {
      std::fputs(Help().c_str(), stdout);
      return services::ConfigOutcome::kExit;
    } else if (flags && absl::StartsWith(word, "--")) {
      RETURN_IF_ERROR(usage(ParseFlag(words, &i)));
    } else if (flags && word.size() > 1 && word[0] == '-' &&
               absl::ascii_isalpha(static_cast<unsigned char>(word[1]))) {
      return UsageError(
          absl::StrCat("unknown option ", word, "; options have two dashes, `--` ends them"));
    } else {
      positionals_.push_back(word);
    }
  }
  if (positionals_.size() < min_positionals_) {
    return UsageError(absl::StrCat("something is missing: cogumi ", name_, " ", arguments_));
  }
  if (positionals_.size() > max_positionals_) {
    return UsageError(absl::StrCat("too much: '", positionals_[max_positionals_],
                                   "'; put quotes around a prompt of several words"));
  }
  return services::ConfigOutcome::kRun;
}

std::string Verb::Help() const {
  std::string text = absl::StrCat("Usage: cogumi ", name_, arguments_.empty() ? "" : " ",
                                  arguments_, " [options]\n\n", summary_, "\n\nOptions:\n");
  for (const auto& option : options_.options()) {
    std::string left = absl::StrCat("  ", FlagOf(option.name));
    if (!option.is_bool) absl::StrAppend(&left, " ", option.kind);
    left.append(left.size() < 28 ? 28 - left.size() : 1, ' ');
    absl::StrAppend(&text, left, option.help);
    if (!option.range.empty()) absl::StrAppend(&text, " ", option.range);
    if (!option.is_bool && !option.default_text.empty()) {
      absl::StrAppend(&text, " (default ", option.default_text, ")");
    }
    text += '\n';
  }
  absl::StrAppend(&text,
                  "  --help                    this text\n\nEach option is also read from COGUMI_",
                  absl::AsciiStrToUpper(options_.section()), "_<OPTION>.\n");
  return text;
}

}  // namespace cogumi::cli
