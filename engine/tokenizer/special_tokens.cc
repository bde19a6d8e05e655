#include "engine/tokenizer/special_tokens.h"

#include "absl/status/status.h"
#include "engine/io/gguf_parser.h"
#include "engine/io/message.h"

namespace cogumi {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 20;
constexpr uint32_t kNone = 0xffffffff;

uint64_t Key(uint32_t node, char byte) {
  return (static_cast<uint64_t>(node) << 8) | static_cast<uint8_t>(byte);
}

}  // namespace

absl::StatusOr<SpecialTokens> SpecialTokens::Create(const TokenTable& tokens, Which which) {
  SpecialTokens result;
  size_t text_bytes = 0;
  uint32_t nodes = 1;
  for (TokenId id = 0; id < tokens.Size(); ++id) {
    if (!tokens.IsNamed(id)) continue;
    if (tokens.IsControl(id) && which == Which::kUserDefined) continue;
    const std::string_view name = tokens.Bytes(id);
    text_bytes += name.size();
    if (text_bytes > kMaxTextBytes) {
      return absl::InvalidArgumentError(
          Cat("the names of the special tokens have more than ", kMaxTextBytes, " bytes"));
    }
    result.first_bytes_.set(static_cast<uint8_t>(name[0]));
    uint32_t node = 0;
    for (const char byte : name) {
      const auto [edge, added] = result.edges_.try_emplace(Key(node, byte), nodes);
      if (added) ++nodes;
      node = edge->second;
    }
    if (!result.token_at_.try_emplace(node, id).second) {
      return absl::InvalidArgumentError(Cat("tokenizer.ggml.tokens[", id, "] \"",
                                            gguf::Printable(name), "\" is there a second time"));
    }
  }
  return result;
}

uint32_t SpecialTokens::Step(uint32_t node, char byte) const {
  const auto edge = edges_.find(Key(node, byte));
  return edge == edges_.end() ? kNone : edge->second;
}

std::optional<SpecialTokens::Match> SpecialTokens::FindFirst(std::string_view text,
                                                             size_t from) const {
  for (size_t start = from; start < text.size(); ++start) {
    if (!first_bytes_.test(static_cast<uint8_t>(text[start]))) continue;
    std::optional<Match> longest;
    uint32_t node = 0;
    for (size_t end = start; end < text.size();) {
      node = Step(node, text[end++]);
      if (node == kNone) break;
      if (const auto token = token_at_.find(node); token != token_at_.end()) {
        longest = Match{start, end - start, token->second};
      }
    }
    if (longest.has_value()) return longest;
  }
  return std::nullopt;
}

TokenId SpecialTokens::Find(std::string_view name) const {
  uint32_t node = 0;
  for (const char byte : name) {
    node = Step(node, byte);
    if (node == kNone) return -1;
  }
  const auto token = token_at_.find(node);
  return token == token_at_.end() ? -1 : token->second;
}

}  // namespace cogumi
