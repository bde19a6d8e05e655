// Broken model files: every truncation, and many mutations that know where the numbers of a file
// are. Whatever the file, reading it, and running it as a model, ends in a value or an error,
// within its bytes and without a large allocation. Sanitizer builds run the same test.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <limits>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "engine/io/gguf.h"
#include "engine/model/model.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"
#include "gtest/gtest.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/long_tests.h"
#include "tests/support/tiny_model.h"

namespace {

std::atomic<size_t> largest_allocation = 0;

void* Allocate(size_t size) {
  size_t largest = largest_allocation.load();
  while (size > largest && !largest_allocation.compare_exchange_weak(largest, size)) {
  }
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}

}  // namespace

// All of them are replaced together; inlined into callers, half of a pair looks like a mistake.
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
void* operator new(size_t size) { return Allocate(size); }
void* operator new[](size_t size) { return Allocate(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t /*size*/) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t /*size*/) noexcept { std::free(memory); }

namespace cogumi {
namespace {

using testing::GgufField;
using Kind = GgufField::Kind;

constexpr int kMutations = 10000;
constexpr uint64_t kSeed = 20261123;
// Tables of metadata, tensors and tokens cost a multiple of their entries in the file; a count
// taken on trust would cost gigabytes.
constexpr size_t kAllocationPerFileByte = 64;

constexpr const char* kStages[] = {"header", "metadata", "tensor table", "tensor data"};

testing::TinyModelOptions SmallOptions() {
  testing::TinyModelOptions options;
  options.layers = 1;
  options.embedding_length = 32;
  options.feed_forward_length = 32;
  options.heads = 2;
  options.kv_heads = 1;
  options.rope_freqs = true;
  options.type = GgmlType::kQ4_1;
  options.alignment = 64;  // so that this number takes part
  return options;
}

class Mutator {
 public:
  Mutator(const std::string& original, const std::vector<GgufField>& fields, uint64_t seed)
      : original_(original), generator_(seed) {
    for (const GgufField& field : fields) fields_[field.kind].push_back(field);
  }

  size_t kinds() const { return fields_.size(); }

  std::string Next() {
    std::string bytes = original_;
    const size_t changes = 1 + Below(3);
    for (size_t i = 0; i < changes; ++i) Change(&bytes);
    return bytes;
  }

 private:
  size_t Below(size_t limit) { return generator_() % limit; }

  void Change(std::string* bytes) {
    if (bytes->empty()) return;
    switch (Below(10)) {
      case 0:
        return bytes->resize(Below(bytes->size()));
      case 1:
        return void(bytes->erase(Below(bytes->size()), 1 + Below(16)));
      case 2:
        return void(
            bytes->insert(Below(bytes->size()), 1 + Below(16), static_cast<char>(generator_())));
      case 3:
        for (size_t i = 0; i <= Below(8); ++i) {
          (*bytes)[Below(bytes->size())] = static_cast<char>(generator_());
        }
        return;
      default:
        return ChangeNumber(bytes);
    }
  }

  // Another value for one number, every kind of number as often as the next.
  void ChangeNumber(std::string* bytes) {
    auto kind = fields_.begin();
    std::advance(kind, static_cast<std::ptrdiff_t>(Below(fields_.size())));
    const GgufField& field = kind->second[Below(kind->second.size())];
    if (field.offset + field.size > bytes->size()) return;
    uint64_t value = 0;
    std::memcpy(&value, bytes->data() + field.offset, field.size);
    const uint64_t other[] = {0,
                              1,
                              2,
                              value + 1,
                              value - 1,
                              value * 2,
                              value + 32,
                              uint64_t{1} << Below(64),
                              value ^ (uint64_t{1} << Below(64)),
                              Below(64),
                              bytes->size(),
                              bytes->size() - field.offset,
                              std::numeric_limits<int32_t>::max(),
                              std::numeric_limits<uint32_t>::max(),
                              std::numeric_limits<int64_t>::max(),
                              std::numeric_limits<uint64_t>::max(),
                              generator_()};
    value = other[Below(std::size(other))];
    std::memcpy(bytes->data() + field.offset, &value, field.size);
  }

  const std::string& original_;
  std::mt19937_64 generator_;
  std::map<Kind, std::vector<GgufField>> fields_;
};

// Loads the file as a model and computes one row with it; true when it could.
bool RunsAsModel(const GgufFile& file) {
  ThreadPool pool(1);
  ModelOptions options;
  options.max_rows = 1;
  options.max_logit_rows = 1;
  const auto model = Model::Load(file, options, &pool);
  if (!model.ok()) return false;
  const auto cache = KvCache::Create((*model)->kv_shape(), 1 << 20);
  if (!cache.ok()) return false;
  KvSequence sequence;
  StepPlan plan;
  plan.tokens = {0};
  plan.roles = {TokenRole::kPrompt};
  plan.logit_rows = {0};
  const bool ran = (*cache)->Extend(sequence, 1).ok();
  plan.sequences = {{&sequence.pages, 0, 1, 0, -1}};
  const bool done = ran && (*model)->Forward(plan, **cache).ok();
  (*cache)->Release(sequence);
  return done;
}

// Touches everything that a file holds. The result is of no interest, only that it comes back.
void Use(const GgufFile& file) {
  std::vector<float> values;
  for (const GgufTensor& tensor : file.tensors()) {
    values.resize(tensor.Elements());
    Dequantize(tensor.type, tensor.data.data(), values.size(), values.data());
  }
  (void)file.Digest();
  const auto tokenizer = Tokenizer::Create(file);
  const auto chat = ChatTemplate::Create(file, "");
  if (!tokenizer.ok()) return;
  (void)(*tokenizer)->Encode("then an <|im_end|> 12\n\xf0\x9f\x99\x82\xff", true);
  for (TokenId id = 0; id < (*tokenizer)->VocabularySize(); ++id) {
    (void)(*tokenizer)->TokenBytes(id, true);
  }
  if (chat.ok()) (void)(*chat)->Render({{MessageRole::kUser, "then"}}, **tokenizer);
}

// The bytes in a block of exactly their size, so that a sanitizer sees one read too many.
class ExactBytes {
 public:
  explicit ExactBytes(const std::string& bytes)
      : data_(new std::byte[bytes.size()]), size_(bytes.size()) {
    std::memcpy(data_.get(), bytes.data(), bytes.size());
  }
  std::span<const std::byte> span() const { return {data_.get(), size_}; }

 private:
  std::unique_ptr<std::byte[]> data_;
  size_t size_;
};

TEST(GgufFuzz, EveryTruncationIsAnError) {
  const std::string bytes = testing::TinyModelBytes(SmallOptions());
  {
    const ExactBytes whole(bytes);
    const auto file = GgufFile::Parse(whole.span(), "whole");
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE(Tokenizer::Create(**file).ok());
  }
  for (size_t size = 0; size < bytes.size(); ++size) {
    const ExactBytes cut(bytes.substr(0, size));
    const auto file = GgufFile::Parse(cut.span(), "cut");
    ASSERT_FALSE(file.ok()) << size << " of " << bytes.size() << " bytes";
    ASSERT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << file.status();
  }
}

TEST(GgufFuzz, MutationsAreRefusedByEveryStageAndNeverCrash) {
  std::vector<GgufField> fields;
  const std::string original = testing::TinyModelBytes(SmallOptions(), &fields);
  Mutator mutator(original, fields, kSeed);
  ASSERT_EQ(mutator.kinds(), 16u) << "every kind of number takes part";

  std::map<std::string, int> refused;
  int accepted = 0;
  int ran = 0;
  const int mutations = Trials(kMutations, 20);
  for (int i = 0; i < mutations; ++i) {
    const std::string bytes = mutator.Next();
    const ExactBytes exact(bytes);
    largest_allocation = 0;
    const auto file = GgufFile::Parse(exact.span(), "mutant");
    ASSERT_LE(largest_allocation, kAllocationPerFileByte * bytes.size() + 4096) << "mutation " << i;
    if (file.ok()) {
      ++accepted;
      Use(**file);
      ran += RunsAsModel(**file) ? 1 : 0;
      ASSERT_LE(largest_allocation, kAllocationPerFileByte * bytes.size() + 4096)
          << "mutation " << i;
      continue;
    }
    const std::string message(file.status().message());
    const auto stage = std::find_if(
        std::begin(kStages), std::end(kStages),
        [&](const std::string& name) { return message.starts_with("mutant: " + name + ": "); });
    ASSERT_NE(stage, std::end(kStages)) << message;
    ++refused[*stage];
  }
  std::cout << "accepted " << accepted;
  for (const char* stage : kStages) {
    std::cout << ", refused by the " << stage << " " << refused[stage];
    EXPECT_GT(refused[stage], 100) << stage;
  }
  std::cout << " of " << mutations << "\n";
  EXPECT_GT(accepted, 100);
  std::cout << "ran " << ran << " of the accepted as models\n";
  EXPECT_GT(ran, 100);
  EXPECT_LT(ran, accepted);
}

// The vocabulary alone, mutated inside a sound file: what the parser accepts, the tokenizer must
// survive.
TEST(GgufFuzz, MutatedVocabulariesNeverCrash) {
  std::mt19937_64 generator(kSeed);
  const auto below = [&](size_t limit) { return generator() % limit; };
  const std::string alphabet[] = {"a",          "b", "ab", "\xc4\xa0", "\xc4",
                                  "<|im_end|>", "",  " ",  "\xe2"};
  const auto word = [&] {
    std::string text;
    for (size_t i = below(4); i > 0; --i) text += alphabet[below(std::size(alphabet))];
    return text;
  };
  int created = 0;
  for (int i = 0; i < Trials(2000, 20); ++i) {
    std::vector<std::string> tokens = {"a", "b", "ab", "<|im_end|>"};
    std::vector<std::string> merges;
    if (below(2) == 0) merges.emplace_back("a b");
    for (size_t n = below(4); n > 0; --n) tokens.push_back(word());
    std::vector<int32_t> types;
    for (size_t n = 0; n < tokens.size(); ++n) types.push_back(1 + static_cast<int32_t>(below(7)));
    for (size_t n = below(2); n > 0; --n) merges.push_back(word() + " " + word());
    testing::GgufBuilder builder;
    builder.String("tokenizer.ggml.model", "gpt2")
        .String("tokenizer.ggml.pre", below(2) == 0 ? "smollm" : "llama-bpe")
        .Strings("tokenizer.ggml.tokens", tokens)
        .Ints("tokenizer.ggml.token_type", types)
        .Strings("tokenizer.ggml.merges", merges)
        .Uint("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(below(9)));
    const std::string bytes = builder.Bytes();
    const auto file =
        GgufFile::Parse(std::as_bytes(std::span(bytes.data(), bytes.size())), "vocabulary");
    ASSERT_TRUE(file.ok()) << file.status();
    created += Tokenizer::Create(**file).ok() ? 1 : 0;
    Use(**file);
  }
  EXPECT_GT(created, 20);
  EXPECT_LT(created, Trials(1980, 20));
}

}  // namespace
}  // namespace cogumi
