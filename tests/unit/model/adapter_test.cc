// Adapters on tiny real models: many in one step as if each ran alone; and the table of those that
// are resident.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/io/gguf.h"
#include "engine/kernels/registry.h"
#include "engine/model/adapter_table.h"
#include "engine/model/model.h"
#include "tests/support/adapter_files.h"
#include "tests/support/tiny_model.h"

namespace cogumi {
namespace {

using ::testing::HasSubstr;
using testing::AdapterFilesOptions;
using testing::RandomAdapter;
using testing::TinyModelOptions;

AdapterFiles FilesFor(const TinyModelOptions& tiny, int rank, uint64_t seed,
                      std::vector<std::string> targets = LlamaLinears()) {
  AdapterFilesOptions options;
  options.shape = testing::ShapeOf(tiny);
  options.rank = rank;
  options.seed = seed;
  options.targets = std::move(targets);
  return RandomAdapter(options);
}

struct Loaded {
  Loaded(const TinyModelOptions& tiny, const std::string& kernels, int threads)
      : bytes(testing::TinyModelBytes(tiny)), pool(threads) {
    file = *GgufFile::Parse(std::as_bytes(std::span(bytes.data(), bytes.size())), "test");
    ModelOptions options;
    options.kernels = kernels;
    options.max_rows = 256;
    options.max_logit_rows = 256;
    options.adapter_bytes = 64 << 20;
    model = *Model::Load(*file, options, &pool);
    cache = *KvCache::Create(model->kv_shape(), 8 << 20);
  }
  std::string bytes;
  std::unique_ptr<GgufFile> file;
  ThreadPool pool;
  std::unique_ptr<Model> model;
  std::unique_ptr<KvCache> cache;
};

struct Text {
  std::vector<TokenId> tokens;
  int32_t adapter = -1;
};

using Logits = std::vector<std::vector<float>>;  // by position

// Feeds all texts side by side, `chunk` rows of each a step.
std::vector<Logits> Feed(Loaded& m, const std::vector<Text>& texts, int chunk) {
  std::vector<KvSequence> kv(texts.size());
  std::vector<Logits> logits(texts.size());
  for (int from = 0;; from += chunk) {
    StepPlan plan;
    std::vector<size_t> owner;
    for (size_t i = 0; i < texts.size(); ++i) {
      const int n = std::min(chunk, static_cast<int>(texts[i].tokens.size()) - from);
      if (n <= 0) continue;
      EXPECT_TRUE(m.cache->Extend(kv[i], from + n).ok());
      plan.sequences.push_back({&kv[i].pages, plan.Rows(), n, from, texts[i].adapter});
      for (int j = 0; j < n; ++j) {
        plan.logit_rows.push_back(plan.Rows());
        plan.tokens.push_back(texts[i].tokens[static_cast<size_t>(from + j)]);
        plan.roles.push_back(TokenRole::kPrompt);
        owner.push_back(i);
      }
    }
    if (plan.Rows() == 0) break;
    const absl::Status status = m.model->Forward(plan, *m.cache);
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) break;
    for (size_t row = 0; row < owner.size(); ++row) {
      const float* values = m.model->Logits(static_cast<int32_t>(row));
      logits[owner[row]].emplace_back(values, values + m.model->config().vocabulary_size);
    }
  }
  for (KvSequence& sequence : kv) m.cache->Release(sequence);
  return logits;
}

class AdapterInvariance : public ::testing::TestWithParam<const KernelTable*> {};

TEST_P(AdapterInvariance, ManyInAStepAreEachAsAlone) {
  for (const GgmlType type : {GgmlType::kQ4_1, GgmlType::kF16}) {
    TinyModelOptions tiny;
    tiny.type = type;
    Loaded one(tiny, GetParam()->name, 1);
    Loaded three(tiny, GetParam()->name, 3);
    std::vector<AdapterRef> held;
    std::vector<Text> texts;
    std::mt19937 random(5);
    const std::vector<TokenId> same = {1, 2, 3, 250, 7};
    for (int i = 0; i < 6; ++i) {
      Text text{same, -1};
      if (i > 0) {
        const AdapterFiles files =
            i == 3 ? FilesFor(tiny, 64, 3, {"v_proj", "down_proj"})
                   : FilesFor(tiny, 1 + 3 * i, static_cast<uint64_t>(i));
        for (Loaded* m : {&one, &three}) {
          held.push_back(*m->model->adapters()->Load(std::string(1, static_cast<char>('a' + i)),
                                                     files));
        }
        text.adapter = held.back()->index;
      }
      const int more = 7 + 11 * i;
      for (int j = 0; j < more; ++j) {
        text.tokens.push_back(static_cast<TokenId>(random() % 256));
      }
      texts.push_back(std::move(text));
    }
    texts.push_back(texts[2]);  // the same adapter twice, not side by side
    std::vector<Logits> alone;
    for (const Text& text : texts) alone.push_back(Feed(one, {text}, 256)[0]);
    // Each adapter changes the answer to the same beginning.
    for (size_t i = 0; i < 6; ++i) {
      for (size_t j = 0; j < i; ++j) EXPECT_NE(alone[i][4], alone[j][4]) << i << " and " << j;
    }
    for (const int chunk : {1, 3, 16}) {
      for (Loaded* m : {&one, &three}) {
        const std::vector<Logits> together = Feed(*m, texts, chunk);
        for (size_t i = 0; i < texts.size(); ++i) {
          ASSERT_EQ(together[i], alone[i]) << "text " << i << ", " << chunk << " rows a step";
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tiers, AdapterInvariance, ::testing::ValuesIn(SupportedKernels()),
                         [](const auto& tier) { return std::string(tier.param->name); });

TEST(AdapterPlan, AnIndexThatNobodyHoldsIsRefused) {
  const TinyModelOptions tiny;
  Loaded m(tiny, "", 1);
  KvSequence kv;
  ASSERT_TRUE(m.cache->Extend(kv, 1).ok());
  StepPlan plan;
  plan.sequences.push_back({&kv.pages, 0, 1, 0, 0});
  plan.tokens = {1};
  plan.roles = {TokenRole::kPrompt};
  const absl::Status status = m.model->Forward(plan, *m.cache);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("adapter 0 is not resident"));
}

class AdapterTableTest : public ::testing::Test {
 protected:
  AdapterTableTest() {
    tiny_.layers = 1;
    const std::string bytes = testing::TinyModelBytes(tiny_);
    const auto file = GgufFile::Parse(std::as_bytes(std::span(bytes.data(), bytes.size())), "t");
    config_ = *ModelConfig::FromGguf(**file);
    one_ = *Adapter::PackedBytes(FilesFor(tiny_, 2, 1), config_, LoraFormat::kInt8);
  }
  AdapterFiles Files(uint64_t seed) const { return FilesFor(tiny_, 2, seed); }
  static std::vector<std::string> Digests(const AdapterTable& table) {
    std::vector<std::string> digests;
    for (const AdapterInfo& info : table.List()) digests.push_back(info.digest);
    return digests;
  }

  TinyModelOptions tiny_;
  ModelConfig config_;
  int64_t one_ = 0;  // bytes of an adapter
};

TEST_F(AdapterTableTest, HandsOutTheSameAdapterUntilItIsUnloaded) {
  AdapterTable table(config_, LoraFormat::kInt8, 4 * one_);
  EXPECT_EQ(table.Find("a"), nullptr);
  const AdapterRef a = *table.Load("a", Files(1));
  EXPECT_EQ(*table.Load("a", Files(1)), a);
  EXPECT_EQ(table.Find("a"), a);
  const AdapterRef b = *table.Load("b", Files(2));
  EXPECT_NE(a->index, b->index);
  EXPECT_EQ(table.At(a->index), a->adapter.get());
  EXPECT_EQ(table.Stats().bytes, 2 * one_);
  EXPECT_EQ(table.Stats().loads, 2u);
  table.Unload("a");
  EXPECT_EQ(table.Find("a"), nullptr);
  // Whoever began with it goes on, beside the next version of the same name.
  EXPECT_EQ(table.At(a->index), a->adapter.get());
  EXPECT_EQ(table.Stats().bytes, 2 * one_);
  const AdapterRef next = *table.Load("a", Files(3));
  EXPECT_NE(next->index, a->index);
}

TEST_F(AdapterTableTest, TheLeastRecentlyUsedGoesAndWhatIsHeldStays) {
  AdapterTable table(config_, LoraFormat::kInt8, 3 * one_);
  for (const char* digest : {"a", "b", "c"}) ASSERT_TRUE(table.Load(digest, Files(1)).ok());
  AdapterRef a = table.Find("a");
  ASSERT_NE(table.Find("b"), nullptr);
  ASSERT_TRUE(table.Load("d", Files(2)).ok());  // c was used longest ago
  EXPECT_EQ(Digests(table), (std::vector<std::string>{"a", "b", "d"}));
  AdapterRef b = table.Find("b");
  AdapterRef d = table.Find("d");
  const auto full = table.Load("e", Files(3));
  EXPECT_EQ(full.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.status().message()),
              HasSubstr("of adapter_bytes " + std::to_string(3 * one_)));
  EXPECT_EQ(Digests(table), (std::vector<std::string>{"a", "b", "d"}));
  d.reset();
  ASSERT_TRUE(table.Load("e", Files(3)).ok());
  EXPECT_EQ(Digests(table), (std::vector<std::string>{"a", "b", "e"}));
  EXPECT_EQ(table.Stats().evictions, 2u);
  EXPECT_LE(table.Stats().bytes, 3 * one_);
}

TEST_F(AdapterTableTest, UnloadedBytesCountWhileTheyAreHeld) {
  AdapterTable table(config_, LoraFormat::kInt8, one_);
  AdapterRef a = *table.Load("a", Files(1));
  table.Unload("a");
  EXPECT_EQ(table.Load("b", Files(2)).status().code(), absl::StatusCode::kResourceExhausted);
  a.reset();
  EXPECT_EQ(table.Stats().bytes, 0);
  EXPECT_EQ((*table.Load("b", Files(2)))->index, 0) << "the place is free again";
}

TEST_F(AdapterTableTest, MemoryIsFlatOverManyVersions) {
  AdapterTable table(config_, LoraFormat::kInt8, 2 * one_);
  AdapterRef running = *table.Load("0", Files(0));
  for (int i = 1; i < 200; ++i) {
    const AdapterRef next = *table.Load(std::to_string(i), Files(static_cast<uint64_t>(i)));
    table.Unload(std::to_string(i - 1));
    running = next;
    ASSERT_LE(table.Stats().bytes, 2 * one_);
    ASSERT_LE(next->index, 1);
  }
  running.reset();
  table.Unload("199");
  EXPECT_EQ(table.Stats().bytes, 0);
}

TEST_F(AdapterTableTest, RefusesWhatDoesNotFitTheModel) {
  AdapterTable table(config_, LoraFormat::kInt8, 4 * one_);
  const auto message = [&](const AdapterFiles& files) {
    return std::string(table.Load("x", files).status().message());
  };
  TinyModelOptions other = tiny_;
  other.feed_forward_length = 96;
  EXPECT_THAT(message(FilesFor(other, 2, 1)), HasSubstr("the base wants"));
  other = tiny_;
  other.layers = 2;
  EXPECT_THAT(message(FilesFor(other, 2, 1)), HasSubstr("belongs to no target module"));
  AdapterFiles files = Files(1);
  files.weights.pop_back();
  EXPECT_THAT(message(files), HasSubstr("adapter_model.safetensors"));
  files = Files(1);
  files.weights[files.weights.size() - 1] = '\x7f';  // the last value's exponent, all ones
  files.weights[files.weights.size() - 2] = '\xff';
  EXPECT_THAT(message(files), HasSubstr("not finite"));
  files = Files(1);
  files.config = "{}";
  EXPECT_THAT(message(files), HasSubstr("adapter_config.json: peft_type"));
  EXPECT_EQ(table.Stats().bytes, 0) << "a refused adapter leaves nothing behind";
}

}  // namespace
}  // namespace cogumi
