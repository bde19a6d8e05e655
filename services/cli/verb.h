// A verb of the command line: its options, its arguments, its help, and what it does.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/common/config.h"

namespace cogumi::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInterrupted = 130;  // as a shell reports SIGINT

// INVALID_ARGUMENT that ends the program with kExitUsage and a hint at the verb's help.
absl::Status UsageError(const std::string& message);
bool IsUsageError(const absl::Status& status);
// Adds what a person can do about an error; printed below it.
absl::Status WithAdvice(absl::Status status, const std::string& advice);
std::string AdviceOf(const absl::Status& status);

class Verb {
 public:
  // `name` may be two words ("adapter load"). `arguments` is for the help: "[MODEL] PROMPT".
  Verb(std::string name, std::string arguments, std::string summary, size_t min_positionals,
       size_t max_positionals);
  virtual ~Verb() = default;
  Verb(const Verb&) = delete;
  Verb& operator=(const Verb&) = delete;

  const std::string& name() const { return name_; }
  const std::string& arguments() const { return arguments_; }
  const std::string& summary() const { return summary_; }
  const services::OptionSet& options() const { return options_; }

  // Takes the words after the verb: options from COGUMI_<VERB>_<OPTION>, then from flags.
  // kExit after --help. A usage error names the word and suggests the nearest option.
  absl::StatusOr<services::ConfigOutcome> Parse(const std::vector<std::string>& words);
  std::string Help() const;

  // Does the work and answers with the exit code.
  virtual absl::StatusOr<int> Run() = 0;

  bool json() const { return json_; }

 protected:
  // Words that are left to the verb instead of being errors: see `serve`.
  virtual bool TakesUnknownFlags() const { return false; }

  services::OptionSet options_;
  std::vector<std::string> positionals_;
  std::vector<std::string> unknown_flags_;

 private:
  absl::Status ReadVariables();
  absl::Status ParseFlag(const std::vector<std::string>& words, size_t* index);

  const std::string name_;
  const std::string arguments_;
  const std::string summary_;
  const size_t min_positionals_;
  const size_t max_positionals_;
  bool json_ = false;
};

// All verbs, in the order of the help.
std::vector<std::unique_ptr<Verb>> MakeVerbs();

}  // namespace cogumi::cli
