#include "tools/logits/sequences.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace cogumi {
namespace {

absl::Status LineError(int line, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("sequences, line ", line, ": ", what));
}

}  // namespace

absl::StatusOr<std::vector<LogitSequence>> ReadSequences(std::istream& in, int32_t vocabulary_size,
                                                         int32_t context_length) {
  std::vector<LogitSequence> sequences;
  std::string text;
  for (int line = 1; std::getline(in, text); ++line) {
    std::vector<int32_t> numbers;
    for (const absl::string_view word : absl::StrSplit(text, ' ', absl::SkipWhitespace())) {
      int32_t value = 0;
      if (!absl::SimpleAtoi(word, &value) || value < 0) {
        return LineError(line, absl::StrCat("'", word, "' is no number from 0 on"));
      }
      numbers.push_back(value);
    }
    if (numbers.empty()) continue;
    LogitSequence sequence;
    if (numbers.size() < 3) return LineError(line, "fewer than three numbers");
    sequence.logits_from = numbers[0];
    sequence.decode_from = numbers[1];
    sequence.tokens.assign(numbers.begin() + 2, numbers.end());
    const size_t count = sequence.tokens.size();
    if (count > static_cast<size_t>(context_length)) {
      return LineError(line, absl::StrCat(count, " tokens, the context holds ", context_length));
    }
    if (static_cast<size_t>(sequence.logits_from) >= count) {
      return LineError(
          line, absl::StrCat("logits_from ", sequence.logits_from, " of ", count, " tokens"));
    }
    for (const TokenId token : sequence.tokens) {
      if (token >= vocabulary_size) {
        return LineError(line,
                         absl::StrCat("token ", token, ", the vocabulary has ", vocabulary_size));
      }
    }
    sequences.push_back(std::move(sequence));
  }
  if (sequences.empty()) return absl::InvalidArgumentError("sequences: none given");
  return sequences;
}

}  // namespace cogumi
