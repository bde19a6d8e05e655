#include "engine/tokenizer/tokenizer.h"

#include <string>
#include <vector>

#include "engine/io/gguf.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/tiny_model.h"

namespace cogumi {
namespace {

using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

absl::StatusOr<std::unique_ptr<Tokenizer>> Create(const std::string& bytes) {
  const auto file =
      GgufFile::Parse(std::as_bytes(std::span(bytes.data(), bytes.size())), "test.gguf");
  if (!file.ok()) return file.status();
  return Tokenizer::Create(**file);
}

std::unique_ptr<Tokenizer> TinyTokenizer() {
  testing::TinyModelOptions options;
  options.layers = 0;
  auto tokenizer = Create(testing::TinyModelBytes(options));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return std::move(tokenizer).value();
}

// A vocabulary of a, b, c, ab, bc, abc and a control token, as far as given.
struct Vocabulary {
  std::vector<std::string> tokens = {"a", "b", "c", "ab", "bc", "abc", "<|end|>"};
  std::vector<int32_t> types = {1, 1, 1, 1, 1, 1, 3};
  std::vector<std::string> merges = {"b c", "a b", "ab c"};
  std::string pre = "gpt-2";

  GgufBuilder Builder() const {
    GgufBuilder builder;
    builder.String("tokenizer.ggml.model", "gpt2")
        .String("tokenizer.ggml.pre", pre)
        .Strings("tokenizer.ggml.tokens", tokens)
        .Ints("tokenizer.ggml.token_type", types)
        .Strings("tokenizer.ggml.merges", merges);
    return builder;
  }
};

void ExpectRefused(const GgufBuilder& builder, absl::StatusCode code, const std::string& part) {
  const auto tokenizer = Create(builder.Bytes());
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_EQ(tokenizer.status().code(), code) << tokenizer.status();
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr(part));
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("test.gguf"));
}

void ExpectInvalid(const Vocabulary& vocabulary, const std::string& part) {
  ExpectRefused(vocabulary.Builder(), absl::StatusCode::kInvalidArgument, part);
}

TEST(Tokenizer, MergesByRankNotByPlace) {
  const auto tokenizer = Create(Vocabulary{}.Builder().Bytes()).value();
  // "b c" comes first, and nothing joins a with bc.
  EXPECT_THAT(tokenizer->Encode("abc", false).ids, ElementsAre(0, 4));
  EXPECT_THAT(tokenizer->Encode("abab", false).ids, ElementsAre(3, 3));
}

TEST(Tokenizer, LlamaBpeTakesAWholePieceThatIsAToken) {
  Vocabulary vocabulary;
  vocabulary.pre = "llama-bpe";
  const auto tokenizer = Create(vocabulary.Builder().Bytes()).value();
  EXPECT_THAT(tokenizer->Encode("abc", false).ids, ElementsAre(5));
  EXPECT_THAT(tokenizer->Encode("abcc", false).ids, ElementsAre(0, 4, 2));
}

TEST(Tokenizer, OfEqualRanksTheLeftmostMergeWins) {
  Vocabulary vocabulary;
  vocabulary.tokens = {"a", "aa", "<|end|>"};
  vocabulary.types = {1, 1, 3};
  vocabulary.merges = {"a a"};
  const auto tokenizer = Create(vocabulary.Builder().Bytes()).value();
  EXPECT_THAT(tokenizer->Encode("aaaaa", false).ids, ElementsAre(1, 1, 0));
}

TEST(Tokenizer, SpecialTokensStayTextUnlessAsked) {
  const auto tokenizer = TinyTokenizer();
  const Tokenizer::Encoded plain = tokenizer->Encode("x<|im_end|>", false);
  EXPECT_EQ(plain.ids.size(), 11u);
  for (const TokenId id : plain.ids) EXPECT_FALSE(tokenizer->IsControl(id));
  EXPECT_THAT(tokenizer->Encode("x<|im_end|><|im_end", true).ids,
              ElementsAre('x', testing::kTinyImEnd, '<', '|', 'i', 'm', '_', 'e', 'n', 'd'));
}

TEST(Tokenizer, TheLongestSpecialTokenWins) {
  Vocabulary vocabulary;
  vocabulary.tokens.insert(vocabulary.tokens.end(), {"<x", "<x>", "<xy>z"});
  vocabulary.types.insert(vocabulary.types.end(), {3, 4, 3});
  const auto tokenizer = Create(vocabulary.Builder().Bytes()).value();
  EXPECT_THAT(tokenizer->Encode("<x>a<x<xy>z<xy>c", true).ids, ElementsAre(8, 0, 7, 9, 7, 2));
  // Without special parsing only user-defined ones are found: <x> in <xy>z is none.
  EXPECT_THAT(tokenizer->Encode("<x>a<x<xy>z<x>c", false).ids, ElementsAre(8, 0, 8, 2));
  EXPECT_EQ(tokenizer->Encode("<x<xy>z", false).dropped_bytes, 7);
  // User-defined tokens are text, control tokens are not.
  EXPECT_EQ(tokenizer->TokenBytes(8, false), "<x>");
  EXPECT_EQ(tokenizer->TokenBytes(7, false), "");
  EXPECT_EQ(tokenizer->TokenBytes(7, true), "<x");
}

TEST(Tokenizer, EncodedBytesComeBack) {
  const auto tokenizer = TinyTokenizer();
  std::string text = "The then in an \xf0\x9f\x99\x82 \xff\xfe caf\xc3\xa9\n\n  x";
  for (int byte = 0; byte < 256; ++byte) text.push_back(static_cast<char>(byte));
  const Tokenizer::Encoded encoded = tokenizer->Encode(text, false);
  EXPECT_EQ(encoded.dropped_bytes, 0);
  std::string decoded;
  for (const TokenId id : encoded.ids) decoded += tokenizer->TokenBytes(id, false);
  EXPECT_EQ(decoded, text);
  EXPECT_LT(encoded.ids.size(), text.size());
}

TEST(Tokenizer, BytesWithoutATokenAreDroppedAndCounted) {
  const auto tokenizer = Create(Vocabulary{}.Builder().Bytes()).value();
  const Tokenizer::Encoded encoded = tokenizer->Encode("a\xf0\x9f\x99\x82z b", false);
  EXPECT_THAT(encoded.ids, ElementsAre(0, 1));
  EXPECT_EQ(encoded.dropped_bytes, 6);
  EXPECT_THAT(tokenizer->Encode("", true).ids, IsEmpty());
}

TEST(Tokenizer, ALongWordTakesNoQuadraticTime) {
  const auto tokenizer = TinyTokenizer();
  const std::string word(size_t{1} << 20, 'e');
  EXPECT_EQ(tokenizer->Encode(word, false).ids.size(), word.size());
  std::string merging;
  while (merging.size() < size_t{1} << 20) merging += "he";
  EXPECT_EQ(tokenizer->Encode(merging, false).ids.size(), merging.size() / 2);
  // Places where a special token could begin, white space and digits, without end.
  for (const char* text : {"<", "<|im_", " ", "\n", "7", "'", "\xff"}) {
    std::string many;
    while (many.size() < size_t{1} << 20) many += text;
    const Tokenizer::Encoded encoded = tokenizer->Encode(many, true);
    EXPECT_EQ(encoded.dropped_bytes, 0) << text;
    EXPECT_GE(encoded.ids.size(), many.size() / 2) << text;
  }
}

TEST(Tokenizer, FindsTokensByTheirBytes) {
  const auto tokenizer = TinyTokenizer();
  EXPECT_EQ(tokenizer->FindToken("<|im_start|>"), testing::kTinyImStart);
  EXPECT_EQ(tokenizer->FindToken(" the"), 258);
  EXPECT_EQ(tokenizer->FindToken("absent"), -1);
  EXPECT_EQ(tokenizer->FindToken(""), -1);
  EXPECT_EQ(tokenizer->VocabularySize(), testing::kTinyVocabularySize);
}

TEST(Tokenizer, EndTokensAndBeginning) {
  const auto tokenizer = TinyTokenizer();
  EXPECT_THAT(tokenizer->end_tokens(), ElementsAre(testing::kTinyEndOfText, testing::kTinyImEnd));
  EXPECT_EQ(tokenizer->bos(), testing::kTinyImStart);
  EXPECT_FALSE(tokenizer->add_bos());

  Vocabulary vocabulary;
  vocabulary.tokens.insert(vocabulary.tokens.end(), {"<|eot_id|>", "<|im_end|>"});
  vocabulary.types.insert(vocabulary.types.end(), {3, 1});  // the last one is no control token
  GgufBuilder builder = vocabulary.Builder();
  builder.Uint("tokenizer.ggml.eos_token_id", 0).Uint("tokenizer.ggml.eot_token_id", 6);
  const auto other = Create(builder.Bytes()).value();
  EXPECT_THAT(other->end_tokens(), ElementsAre(0, 6, 7));
  EXPECT_EQ(other->bos(), -1);

  vocabulary.pre = "llama-bpe";
  builder = vocabulary.Builder();
  builder.Uint("tokenizer.ggml.bos_token_id", 6);
  EXPECT_TRUE(Create(builder.Bytes()).value()->add_bos());
  builder.Bool("tokenizer.ggml.add_bos_token", false);
  EXPECT_FALSE(Create(builder.Bytes()).value()->add_bos());
}

TEST(Tokenizer, UnknownKindsAreNamed) {
  constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
  Vocabulary vocabulary;
  vocabulary.pre = "qwen2";
  ExpectRefused(vocabulary.Builder(), kUnimplemented, "\"qwen2\"");
  ExpectRefused(GgufBuilder().String("tokenizer.ggml.model", "llama"), kUnimplemented, "\"llama\"");
  ExpectRefused(
      GgufBuilder().String("tokenizer.ggml.model", "gpt2").Strings("tokenizer.ggml.tokens", {"a"}),
      kUnimplemented, "tokenizer.ggml.pre");
  ExpectRefused(GgufBuilder().Uint("x", 1), absl::StatusCode::kNotFound, "tokenizer.ggml.model");
}

TEST(Tokenizer, MalformedVocabulariesAreRefused) {
  Vocabulary vocabulary;
  vocabulary.types.pop_back();
  ExpectInvalid(vocabulary, "6 entries for 7 tokens");
  vocabulary = {};
  vocabulary.types[2] = 9;
  ExpectInvalid(vocabulary, "token_type[2] is 9");
  vocabulary = {};
  vocabulary.tokens[4] = "ab";
  ExpectInvalid(vocabulary, "tokens[4] \"ab\"");
  vocabulary = {};
  vocabulary.tokens.push_back("<|end|>");
  vocabulary.types.push_back(3);
  ExpectInvalid(vocabulary, "tokens[7] \"<|end|>\"");
  vocabulary = {};
  vocabulary.tokens.clear();
  vocabulary.types.clear();
  ExpectInvalid(vocabulary, "0 entries");
  for (const char* merge : {"a", "", " a", "a ", "a z", "c c", "a <|end|>", "a b c"}) {
    vocabulary = {};
    vocabulary.merges[1] = merge;
    ExpectInvalid(vocabulary, "merges[1]");
  }
  vocabulary = {};
  GgufBuilder builder = vocabulary.Builder();
  builder.Uint("tokenizer.ggml.eos_token_id", 7);
  ExpectRefused(builder, absl::StatusCode::kInvalidArgument, "eos_token_id is 7");
  builder = vocabulary.Builder();
  builder.Bool("tokenizer.ggml.add_bos_token", true);
  ExpectRefused(builder, absl::StatusCode::kInvalidArgument, "bos_token_id");
  vocabulary.tokens.push_back(std::string((size_t{1} << 20) + 1, 'x'));
  vocabulary.types.push_back(3);
  ExpectInvalid(vocabulary, "special tokens have more than");
}

TEST(Tokenizer, AModelWithoutVocabularyKnowsIdsOnly) {
  testing::TinyModelOptions options;
  options.vocabulary = false;
  options.layers = 0;
  const auto tokenizer = Create(testing::TinyModelBytes(options)).value();
  EXPECT_EQ(tokenizer->VocabularySize(), testing::kTinyVocabularySize);
  const Tokenizer::Encoded encoded = tokenizer->Encode("hello", true);
  EXPECT_THAT(encoded.ids, IsEmpty());
  EXPECT_EQ(encoded.dropped_bytes, 5);
  EXPECT_EQ(tokenizer->TokenBytes(7, true), "");
  EXPECT_EQ(tokenizer->FindToken("a"), -1);
  EXPECT_THAT(tokenizer->end_tokens(), IsEmpty());

  GgufBuilder builder;
  builder.String("tokenizer.ggml.model", "no_vocab").String("general.architecture", "llama");
  ExpectRefused(builder, absl::StatusCode::kNotFound, "llama.vocab_size");
  builder.Uint("llama.vocab_size", 0);
  ExpectRefused(builder, absl::StatusCode::kInvalidArgument, "llama.vocab_size is 0");
}

}  // namespace
}  // namespace cogumi
