#include "engine/tokenizer/merge_table.h"

#include <bit>
#include <string>

#include "absl/status/status.h"
#include "engine/io/gguf_parser.h"
#include "engine/io/message.h"
#include "engine/tokenizer/byte_level.h"

namespace cogumi {
namespace {

constexpr size_t kMaxMerges = size_t{1} << 24;

}  // namespace

absl::StatusOr<MergeTable> MergeTable::Create(std::span<const std::string_view> lines,
                                              const TokenTable& tokens) {
  if (lines.size() > kMaxMerges) {
    return absl::InvalidArgumentError(
        Cat("tokenizer.ggml.merges has ", lines.size(), " entries (at most ", kMaxMerges, ")"));
  }
  MergeTable table;
  const size_t capacity = std::bit_ceil(lines.size() * 2 + 2);
  table.slots_.resize(capacity);
  table.shift_ = 64 - std::countr_zero(capacity);

  std::string bytes;
  for (size_t i = 0; i < lines.size(); ++i) {
    const auto bad = [&](std::string_view why) {
      return absl::InvalidArgumentError(
          Cat("tokenizer.ggml.merges[", i, "] \"", gguf::Printable(lines[i]), "\" ", why));
    };
    const size_t space = lines[i].find(' ');
    if (space == 0 || space == std::string_view::npos || space + 1 == lines[i].size()) {
      return bad("is not of the form \"left right\"");
    }
    bytes.clear();
    if (!AppendByteLevelDecoded(lines[i].substr(0, space), &bytes)) {
      return bad("is not spelled in the byte-level alphabet");
    }
    const size_t left_size = bytes.size();
    if (!AppendByteLevelDecoded(lines[i].substr(space + 1), &bytes)) {
      return bad("is not spelled in the byte-level alphabet");
    }
    const std::string_view both = bytes;
    Merge merge;
    merge.left = tokens.FindNormal(both.substr(0, left_size));
    merge.right = tokens.FindNormal(both.substr(left_size));
    merge.joined = tokens.FindNormal(both);
    merge.rank = static_cast<uint32_t>(i);
    if (merge.left < 0 || merge.right < 0 || merge.joined < 0) {
      return bad("names a token that the vocabulary lacks");
    }
    table.slots_[table.SlotOf(merge.left, merge.right)] = merge;
  }
  return table;
}

}  // namespace cogumi
