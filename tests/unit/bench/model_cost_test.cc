#include "bench/lib/model_cost.h"

#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <string>

#include "engine/io/gguf.h"
#include "tests/support/tiny_model.h"

namespace cogumi::bench {
namespace {

ModelCost CostOf(const testing::TinyModelOptions& options) {
  const std::string bytes = testing::TinyModelBytes(options);
  auto file = GgufFile::Parse(std::as_bytes(std::span<const char>(bytes)), "tiny");
  EXPECT_TRUE(file.ok()) << file.status();
  return CostOfToken(**file);
}

// Of two layers of width 64: q, o 64 x 64; k, v 32 x 64; gate, up, down 128 x 64.
constexpr int64_t kLayers = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64);
constexpr int64_t kHead = int64_t{testing::kTinyVocabularySize} * 64;
constexpr int64_t kNorms = (2 * 2 + 1) * 64;

TEST(ModelCostTest, TiedEmbeddingIsReadInFull) {
  const ModelCost cost = CostOf({.tied = true});
  EXPECT_EQ(cost.layer_products, kLayers);
  EXPECT_EQ(cost.head_products, kHead);
  EXPECT_EQ(cost.bytes_per_token, 4 * (kLayers + kHead + kNorms));
}

TEST(ModelCostTest, OfAnUntiedEmbeddingOnlyARowIsRead) {
  const ModelCost cost = CostOf({.tied = false});
  EXPECT_EQ(cost.layer_products, kLayers);
  EXPECT_EQ(cost.head_products, kHead);
  EXPECT_EQ(cost.bytes_per_token, 4 * (kLayers + kHead + kNorms));
}

TEST(ModelCostTest, BytesAreThoseOfTheFile) {
  const ModelCost cost = CostOf({.type = GgmlType::kQ8_0});
  EXPECT_EQ(cost.bytes_per_token, (kLayers + kHead) / 32 * 34 + 4 * kNorms);
  EXPECT_EQ(cost.layer_products, kLayers);
}

}  // namespace
}  // namespace cogumi::bench
