// The forward pass on tiny real models: the same bits in any batch, chunk and thread count, and
// clear refusals.
#include "engine/model/model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/core/half.h"
#include "engine/io/gguf.h"
#include "engine/kernels/registry.h"
#include "engine/model/certified_head.h"
#include "engine/model/weights.h"
#include "tests/kernels/every_tier.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/tiny_model.h"

namespace cogumi {
namespace {

using ::testing::HasSubstr;
using testing::TinyModelBytes;
using testing::TinyModelOptions;

std::unique_ptr<GgufFile> Parse(const std::string& bytes) {
  auto file = GgufFile::Parse(std::as_bytes(std::span(bytes.data(), bytes.size())), "test");
  EXPECT_TRUE(file.ok()) << file.status();
  return std::move(file).value();
}

struct FileBytes {
  explicit FileBytes(std::string from) : bytes(std::move(from)) {}
  std::string bytes;
};

// A loaded model with its pool and cache.
struct Loaded {
  Loaded(const TinyModelOptions& tiny, const ModelOptions& options, int threads)
      : Loaded(FileBytes(TinyModelBytes(tiny)), options, threads) {}
  Loaded(FileBytes from, const ModelOptions& options, int threads)
      : bytes(std::move(from.bytes)), file(Parse(bytes)), pool(threads) {
    auto loaded = Model::Load(*file, options, &pool);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    model = std::move(loaded).value();
    auto made = KvCache::Create(model->kv_shape(), 8 << 20);
    EXPECT_TRUE(made.ok()) << made.status();
    cache = std::move(made).value();
  }
  std::string bytes;
  std::unique_ptr<GgufFile> file;
  ThreadPool pool;
  std::unique_ptr<Model> model;
  std::unique_ptr<KvCache> cache;
};

using LogitRows = std::vector<std::vector<float>>;

// Runs tokens [from, from + n) of each sequence in one step and returns the logits of all its rows.
LogitRows Step(Loaded& m, std::vector<KvSequence*> kv,
               std::vector<const std::vector<TokenId>*> text, std::vector<int> from,
               std::vector<int> n) {
  StepPlan plan;
  for (size_t i = 0; i < kv.size(); ++i) {
    EXPECT_TRUE(m.cache->Extend(*kv[i], from[i] + n[i]).ok());
    plan.sequences.push_back({&kv[i]->pages, plan.Rows(), n[i], from[i], -1});
    for (int j = 0; j < n[i]; ++j) {
      plan.logit_rows.push_back(plan.Rows());
      plan.tokens.push_back((*text[i])[static_cast<size_t>(from[i] + j)]);
      plan.roles.push_back(TokenRole::kPrompt);
    }
  }
  const absl::Status status = m.model->Forward(plan, *m.cache);
  EXPECT_TRUE(status.ok()) << status;
  for (KvSequence* sequence : kv) m.cache->Commit(*sequence, sequence->length);
  LogitRows rows;
  const int vocabulary = m.model->config().vocabulary_size;
  for (int i = 0; i < plan.Rows(); ++i) {
    const float* logits = m.model->Logits(i);
    rows.emplace_back(logits, logits + vocabulary);
  }
  return rows;
}

// All logits of a text, in chunks of `chunk` rows.
LogitRows InChunks(Loaded& m, const std::vector<TokenId>& text, int chunk) {
  KvSequence kv;
  LogitRows all;
  for (int from = 0; from < static_cast<int>(text.size()); from += chunk) {
    const int n = std::min(chunk, static_cast<int>(text.size()) - from);
    for (auto& row : Step(m, {&kv}, {&text}, {from}, {n})) all.push_back(std::move(row));
  }
  m.cache->Release(kv);
  return all;
}

std::vector<TokenId> RandomText(int n, std::mt19937& random) {
  std::vector<TokenId> text;
  for (int i = 0; i < n; ++i) text.push_back(static_cast<TokenId>(random() % 256));
  return text;
}

using Invariance = EveryTier;

// The logits of a text in chunks of every size, and beside two other sequences at other depths, on
// one thread and on three.
void ExpectSameBits(const TinyModelOptions& tiny, const ModelOptions& options, int length,
                    const std::vector<int>& chunks) {
  Loaded one(tiny, options, 1);
  Loaded three(tiny, options, 3);
  std::mt19937 random(11);
  const std::vector<TokenId> text = RandomText(length, random);
  const LogitRows want = InChunks(one, text, length);
  for (Loaded* m : {&one, &three}) {
    for (const int chunk : chunks) {
      if (chunk < 9 && m == &three) continue;  // hundreds of steps of three threads on few cores
      EXPECT_EQ(InChunks(*m, text, chunk), want) << chunk << " rows a step";
    }
    const std::vector<TokenId> other = RandomText(90, random);
    KvSequence a, b, c;
    (void)Step(*m, {&b}, {&other}, {0}, {40});
    LogitRows mixed;
    for (int from = 0; from < length; from += 100) {
      const LogitRows rows = Step(*m, {&c, &a, &b}, {&other, &text, &other},
                                  {from / 100 * 3, from, 40 + from / 100}, {3, 100, 1});
      mixed.insert(mixed.end(), rows.begin() + 3, rows.begin() + 103);
    }
    EXPECT_EQ(mixed, want);
    for (KvSequence* kv : {&a, &b, &c}) m->cache->Release(*kv);
    EXPECT_EQ(m->cache->used_bytes(), 0);
  }
}

TEST_P(Invariance, SameBitsInAnyChunkBatchAndThreadCount) {
  for (const GgmlType type : {GgmlType::kQ4_1, GgmlType::kQ8_0, GgmlType::kF16}) {
    for (const ActivationFormat format :
         {ActivationFormat::kMixed, ActivationFormat::kExact, ActivationFormat::kFast}) {
      TinyModelOptions tiny;
      tiny.type = type;
      tiny.context_length = 512;
      ModelOptions options;
      options.kernels = GetParam()->name;
      options.activations = format;
      options.max_logit_rows = 512;
      options.max_rows = 512;
      ExpectSameBits(tiny, options, 300,
                     Slow() ? std::vector<int>{17, 300} : std::vector{1, 2, 5, 9, 17, 64, 300});
    }
  }
}

TEST_P(Invariance, SameBitsInEveryKvFormat) {
  for (const auto& known : kKvFormats) {
    SCOPED_TRACE(known.name);
    TinyModelOptions tiny;
    tiny.context_length = 1024;
    ModelOptions options;
    options.kernels = GetParam()->name;
    options.kv_format = known.format;
    options.max_logit_rows = 1024;
    options.max_rows = 1024;
    // Deep enough for chunks of keys on threads of their own, and for many narrow pages.
    ExpectSameBits(tiny, options, 600,
                   Slow() ? std::vector<int>{100, 600} : std::vector{1, 17, 64, 100, 600});
  }
}

COGUMI_EVERY_TIER(Invariance);

using NotFinite = EveryTier;

// The bytes of a tiny model with the tensor's data replaced by copies of `pattern`.
std::string WithTensor(std::string bytes, const std::string& name, std::string_view pattern) {
  const auto file = Parse(bytes);
  const GgufTensor* tensor = file->FindTensor(name);
  EXPECT_NE(tensor, nullptr) << name;
  const size_t start =
      static_cast<size_t>(reinterpret_cast<const char*>(tensor->data.data()) - bytes.data());
  for (size_t i = 0; i < tensor->data.size(); ++i) bytes[start + i] = pattern[i % pattern.size()];
  return bytes;
}

// A step says so when a number is not finite, wherever it arises: it never becomes text.
TEST_P(NotFinite, NumbersReachTheSummary) {
  TinyModelOptions tiny;
  tiny.type = GgmlType::kQ4_1;
  const std::string sound = TinyModelBytes(tiny);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::string_view nan_bytes(reinterpret_cast<const char*>(&nan), sizeof(nan));
  // A block of Q4_1: scale 0 and a minimum of 60000, so that every V is 60000 times the sum of its
  // inputs and does not fit the float16 of the cache.
  std::string huge(20, '\0');
  const uint16_t minimum = FloatToHalf(60000.0f);
  std::memcpy(huge.data() + 2, &minimum, sizeof(minimum));
  const std::pair<const char*, std::string> broken[] = {
      {"no tensor", sound},
      {"blk.0.attn_norm.weight", WithTensor(sound, "blk.0.attn_norm.weight", nan_bytes)},
      {"blk.1.ffn_norm.weight", WithTensor(sound, "blk.1.ffn_norm.weight", nan_bytes)},
      {"blk.0.attn_v.weight", WithTensor(sound, "blk.0.attn_v.weight", huge)},
      {"output_norm.weight", WithTensor(sound, "output_norm.weight", nan_bytes)},
  };
  for (const auto& [name, bytes] : broken) {
    for (const ActivationFormat format :
         {ActivationFormat::kMixed, ActivationFormat::kFast, ActivationFormat::kF32}) {
      ModelOptions options;
      options.kernels = GetParam()->name;
      options.activations = format;
      if (format == ActivationFormat::kF32 && options.kernels != "reference") continue;
      Loaded m(FileBytes(bytes), options, 2);
      std::mt19937 random(12);
      (void)InChunks(m, RandomText(9, random), 9);
      EXPECT_EQ(m.model->Summary(8).finite, name == std::string_view("no tensor")) << name;
    }
  }
}

COGUMI_EVERY_TIER(NotFinite);

TEST(Model, SummariesDescribeTheLogits) {
  Loaded m({}, {}, 2);
  std::mt19937 random(5);
  const std::vector<TokenId> text = RandomText(9, random);
  const LogitRows rows = InChunks(m, text, 9);
  const std::vector<float>& logits = rows.back();
  double sum = 0;
  double entropy = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x));
  for (const float x : logits) {
    const double p = std::exp(static_cast<double>(x)) / sum;
    entropy -= p * std::log(p);
  }
  const LogitSummary& s = m.model->Summary(8);
  EXPECT_NEAR(s.log_sum_exp, std::log(sum), 1e-5);
  EXPECT_NEAR(s.entropy, entropy, 1e-4);
  EXPECT_EQ(s.max, *std::max_element(logits.begin(), logits.end()));
  EXPECT_EQ(logits[static_cast<size_t>(s.argmax)], s.max);
  EXPECT_TRUE(s.finite);
}

// A few rows that need their largest logit only have that one exactly; with more of them, or with
// one that needs all, so are all.
TEST(Model, RowsThatNeedTheTopHaveItExactly) {
  TinyModelOptions tiny;
  tiny.head_type = GgmlType::kQ8_0;
  for (const bool tied : {true, false}) {
    tiny.tied = tied;
    for (const ActivationFormat activations :
         {ActivationFormat::kMixed, ActivationFormat::kFast, ActivationFormat::kF32}) {
      ModelOptions options;
      options.activations = activations;
      Loaded m(tiny, options, 2);
      std::mt19937 random(6);
      bool estimated = false;
      for (int rows = 1; rows <= CertifiedHead::kMostRows + 1; ++rows) {
        const std::vector<TokenId> text = RandomText(rows, random);
        const LogitRows want = InChunks(m, text, rows);
        for (const bool one_whole : {false, true}) {
          StepPlan plan;
          KvSequence kv;
          ASSERT_TRUE(m.cache->Extend(kv, rows).ok());
          plan.sequences.push_back({&kv.pages, 0, rows, 0, -1});
          plan.tokens = text;
          for (int i = 0; i < rows; ++i) {
            plan.roles.push_back(TokenRole::kPrompt);
            plan.logit_rows.push_back(i);
            plan.logit_needs.push_back(one_whole && i == 0 ? LogitNeed::kAll : LogitNeed::kTop);
          }
          ASSERT_TRUE(m.model->Forward(plan, *m.cache).ok());
          for (int i = 0; i < rows; ++i) {
            const std::vector<float>& row = want[static_cast<size_t>(i)];
            const float* got = m.model->Logits(i);
            const LogitSummary& summary = m.model->Summary(i);
            const auto largest = std::max_element(row.begin(), row.end());
            ASSERT_EQ(summary.argmax, largest - row.begin());
            ASSERT_EQ(summary.max, *largest);
            ASSERT_EQ(got[summary.argmax], *largest);
            const bool all = std::equal(row.begin(), row.end(), got);
            estimated = estimated || !all;
            if (one_whole || rows > CertifiedHead::kMostRows ||
                activations == ActivationFormat::kF32) {
              ASSERT_TRUE(all) << rows;
            }
          }
          m.cache->Release(kv);
        }
      }
      EXPECT_EQ(estimated, activations != ActivationFormat::kF32);
    }
  }
}

TEST(Model, AForkSharesThePastAndGoesItsOwnWay) {
  ModelOptions options;
  options.max_logit_rows = 64;
  Loaded m({}, options, 2);
  std::mt19937 random(6);
  const std::vector<TokenId> text = RandomText(80, random);
  std::vector<TokenId> other = text;
  other[79] = text[79] == 1 ? 2 : 1;
  KvSequence a;
  (void)Step(m, {&a}, {&text}, {0}, {40});
  (void)Step(m, {&a}, {&text}, {40}, {20});
  (void)Step(m, {&a}, {&text}, {60}, {19});
  KvSequence b = m.cache->Fork(a);
  const LogitRows first = Step(m, {&a}, {&text}, {79}, {1});
  const LogitRows second = Step(m, {&b}, {&other}, {79}, {1});
  EXPECT_EQ(first.back(), InChunks(m, text, 20).back());
  EXPECT_EQ(second.back(), InChunks(m, other, 20).back());
  m.cache->Release(a);
  m.cache->Release(b);
  EXPECT_EQ(m.cache->used_bytes(), 0);
}

// Sequences that share a beginning, and drafts that are taken back across the border of a page,
// find every page in the form that they must see.
TEST(Model, SharedBeginningsAndRejectedDraftsChangeNothing) {
  for (const auto& known : kKvFormats) {
    SCOPED_TRACE(known.name);
    TinyModelOptions tiny;
    tiny.context_length = 512;
    ModelOptions options;
    options.kv_format = known.format;
    options.max_rows = 512;
    options.max_logit_rows = 512;
    Loaded m(tiny, options, 2);
    std::mt19937 random(8);
    const std::vector<TokenId> text = RandomText(330, random);
    std::vector<TokenId> other = text;
    for (size_t i = 254; i < other.size(); ++i) other[i] = (text[i] + 1) % 256;
    const LogitRows want = InChunks(m, text, 330);
    const LogitRows want_other = InChunks(m, other, 17);
    KvSequence a;
    (void)Step(m, {&a}, {&text}, {0}, {254});
    KvSequence b = m.cache->Share(a, 254);
    EXPECT_TRUE(KvCache::CanResume(b.pages, 254, known.format));
    // Drafts of another text into the next page, of which one token is kept.
    StepPlan drafts;
    ASSERT_TRUE(m.cache->Extend(a, 260).ok());
    drafts.sequences = {{&a.pages, 0, 6, 254, -1}};
    for (size_t i = 254; i < 260; ++i) {
      drafts.tokens.push_back(i == 254 ? text[i] : other[i]);
      drafts.roles.push_back(TokenRole::kPrompt);
    }
    ASSERT_TRUE(m.model->Forward(drafts, *m.cache).ok());
    m.cache->Truncate(a, 255);
    m.cache->Commit(a, 255);
    LogitRows got = Step(m, {&a, &b}, {&text, &other}, {255, 254}, {45, 46});
    for (size_t i = 0; i < 45; ++i) EXPECT_EQ(got[i], want[255 + i]) << i;
    for (size_t i = 0; i < 46; ++i) EXPECT_EQ(got[45 + i], want_other[254 + i]) << i;
    got = Step(m, {&b, &a}, {&other, &text}, {300, 300}, {30, 30});
    for (size_t i = 0; i < 30; ++i) EXPECT_EQ(got[i], want_other[300 + i]) << i;
    for (size_t i = 0; i < 30; ++i) EXPECT_EQ(got[30 + i], want[300 + i]) << i;
    m.cache->Release(a);
    m.cache->Release(b);
    EXPECT_EQ(m.cache->used_bytes(), 0);
  }
}

TEST(Model, RefusesPlansThatBreakTheRules) {
  Loaded m({}, {}, 1);
  KvSequence kv;
  ASSERT_TRUE(m.cache->Extend(kv, 3).ok());
  StepPlan good;
  good.tokens = {1, 2, 3};
  good.roles = {TokenRole::kPrompt, TokenRole::kPrompt, TokenRole::kPrompt};
  good.sequences = {{&kv.pages, 0, 3, 0, -1}};
  good.logit_rows = {2};
  ASSERT_TRUE(m.model->Forward(good, *m.cache).ok());
  const auto refused = [&](auto change, const char* why) {
    StepPlan plan = good;
    change(plan);
    const absl::Status status = m.model->Forward(plan, *m.cache);
    EXPECT_FALSE(status.ok()) << why;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  };
  refused([](StepPlan& p) { p = {}; }, "0 rows");
  refused([](StepPlan& p) { p.tokens[1] = -1; }, "token -1");
  refused([](StepPlan& p) { p.tokens[1] = 1 << 20; }, "token 1048576");
  refused([](StepPlan& p) { p.roles.pop_back(); }, "2 roles");
  refused([](StepPlan& p) { p.logit_rows = {3}; }, "logit row 3");
  refused([](StepPlan& p) { p.logit_rows = {1, 1}; }, "logit row 1 after 1");
  refused([](StepPlan& p) { p.logit_needs.assign(2, LogitNeed::kTop); }, "2 needs of 1 logit rows");
  refused([](StepPlan& p) { p.sequences[0].rows = 2; }, "cover 2 of 3");
  refused([](StepPlan& p) { p.sequences[0].first_row = 1; }, "begin at 1");
  refused([](StepPlan& p) { p.sequences[0].first_position = 255; }, "positions from 255");
  refused([](StepPlan& p) { p.sequences[0].first_position = 62; }, "no pages");
  const std::vector<KvPage> nothing(1);
  refused([&](StepPlan& p) { p.sequences[0].pages = &nothing; }, "block -1 of page 0");
  refused([](StepPlan& p) { p.sequences[0].adapter = 0; }, "adapter 0 is not resident");
}

absl::Status LoadError(const std::string& bytes, const ModelOptions& options = {}) {
  const auto file = GgufFile::Parse(std::as_bytes(std::span(bytes.data(), bytes.size())), "test");
  if (!file.ok()) return file.status();
  ThreadPool pool(1);
  return Model::Load(**file, options, &pool).status();
}

TEST(Model, NamesWhatItCannotRun) {
  // The smallest headers: the checks come before any tensor is looked for.
  const auto header = [](const char* architecture) {
    testing::GgufBuilder builder;
    builder.String("general.architecture", architecture);
    return builder;
  };
  EXPECT_THAT(LoadError(header("qwen2").Bytes()).ToString(),
              ::testing::AllOf(HasSubstr("UNIMPLEMENTED"), HasSubstr("qwen2")));
  EXPECT_THAT(LoadError(header("llama").Uint("llama.expert_count", 8).Bytes()).ToString(),
              ::testing::AllOf(HasSubstr("UNIMPLEMENTED"), HasSubstr("expert_count")));
  EXPECT_THAT(
      LoadError(header("llama").String("llama.rope.scaling.type", "yarn").Bytes()).ToString(),
      ::testing::AllOf(HasSubstr("UNIMPLEMENTED"), HasSubstr("yarn")));
  for (const char* key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"}) {
    EXPECT_THAT(
        LoadError(header("llama").Float(key, 4.0f).Bytes()).ToString(),
        ::testing::AllOf(HasSubstr("UNIMPLEMENTED"), HasSubstr(std::string(key) + ": 4 is")));
    // 0 and 1 scale nothing, and a type says itself what it is.
    for (const float none : {0.0f, 1.0f}) {
      EXPECT_THAT(LoadError(header("llama").Float(key, none).Bytes()).ToString(),
                  HasSubstr("llama.block_count"));
    }
    EXPECT_THAT(
        LoadError(
            header("llama").String("llama.rope.scaling.type", "none").Float(key, 4.0f).Bytes())
            .ToString(),
        HasSubstr("llama.block_count"));
  }
  EXPECT_THAT(LoadError(header("llama").Bytes()).ToString(), HasSubstr("llama.block_count"));
  EXPECT_THAT(LoadError(header("llama").Uint("llama.block_count", 0).Bytes()).ToString(),
              HasSubstr("llama.block_count: 0 is not in [1, 1024]"));
  ModelOptions options;
  options.activations = ActivationFormat::kF32;
  options.kernels = "avx2";
  EXPECT_THAT(LoadError(TinyModelBytes({}), options).ToString(), HasSubstr("f32"));
  options = {};
  options.kernels = "none";
  EXPECT_THAT(LoadError(TinyModelBytes({}), options).ToString(), HasSubstr("none"));
}

TEST(Weights, ATokenReadsOneRowOfAnUntiedEmbedding) {
  TinyModelOptions tiny;
  const auto tied = Parse(TinyModelBytes(tiny));
  int64_t all = 0;
  for (const GgufTensor& tensor : tied->tensors()) all += static_cast<int64_t>(tensor.data.size());
  EXPECT_EQ(BytesPerToken(*tied), all);
  tiny.tied = false;
  const int64_t row = static_cast<int64_t>(tiny.embedding_length) * 4;
  // The head takes the place of the embedding.
  EXPECT_EQ(BytesPerToken(*Parse(TinyModelBytes(tiny))), all + row);
}

TEST(Model, RefusesScratchBeyondTheLimitBeforeItTakesIt) {
  for (const auto& change : std::initializer_list<void (*)(ModelOptions&)>{
           [](ModelOptions& o) { o.max_logit_rows = 1 << 30; },
           [](ModelOptions& o) { o.max_rows = 1 << 30; },
           [](ModelOptions& o) { o.max_scratch_bytes = 1000; }}) {
    ModelOptions options;
    change(options);
    const std::string error = LoadError(TinyModelBytes({}), options).ToString();
    EXPECT_THAT(error, ::testing::AllOf(HasSubstr("RESOURCE_EXHAUSTED"), HasSubstr("scratch"),
                                        HasSubstr(std::to_string(options.max_scratch_bytes))));
  }
}

}  // namespace
}  // namespace cogumi
