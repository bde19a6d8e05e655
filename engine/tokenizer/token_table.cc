#include "engine/tokenizer/token_table.h"

#include <bit>
#include <functional>
#include <limits>

#include "absl/status/status.h"
#include "engine/io/gguf_parser.h"
#include "engine/io/message.h"
#include "engine/tokenizer/byte_level.h"

namespace cogumi {
namespace {

// Token types of GGUF (llama.h's llama_token_type).
enum GgufTokenType : int64_t {
  kTypeNormal = 1,
  kTypeUnknown = 2,
  kTypeControl = 3,
  kTypeUserDefined = 4,
  kTypeUnused = 5,
  kTypeByte = 6,
};

constexpr size_t kMaxTokens = size_t{1} << 22;
constexpr size_t kMaxTextBytes = std::numeric_limits<uint32_t>::max();

}  // namespace

absl::StatusOr<TokenTable> TokenTable::Create(std::span<const std::string_view> spelled,
                                              std::span<const int64_t> types) {
  if (spelled.empty() || spelled.size() > kMaxTokens) {
    return absl::InvalidArgumentError(
        Cat("tokenizer.ggml.tokens has ", spelled.size(), " entries (1 to ", kMaxTokens, ")"));
  }
  if (!types.empty() && types.size() != spelled.size()) {
    return absl::InvalidArgumentError(Cat("tokenizer.ggml.token_type has ", types.size(),
                                          " entries for ", spelled.size(), " tokens"));
  }
  size_t text_bytes = 0;
  for (const std::string_view token : spelled) text_bytes += token.size();
  if (text_bytes > kMaxTextBytes) {
    return absl::InvalidArgumentError(Cat("tokenizer.ggml.tokens has ", text_bytes,
                                          " bytes of text (at most ", kMaxTextBytes, ")"));
  }

  TokenTable table;
  table.arena_.reserve(text_bytes);
  table.offsets_.reserve(spelled.size() + 1);
  table.offsets_.push_back(0);
  table.kinds_.reserve(spelled.size());
  table.named_.resize(spelled.size(), false);
  table.slots_.assign(std::bit_ceil(spelled.size() * 2), -1);
  table.byte_tokens_.assign(256, -1);
  for (size_t i = 0; i < spelled.size(); ++i) {
    const int64_t type = types.empty() ? kTypeNormal : types[i];
    if (type < kTypeNormal || type > kTypeByte) {
      return absl::InvalidArgumentError(
          Cat("tokenizer.ggml.token_type[", i, "] is ", type, " (1 to 6)"));
    }
    Kind kind = Kind::kNormal;
    if (type == kTypeControl || type == kTypeUnknown || type == kTypeUnused) {
      kind = Kind::kControl;
    } else if (type == kTypeUserDefined || !AppendByteLevelDecoded(spelled[i], &table.arena_)) {
      kind = Kind::kUnreachable;
    }
    if (kind != Kind::kNormal) table.arena_.append(spelled[i]);
    table.offsets_.push_back(static_cast<uint32_t>(table.arena_.size()));
    table.kinds_.push_back(kind);
    table.named_[i] = (type == kTypeControl || type == kTypeUserDefined) && !spelled[i].empty();
    const auto id = static_cast<TokenId>(i);
    if (kind == Kind::kNormal && !table.Insert(id)) {
      return absl::InvalidArgumentError(Cat("tokenizer.ggml.tokens[", i, "] \"",
                                            gguf::Printable(spelled[i]),
                                            "\" is there a second time"));
    }
  }
  return table;
}

size_t TokenTable::SlotOf(std::string_view bytes) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = std::hash<std::string_view>{}(bytes)&mask;
  while (slots_[slot] >= 0 && Bytes(slots_[slot]) != bytes) slot = (slot + 1) & mask;
  return slot;
}

bool TokenTable::Insert(TokenId id) {
  const std::string_view bytes = Bytes(id);
  if (bytes.empty()) return true;  // never found in a text
  TokenId& slot = slots_[SlotOf(bytes)];
  if (slot >= 0) return false;
  slot = id;
  if (bytes.size() == 1) byte_tokens_[static_cast<uint8_t>(bytes[0])] = id;
  return true;
}

TokenId TokenTable::FindNormal(std::string_view bytes) const { return slots_[SlotOf(bytes)]; }

}  // namespace cogumi
