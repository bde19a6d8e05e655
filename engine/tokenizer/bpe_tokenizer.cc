#include "engine/tokenizer/bpe_tokenizer.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/core/status_macros.h"
#include "engine/io/gguf_parser.h"
#include "engine/io/message.h"
#include "engine/tokenizer/merge_table.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/special_tokens.h"
#include "engine/tokenizer/token_table.h"

namespace cogumi {
namespace {

// Control tokens that end an answer in the models that have them, beside the file's own eos and
// eot: ChatML's, Llama 3's, and the end of a document, after which a model starts another text.
constexpr std::string_view kEndMarkers[] = {"<|im_end|>", "<|eot_id|>", "<|eom_id|>",
                                            "<|end_of_text|>", "<|endoftext|>"};

// Joins the tokens of one piece until no merge applies: always the merge of lowest rank, the
// leftmost of equals. Symbols form a linked list and candidate merges a heap, so a piece of n bytes
// takes O(n log n).
class PieceEncoder {
 public:
  PieceEncoder(const TokenTable& tokens, const MergeTable& merges)
      : tokens_(tokens), merges_(merges) {}

  void Encode(std::string_view piece, Tokenizer::Encoded* out) {
    symbols_.clear();
    for (const char c : piece) {
      const TokenId id = tokens_.ByteToken(static_cast<uint8_t>(c));
      if (id >= 0) {
        const size_t index = symbols_.size();
        symbols_.push_back({id, index - 1, index + 1});
      } else if (out->dropped_bytes < std::numeric_limits<int32_t>::max()) {
        ++out->dropped_bytes;
      }
    }
    if (symbols_.empty()) return;
    symbols_.front().previous = kEnd;
    symbols_.back().next = kEnd;
    for (size_t i = 0; i + 1 < symbols_.size(); ++i) Offer(i);
    while (!heap_.empty()) {
      const Candidate best = heap_.top();
      heap_.pop();
      Join(best);
    }
    for (size_t i = 0; i != kEnd; i = symbols_[i].next) out->ids.push_back(symbols_[i].id);
  }

 private:
  static constexpr size_t kEnd = static_cast<size_t>(-1);

  struct Symbol {
    TokenId id;  // -1 once it is part of the symbol before it
    size_t previous;
    size_t next;
  };
  struct Candidate {
    uint32_t rank;
    TokenId joined;
    size_t left;
    bool operator<(const Candidate& other) const {  // the heap's top is the largest
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };

  // Puts the merge of `left` and its neighbour on the heap when there is one.
  void Offer(size_t left) {
    const size_t right = symbols_[left].next;
    if (right == kEnd) return;
    const MergeTable::Merge* merge = merges_.Find(symbols_[left].id, symbols_[right].id);
    if (merge != nullptr) heap_.push({merge->rank, merge->joined, left});
  }

  void Join(const Candidate& candidate) {
    Symbol& left = symbols_[candidate.left];
    if (left.id < 0 || left.next == kEnd) return;
    Symbol& right = symbols_[left.next];
    // The pair may have changed since it was offered.
    const MergeTable::Merge* merge = merges_.Find(left.id, right.id);
    if (merge == nullptr || merge->joined != candidate.joined) return;
    left.id = candidate.joined;
    right.id = -1;
    left.next = right.next;
    if (left.next != kEnd) symbols_[left.next].previous = candidate.left;
    if (left.previous != kEnd) Offer(left.previous);
    Offer(candidate.left);
  }

  const TokenTable& tokens_;
  const MergeTable& merges_;
  std::vector<Symbol> symbols_;
  std::priority_queue<Candidate> heap_;
};

class BpeTokenizer : public Tokenizer {
 public:
  struct Settings {
    PreTokenizer pre_tokenizer = PreTokenizer::kGpt2;
    TokenId bos = -1;
    bool add_bos = false;
    std::vector<TokenId> end_tokens;
  };

  BpeTokenizer(TokenTable tokens, MergeTable merges, SpecialTokens user_defined,
               SpecialTokens specials, Settings settings)
      : tokens_(std::move(tokens)),
        merges_(std::move(merges)),
        user_defined_(std::move(user_defined)),
        specials_(std::move(specials)),
        settings_(std::move(settings)) {}

  Encoded Encode(std::string_view text, bool parse_special) const override {
    const SpecialTokens& named = parse_special ? specials_ : user_defined_;
    Encoded encoded;
    size_t done = 0;
    while (const auto match = named.FindFirst(text, done)) {
      EncodePlain(text.substr(done, match->position - done), &encoded);
      encoded.ids.push_back(match->id);
      done = match->position + match->size;
    }
    EncodePlain(text.substr(done), &encoded);
    return encoded;
  }

  std::string_view TokenBytes(TokenId id, bool special) const override {
    if (tokens_.IsControl(id) && !special) return {};
    return tokens_.Bytes(id);
  }

  int32_t VocabularySize() const override { return tokens_.Size(); }
  bool IsControl(TokenId id) const override { return tokens_.IsControl(id); }

  TokenId FindToken(std::string_view text) const override {
    const TokenId special = specials_.Find(text);
    return special >= 0 ? special : tokens_.FindNormal(text);
  }

  TokenId bos() const override { return settings_.bos; }
  bool add_bos() const override { return settings_.add_bos; }
  const std::vector<TokenId>& end_tokens() const override { return settings_.end_tokens; }

 private:
  void EncodePlain(std::string_view text, Encoded* encoded) const {
    PieceEncoder encoder(tokens_, merges_);
    while (!text.empty()) {
      const std::string_view piece = text.substr(0, FirstPiece(settings_.pre_tokenizer, text));
      text.remove_prefix(piece.size());
      // Llama 3 takes a piece that is a token as that token, whatever the merges would make of it.
      if (settings_.pre_tokenizer == PreTokenizer::kLlamaBpe) {
        if (const TokenId whole = tokens_.FindNormal(piece); whole >= 0) {
          encoded->ids.push_back(whole);
          continue;
        }
      }
      encoder.Encode(piece, encoded);
    }
  }

  const TokenTable tokens_;
  const MergeTable merges_;
  const SpecialTokens user_defined_;
  const SpecialTokens specials_;  // with the user-defined ones
  const Settings settings_;
};

// The id under `key`, -1 when absent.
absl::StatusOr<TokenId> ReadTokenId(const GgufFile& file, std::string_view key, int32_t size) {
  if (!file.Has(key)) return TokenId{-1};
  ASSIGN_OR_RETURN(const uint64_t id, file.GetUint(key));
  if (id >= static_cast<uint64_t>(size)) {
    return absl::InvalidArgumentError(
        Cat(key, " is ", id, ", the vocabulary has ", size, " tokens"));
  }
  return static_cast<TokenId>(id);
}

absl::StatusOr<BpeTokenizer::Settings> ReadSettings(const GgufFile& file, const TokenTable& tokens,
                                                    const SpecialTokens& specials) {
  BpeTokenizer::Settings settings;
  if (!file.Has("tokenizer.ggml.pre")) {
    return absl::UnimplementedError(
        "the model names no pre-tokenizer (tokenizer.ggml.pre); supported are gpt-2, smollm and "
        "llama-bpe");
  }
  ASSIGN_OR_RETURN(const std::string_view name, file.GetString("tokenizer.ggml.pre"));
  const std::optional<PreTokenizer> kind = FindPreTokenizer(name);
  if (!kind.has_value()) {
    return absl::UnimplementedError(
        Cat("pre-tokenizer \"", gguf::Printable(name),
            "\" is not supported; supported are gpt-2, smollm and llama-bpe"));
  }
  settings.pre_tokenizer = *kind;

  const int32_t size = tokens.Size();
  ASSIGN_OR_RETURN(settings.bos, ReadTokenId(file, "tokenizer.ggml.bos_token_id", size));
  settings.add_bos = settings.bos >= 0 && *kind == PreTokenizer::kLlamaBpe;
  if (file.Has("tokenizer.ggml.add_bos_token")) {
    ASSIGN_OR_RETURN(settings.add_bos, file.GetBool("tokenizer.ggml.add_bos_token"));
    if (settings.add_bos && settings.bos < 0) {
      return absl::InvalidArgumentError(
          "tokenizer.ggml.add_bos_token is true without tokenizer.ggml.bos_token_id");
    }
  }

  std::vector<TokenId>& ends = settings.end_tokens;
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    ASSIGN_OR_RETURN(const TokenId id, ReadTokenId(file, key, size));
    if (id >= 0) ends.push_back(id);
  }
  for (const std::string_view marker : kEndMarkers) {
    const TokenId id = specials.Find(marker);
    if (id >= 0 && tokens.IsControl(id)) ends.push_back(id);
  }
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  return settings;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> CreateBpeTokenizer(const GgufFile& file) {
  ASSIGN_OR_RETURN(const std::vector<std::string_view> spelled,
                   file.GetStrings("tokenizer.ggml.tokens"));
  std::vector<int64_t> types;
  if (file.Has("tokenizer.ggml.token_type")) {
    ASSIGN_OR_RETURN(types, file.GetInts("tokenizer.ggml.token_type"));
  }
  ASSIGN_OR_RETURN(TokenTable tokens, TokenTable::Create(spelled, types));
  using Which = SpecialTokens::Which;
  ASSIGN_OR_RETURN(SpecialTokens user_defined,
                   SpecialTokens::Create(tokens, Which::kUserDefined));
  ASSIGN_OR_RETURN(SpecialTokens specials,
                   SpecialTokens::Create(tokens, Which::kUserDefinedAndControl));
  ASSIGN_OR_RETURN(BpeTokenizer::Settings settings, ReadSettings(file, tokens, specials));
  ASSIGN_OR_RETURN(const std::vector<std::string_view> lines,
                   file.GetStrings("tokenizer.ggml.merges"));
  ASSIGN_OR_RETURN(MergeTable merges, MergeTable::Create(lines, tokens));
  return std::make_unique<BpeTokenizer>(std::move(tokens), std::move(merges),
                                        std::move(user_defined), std::move(specials),
                                        std::move(settings));
}

}  // namespace cogumi
