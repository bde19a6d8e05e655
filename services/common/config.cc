#include "services/common/config.h"

#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "engine/core/status_macros.h"
#include "services/common/text.h"

namespace cogumi::services {
namespace {

constexpr std::streamsize kMaxConfigBytes = 1 << 20;
constexpr int kMaxConfigDepth = 8;

struct Unit {
  std::string_view name;
  double factor;
};

constexpr Unit kByteUnits[] = {{"", 1},
                               {"b", 1},
                               {"k", 1e3},
                               {"kb", 1e3},
                               {"m", 1e6},
                               {"mb", 1e6},
                               {"g", 1e9},
                               {"gb", 1e9},
                               {"t", 1e12},
                               {"tb", 1e12},
                               {"kib", 1024.0},
                               {"mib", 1048576.0},
                               {"gib", 1073741824.0},
                               {"tib", 1099511627776.0}};
constexpr Unit kTimeUnits[] = {{"", 1},   {"ms", 1e-3}, {"us", 1e-6}, {"s", 1},
                               {"m", 60}, {"min", 60},  {"h", 3600},  {"d", 86400}};

template <size_t kCount>
std::optional<double> ParseWithUnit(std::string_view text, const Unit (&units)[kCount]) {
  const absl::string_view stripped = absl::StripAsciiWhitespace({text.data(), text.size()});
  size_t digits = 0;
  while (digits < stripped.size() &&
         (absl::ascii_isdigit(static_cast<unsigned char>(stripped[digits])) ||
          stripped[digits] == '.')) {
    ++digits;
  }
  double value = 0;
  if (digits == 0 || !absl::SimpleAtod(stripped.substr(0, digits), &value)) return std::nullopt;
  const std::string unit =
      absl::AsciiStrToLower(absl::StripAsciiWhitespace(stripped.substr(digits)));
  for (const Unit& candidate : units) {
    if (unit == candidate.name) return value * candidate.factor;
  }
  return std::nullopt;
}

std::string FormatNumber(double value) { return Cat(value); }

absl::Status OutOfRange(const std::string& name, const std::string& value,
                        const std::string& range) {
  return absl::InvalidArgumentError(Cat(name, ": ", value, " is outside ", range));
}

absl::Status Malformed(const std::string& name, const std::string& value, std::string_view kind) {
  return absl::InvalidArgumentError(Cat(name, ": \"", value, "\" is not ", kind));
}

// A name as it is written in YAML or on a command line.
std::string Canonical(std::string_view name) {
  std::string canonical(name);
  std::replace(canonical.begin(), canonical.end(), '-', '_');
  return canonical;
}

std::string FlagOf(std::string_view name) {
  std::string flag(name);
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

// What a section's name may be off.
constexpr size_t kMaxSlips = 2;

// The first words of a variable with the underscore behind them: "COGUMI_GATEWAY_" are two.
std::string_view FirstWords(std::string_view name, std::ptrdiff_t words) {
  size_t end = 0;
  for (; words > 0; --words) {
    end = name.find('_', end);
    if (end == name.npos) return {};
    ++end;
  }
  return name.substr(0, end);
}

std::string VariableOf(std::string_view section, std::string_view name) {
  std::string variable = Cat("COGUMI_", section, "_", name);
  for (char& c : variable)
    c = c == '.' || c == '-' ? '_' : absl::ascii_toupper(static_cast<unsigned char>(c));
  return variable;
}

std::string VariableOf(const OptionSet& set, std::string_view name) {
  return VariableOf(set.section(), name);
}

absl::Status Unknown(std::string_view what, std::string_view name,
                     const std::vector<std::string>& known, std::string_view prefix = "") {
  const std::string suggestion = Suggest(name, known);
  return absl::InvalidArgumentError(
      Cat("unknown ", what, " ", prefix, name,
          suggestion.empty() ? "" : Cat("; did you mean ", prefix, suggestion, "?")));
}

using Values = std::map<const OptionSet::Option*, std::vector<std::string>>;

absl::Status Apply(const Values& values, std::string_view source) {
  for (const auto& [option, texts] : values) {
    const absl::Status status = option->set(texts);
    if (!status.ok()) {
      return absl::InvalidArgumentError(Cat(source, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

std::vector<std::string> SplitList(const std::string& text) {
  std::vector<std::string> items;
  for (absl::string_view item : absl::StrSplit(text, ',', absl::SkipWhitespace())) {
    items.emplace_back(absl::StripAsciiWhitespace(item));
  }
  return items;
}

// --- YAML ---------------------------------------------------------------------------------------

std::string Position(const YAML::Node& node) { return Cat("line ", node.Mark().line + 1); }

absl::Status ReadMapping(const YAML::Node& node, const OptionSet& set, const std::string& prefix,
                         int depth, Values* values) {
  if (depth > kMaxConfigDepth) {
    return absl::InvalidArgumentError(
        Cat(Position(node), ": nested deeper than ", kMaxConfigDepth));
  }
  std::vector<std::string> known;
  for (const auto& option : set.options()) known.push_back(option.name);
  for (const auto& entry : node) {
    const std::string name = prefix + Canonical(entry.first.as<std::string>());
    const OptionSet::Option* option = set.Find(name);
    if (option == nullptr) {
      const bool nested = std::any_of(known.begin(), known.end(), [&name](const std::string& k) {
        return k.starts_with(name + ".");
      });
      if (nested && entry.second.IsMap()) {
        RETURN_IF_ERROR(ReadMapping(entry.second, set, name + ".", depth + 1, values));
        continue;
      }
      const absl::Status unknown = Unknown("key", name, known);
      return absl::InvalidArgumentError(
          Cat(Position(entry.first), ": ", set.section(), ": ", unknown.message()));
    }
    if (values->contains(option)) {
      return absl::InvalidArgumentError(
          Cat(Position(entry.first), ": ", set.section(), ".", name, " is given twice"));
    }
    std::vector<std::string> texts;
    if (entry.second.IsScalar()) {
      texts.push_back(entry.second.as<std::string>());
    } else if (option->is_list && entry.second.IsSequence()) {
      for (const auto& item : entry.second) {
        if (!item.IsScalar()) {
          return absl::InvalidArgumentError(Cat(Position(item), ": ", set.section(), ".", name,
                                                ": a list of plain values is wanted"));
        }
        texts.push_back(item.as<std::string>());
      }
    } else {
      return absl::InvalidArgumentError(Cat(Position(entry.first), ": ", set.section(), ".", name,
                                            ": a ", option->is_list ? "list" : "plain value",
                                            " is wanted"));
    }
    (*values)[option] = std::move(texts);
  }
  return absl::OkStatus();
}

// Sections that some process of the cluster reads; each checks its own.
const std::vector<std::string>& KnownSections() {
  static const std::vector<std::string> sections = {"gateway", "router", "decoder", "modifiers"};
  return sections;
}

// Verbs of the command line: their options are variables, but not keys of the file.
constexpr const char* kVerbSections[] = {
    "adapter_list", "adapter_load", "adapter_rm", "adapter_show", "bench",  "chat",
    "check",        "doctor",       "list",       "ps",           "run",    "route_explain",
    "serve",        "show",         "stop",       "tokenize",     "version"};
// Variables that stand alone.
constexpr const char* kVariables[] = {"COGUMI_CONFIG", "COGUMI_KERNELS",   "COGUMI_LONG_TESTS",
                                      "COGUMI_MODEL",  "COGUMI_STATE_DIR", "COGUMI_TOKEN"};

absl::Status ReadFile(const std::string& path, const ConfigRequest& request, Values* values) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(Cat("config: cannot read ", path));
  std::string text(static_cast<size_t>(kMaxConfigBytes) + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.gcount() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(
        Cat("config: ", path, " is larger than ", kMaxConfigBytes, " bytes"));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  try {
    const YAML::Node root = YAML::Load(text);
    if (root.IsNull()) return absl::OkStatus();
    if (!root.IsMap()) return absl::InvalidArgumentError(Cat(path, ": sections are wanted"));
    for (const auto& entry : root) {
      const std::string section = entry.first.as<std::string>();
      const auto& known = KnownSections();
      if (std::find(known.begin(), known.end(), section) == known.end()) {
        return absl::InvalidArgumentError(Cat(path, ": ", Position(entry.first), ": ",
                                              Unknown("section", section, known).message()));
      }
      for (const OptionSet* set : request.sets) {
        if (set->section() != section || entry.second.IsNull()) continue;
        if (!entry.second.IsMap()) {
          return absl::InvalidArgumentError(Cat(path, ": ", section, ": keys are wanted"));
        }
        const absl::Status status = ReadMapping(entry.second, *set, "", 0, values);
        if (!status.ok()) {
          return absl::InvalidArgumentError(Cat(path, ": ", status.message()));
        }
      }
    }
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(Cat(path, ": ", error.what()));
  }
  return absl::OkStatus();
}

// --- Environment ---------------------------------------------------------------------------------

absl::Status ReadEnvironment(const ConfigRequest& request, std::string* config_path,
                             Values* values) {
  const char* const* environment = request.environment != nullptr ? request.environment : environ;
  for (; environment != nullptr && *environment != nullptr; ++environment) {
    const std::string_view entry = *environment;
    const size_t equals = entry.find('=');
    if (!entry.starts_with("COGUMI_") || equals == entry.npos) continue;
    const std::string name(entry.substr(0, equals));
    const std::string value(entry.substr(equals + 1));
    if (name == "COGUMI_CONFIG") {
      *config_path = value;
      continue;
    }
    RETURN_IF_ERROR(CheckVariable(name));
    for (const OptionSet* set : request.sets) {
      if (!name.starts_with(VariableOf(*set, ""))) continue;
      std::vector<std::string> known;
      const OptionSet::Option* found = nullptr;
      for (const auto& option : set->options()) {
        known.push_back(VariableOf(*set, option.name));
        if (known.back() == name) found = &option;
      }
      if (found == nullptr) return Unknown("environment variable", name, known);
      (*values)[found] = found->is_list ? SplitList(value) : std::vector<std::string>{value};
    }
  }
  return absl::OkStatus();
}

// --- Flags ---------------------------------------------------------------------------------------

struct Flags {
  Values values;
  std::string config_path;
  bool help = false;
  bool version = false;
};

const OptionSet::Option* FindFlag(const ConfigRequest& request, const std::string& name) {
  if (request.sets.size() == 1) return request.sets[0]->Find(name);
  for (const OptionSet* set : request.sets) {
    const std::string prefix = set->section() + ".";
    if (name.starts_with(prefix)) return set->Find(name.substr(prefix.size()));
  }
  return nullptr;
}

std::vector<std::string> KnownFlags(const ConfigRequest& request) {
  std::vector<std::string> known = {"config", "help", "version"};
  for (const OptionSet* set : request.sets) {
    const std::string prefix = request.sets.size() == 1 ? "" : set->section() + ".";
    for (const auto& option : set->options()) known.push_back(FlagOf(prefix + option.name));
  }
  return known;
}

absl::StatusOr<Flags> ReadFlags(const ConfigRequest& request) {
  Flags flags;
  for (int i = 1; i < request.argc; ++i) {
    const std::string argument = request.argv[i];
    if (argument == "-h") {
      flags.help = true;
      continue;
    }
    if (!argument.starts_with("--") || argument.size() == 2) {
      return absl::InvalidArgumentError(Cat("unexpected argument \"", argument, "\"; see --help"));
    }
    const size_t equals = argument.find('=');
    std::string name = Canonical(argument.substr(2, equals == argument.npos ? equals : equals - 2));
    std::optional<std::string> value;
    if (equals != argument.npos) value = argument.substr(equals + 1);
    if (name == "help" || name == "version") {
      (name == "help" ? flags.help : flags.version) = true;
      continue;
    }
    const OptionSet::Option* option = nullptr;
    if (name != "config") {
      option = FindFlag(request, name);
      if (option == nullptr && !value && name.starts_with("no_")) {
        option = FindFlag(request, name.substr(3));
        if (option != nullptr && !option->is_bool) option = nullptr;
        if (option != nullptr) value = "false";
      }
      if (option == nullptr) return Unknown("flag", FlagOf(name), KnownFlags(request), "--");
      if (option->is_bool && !value) value = "true";
    }
    if (!value) {
      if (i + 1 >= request.argc) {
        return absl::InvalidArgumentError(Cat("--", FlagOf(name), " wants a value"));
      }
      value = request.argv[++i];
    }
    if (option == nullptr) {
      flags.config_path = *value;
    } else if (option->is_list) {
      auto& list = flags.values[option];
      for (std::string& item : SplitList(*value)) list.push_back(std::move(item));
    } else {
      flags.values[option] = {*value};
    }
  }
  return flags;
}

}  // namespace

absl::StatusOr<int64_t> ParseBytes(std::string_view text) {
  const auto value = ParseWithUnit(text, kByteUnits);
  if (!value) {
    return absl::InvalidArgumentError(Cat("\"", text, "\" is not a size such as 512MiB or 2GB"));
  }
  if (*value >= static_cast<double>(std::numeric_limits<int64_t>::max())) {
    return absl::InvalidArgumentError(Cat("\"", text, "\" is too large"));
  }
  return static_cast<int64_t>(*value);
}

absl::StatusOr<double> ParseDuration(std::string_view text) {
  const auto value = ParseWithUnit(text, kTimeUnits);
  if (!value || !std::isfinite(*value)) {
    return absl::InvalidArgumentError(Cat("\"", text, "\" is not a time such as 30s, 250ms or 5m"));
  }
  return *value;
}

std::string FormatBytes(int64_t bytes) {
  static constexpr std::pair<int64_t, const char*> kUnits[] = {
      {1LL << 40, "TiB"}, {1LL << 30, "GiB"}, {1LL << 20, "MiB"}, {1LL << 10, "KiB"}};
  for (const auto& [factor, name] : kUnits) {
    if (bytes >= factor && bytes % factor == 0) return Cat(bytes / factor, name);
  }
  return Cat(bytes);
}

std::string FormatDuration(double seconds) {
  if (seconds > 0 && seconds < 1) return Cat(seconds * 1e3, "ms");
  return Cat(seconds, "s");
}

OptionSet::OptionSet(std::string section) : section_(std::move(section)) {}

OptionSet& OptionSet::Add(Option option) {
  options_.push_back(std::move(option));
  return *this;
}

const OptionSet::Option* OptionSet::Find(std::string_view name) const {
  for (const Option& option : options_) {
    if (option.name == name) return &option;
  }
  return nullptr;
}

absl::Status OptionSet::Set(std::string_view name, const std::string& value) const {
  const Option* option = Find(Canonical(name));
  if (option == nullptr) {
    std::vector<std::string> known;
    for (const Option& candidate : options_) known.push_back(candidate.name);
    return Unknown("option", name, known);
  }
  return option->set(option->is_list ? SplitList(value) : std::vector<std::string>{value});
}

OptionSet& OptionSet::String(const std::string& name, std::string* target, std::string help) {
  return Add({name, "TEXT", "", *target, std::move(help), false, false,
              [target](const std::vector<std::string>& values) {
                *target = values[0];
                return absl::OkStatus();
              }});
}

OptionSet& OptionSet::Int64(const std::string& name, int64_t* target, int64_t min, int64_t max,
                            std::string help) {
  const std::string range = Cat("[", min, ", ", max, "]");
  return Add({name, "N", range, Cat(*target), std::move(help), false, false,
              [=](const std::vector<std::string>& values) {
                int64_t value = 0;
                if (!absl::SimpleAtoi(values[0], &value)) {
                  return Malformed(name, values[0], "a whole number");
                }
                if (value < min || value > max) return OutOfRange(name, values[0], range);
                *target = value;
                return absl::OkStatus();
              }});
}

OptionSet& OptionSet::Int(const std::string& name, int32_t* target, int32_t min, int32_t max,
                          std::string help) {
  const std::string range = Cat("[", min, ", ", max, "]");
  return Add({name, "N", range, Cat(*target), std::move(help), false, false,
              [=](const std::vector<std::string>& values) {
                int64_t value = 0;
                if (!absl::SimpleAtoi(values[0], &value)) {
                  return Malformed(name, values[0], "a whole number");
                }
                if (value < min || value > max) return OutOfRange(name, values[0], range);
                *target = static_cast<int32_t>(value);
                return absl::OkStatus();
              }});
}

OptionSet& OptionSet::Double(const std::string& name, double* target, double min, double max,
                             std::string help) {
  const std::string range = Cat("[", FormatNumber(min), ", ", FormatNumber(max), "]");
  return Add({name, "X", range, FormatNumber(*target), std::move(help), false, false,
              [=](const std::vector<std::string>& values) {
                double value = 0;
                if (!absl::SimpleAtod(values[0], &value)) {
                  return Malformed(name, values[0], "a number");
                }
                if (!(value >= min && value <= max)) return OutOfRange(name, values[0], range);
                *target = value;
                return absl::OkStatus();
              }});
}

OptionSet& OptionSet::Bool(const std::string& name, bool* target, std::string help) {
  return Add({name, "", "", *target ? "true" : "false", std::move(help), true, false,
              [=](const std::vector<std::string>& values) {
                bool value = false;
                if (!absl::SimpleAtob(values[0], &value)) {
                  return Malformed(name, values[0], "true or false");
                }
                *target = value;
                return absl::OkStatus();
              }});
}

OptionSet& OptionSet::Bytes(const std::string& name, int64_t* target, int64_t min, int64_t max,
                            std::string help) {
  const std::string range = Cat("[", FormatBytes(min), ", ", FormatBytes(max), "]");
  return Add({name, "BYTES", range, FormatBytes(*target), std::move(help), false, false,
              [=](const std::vector<std::string>& values) -> absl::Status {
                const auto value = ParseBytes(values[0]);
                if (!value.ok()) {
                  return absl::InvalidArgumentError(Cat(name, ": ", value.status().message()));
                }
                if (*value < min || *value > max) return OutOfRange(name, values[0], range);
                *target = *value;
                return absl::OkStatus();
              }});
}

OptionSet& OptionSet::Duration(const std::string& name, double* target, double min, double max,
                               std::string help) {
  const std::string range = Cat("[", FormatDuration(min), ", ", FormatDuration(max), "]");
  return Add({name, "TIME", range, FormatDuration(*target), std::move(help), false, false,
              [=](const std::vector<std::string>& values) -> absl::Status {
                const auto value = ParseDuration(values[0]);
                if (!value.ok()) {
                  return absl::InvalidArgumentError(Cat(name, ": ", value.status().message()));
                }
                if (!(*value >= min && *value <= max)) return OutOfRange(name, values[0], range);
                *target = *value;
                return absl::OkStatus();
              }});
}

OptionSet& OptionSet::Choice(const std::string& name, std::string* target,
                             const std::vector<std::string>& choices, std::string help) {
  const std::string range = absl::StrJoin(choices, " | ");
  return Add({name, "WORD", range, *target, std::move(help), false, false,
              [=](const std::vector<std::string>& values) -> absl::Status {
                if (std::find(choices.begin(), choices.end(), values[0]) == choices.end()) {
                  return absl::InvalidArgumentError(
                      Cat(name, ": \"", values[0], "\" is none of ", range));
                }
                *target = values[0];
                return absl::OkStatus();
              }});
}

OptionSet& OptionSet::List(const std::string& name, std::vector<std::string>* target,
                           std::string help) {
  return Add({name, "A,B", "", absl::StrJoin(*target, ","), std::move(help), false, true,
              [=](const std::vector<std::string>& values) {
                *target = values;
                return absl::OkStatus();
              }});
}

std::string ConfigHelp(const ConfigRequest& request) {
  std::string help = Cat(request.program, " ", Version(), "\n", request.description,
                         "\n\nUsage: ", request.program, " [--config FILE] [flags]\n\n",
                         "Later layers win: defaults, the YAML file (--config or "
                         "COGUMI_CONFIG), COGUMI_* variables, flags.\n");
  for (const OptionSet* set : request.sets) {
    const std::string prefix = request.sets.size() == 1 ? "" : set->section() + ".";
    help += Cat("\nSection `", set->section(), "` of the file, variables ", VariableOf(*set, ""),
                "*:\n");
    for (const auto& option : set->options()) {
      help +=
          Cat("  --", FlagOf(prefix + option.name), option.kind.empty() ? "" : " ", option.kind,
              "\n      ", option.help, " (", option.range.empty() ? "" : Cat(option.range, ", "),
              "default ", option.default_text.empty() ? "none" : option.default_text, ")\n");
    }
  }
  help += Cat("\n  --help, --version\n");
  return help;
}

absl::Status CheckVariable(std::string_view name) {
  std::vector<std::string> known(std::begin(kVariables), std::end(kVariables));
  if (std::find(known.begin(), known.end(), name) != known.end()) return absl::OkStatus();
  std::vector<std::string> sections = KnownSections();
  sections.insert(sections.end(), std::begin(kVerbSections), std::end(kVerbSections));
  for (const std::string& section : sections) {
    if (name.starts_with(VariableOf(section, ""))) return absl::OkStatus();
  }
  // A slip in the section: the same name in the section that was meant.
  for (const std::string& section : sections) {
    const std::string prefix = VariableOf(section, "");
    const std::string_view written =
        FirstWords(name, std::count(prefix.begin(), prefix.end(), '_'));
    if (EditDistance(written, prefix) > kMaxSlips) continue;
    known.push_back(Cat(prefix, name.substr(written.size())));
  }
  return Unknown("environment variable", name, known);
}

absl::StatusOr<ConfigOutcome> LoadConfig(const ConfigRequest& request) {
  ASSIGN_OR_RETURN(const Flags flags, ReadFlags(request));
  if (flags.help) {
    std::fputs(ConfigHelp(request).c_str(), stdout);
    return ConfigOutcome::kExit;
  }
  if (flags.version) {
    std::printf("%s %s\n", request.program.c_str(), std::string(Version()).c_str());
    return ConfigOutcome::kExit;
  }
  std::string config_path;
  Values from_environment;
  RETURN_IF_ERROR(ReadEnvironment(request, &config_path, &from_environment));
  if (!flags.config_path.empty()) config_path = flags.config_path;
  if (!config_path.empty()) {
    Values from_file;
    RETURN_IF_ERROR(ReadFile(config_path, request, &from_file));
    RETURN_IF_ERROR(Apply(from_file, config_path));
  }
  RETURN_IF_ERROR(Apply(from_environment, "environment"));
  RETURN_IF_ERROR(Apply(flags.values, "flags"));
  return ConfigOutcome::kRun;
}

std::string_view Version() { return COGUMI_VERSION; }

}  // namespace cogumi::services
