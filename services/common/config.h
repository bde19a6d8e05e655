// Layered configuration: defaults < YAML file < COGUMI_* environment < flags.
//
// A service declares its options once, in an OptionSet bound to a plain struct that holds the
// defaults; the same declaration gives the YAML key, the environment variable, the flag and the
// help. Names are snake_case with dots for nesting: option "base.digest" of section "modifiers" is
//   YAML   modifiers: { base: { digest: ... } }
//   env    COGUMI_MODIFIERS_BASE_DIGEST
//   flag   --base.digest VALUE          (one section)
//          --modifiers.base.digest VALUE (a process with several sections)
// Flags take '-' for '_', "--name=value", and for booleans "--name" or "--no-name".
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/core/suggest.h"

namespace cogumi::services {

// "512MiB", "1.5GiB", "64KB", "4096": bytes. INVALID_ARGUMENT for anything else, or beyond int64.
absl::StatusOr<int64_t> ParseBytes(std::string_view text);
// "30s", "250ms", "5m", "1h", "1.5": seconds.
absl::StatusOr<double> ParseDuration(std::string_view text);
std::string FormatBytes(int64_t bytes);
std::string FormatDuration(double seconds);

using cogumi::Suggest;

// The options of one section. Targets must outlive the set; they hold the defaults.
class OptionSet {
 public:
  // `section` is the YAML section: gateway, router, decoder, modifiers.
  explicit OptionSet(std::string section);

  OptionSet& String(const std::string& name, std::string* target, std::string help);
  OptionSet& Int(const std::string& name, int32_t* target, int32_t min, int32_t max,
                 std::string help);
  OptionSet& Int64(const std::string& name, int64_t* target, int64_t min, int64_t max,
                   std::string help);
  OptionSet& Double(const std::string& name, double* target, double min, double max,
                    std::string help);
  OptionSet& Bool(const std::string& name, bool* target, std::string help);
  OptionSet& Bytes(const std::string& name, int64_t* target, int64_t min, int64_t max,
                   std::string help);
  // Seconds.
  OptionSet& Duration(const std::string& name, double* target, double min, double max,
                      std::string help);
  OptionSet& Choice(const std::string& name, std::string* target,
                    const std::vector<std::string>& choices, std::string help);
  // A YAML sequence, or values with commas between them; replaces the default as a whole.
  OptionSet& List(const std::string& name, std::vector<std::string>* target, std::string help);

  struct Option {
    std::string name;
    std::string kind;   // for the help: "BYTES", "SECONDS", ...
    std::string range;  // for the help, may be empty
    std::string default_text;
    std::string help;
    bool is_bool = false;
    bool is_list = false;
    std::function<absl::Status(const std::vector<std::string>&)> set;
  };

  const std::string& section() const { return section_; }
  const std::vector<Option>& options() const { return options_; }
  const Option* Find(std::string_view name) const;
  // Sets from text, as a flag would. INVALID_ARGUMENT naming the option, the value and the range.
  absl::Status Set(std::string_view name, const std::string& value) const;

 private:
  OptionSet& Add(Option option);

  std::string section_;
  std::vector<Option> options_;
};

struct ConfigRequest {
  std::string program;      // "cogumi-decoder"
  std::string description;  // first lines of --help
  std::vector<const OptionSet*> sets;
  int argc = 0;
  const char* const* argv = nullptr;  // argv[0] is skipped
  // The environment, as environ; null: the process's own.
  const char* const* environment = nullptr;
};

enum class ConfigOutcome {
  kRun,
  kExit,  // --help or --version was printed
};

// INVALID_ARGUMENT, with a suggestion, for a variable COGUMI_* that no program of ours reads:
// neither one of the names that stand alone, nor in the section of a service or of a verb of the
// command. Whoever reads a section checks the names in it.
absl::Status CheckVariable(std::string_view name);

// Reads all layers. Every unknown key, variable COGUMI_* and flag is an error with a suggestion;
// the YAML file and the variables may hold the other services' sections too.
// `--config FILE` or COGUMI_CONFIG names the file.
absl::StatusOr<ConfigOutcome> LoadConfig(const ConfigRequest& request);

// The help text of --help.
std::string ConfigHelp(const ConfigRequest& request);

// Of this build, for example "0.1.0".
std::string_view Version();

}  // namespace cogumi::services
