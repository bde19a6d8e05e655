// Requests with adapters through the whole engine: each answers as alone and finishes with the
// version that it began with.
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cogumi/engine.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/adapter_files.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/runtime/fake_parts.h"

namespace cogumi {
namespace {

using ::testing::HasSubstr;

class AdapterRequests : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "adapters-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    testing::WriteTinyModel(folder_ + "/tiny.gguf", tiny_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::unique_ptr<Engine> Make(int64_t adapter_bytes = 64 << 20) const {
    EngineOptions options;
    options.model_path = folder_ + "/tiny.gguf";
    options.threads = 2;
    options.kv_bytes = 16 << 20;
    options.prefill_chunk = 7;
    options.adapter_bytes = adapter_bytes;
    auto engine = Engine::Create(options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }
  AdapterFiles Files(uint64_t seed) const {
    testing::AdapterFilesOptions options;
    options.shape = testing::ShapeOf(tiny_);
    options.seed = seed;
    return testing::RandomAdapter(options);
  }
  static GenerationRequest Request(const std::string& adapter, int32_t max_tokens = 40) {
    GenerationRequest request;
    for (const char byte : std::string("The then on an")) {
      request.tokens.push_back(static_cast<unsigned char>(byte));
    }
    request.adapter = adapter;
    request.sampling.temperature = 0;
    request.sampling.max_tokens = max_tokens;
    request.sampling.ignore_eos = true;
    return request;
  }
  static std::shared_ptr<RecordingSink> Submit(Engine& engine, const GenerationRequest& request) {
    auto sink = std::make_shared<RecordingSink>();
    const auto handle = engine.Submit(request, sink);
    EXPECT_TRUE(handle.ok()) << handle.status();
    return sink;
  }
  static std::vector<TokenId> Answer(Engine& engine, const GenerationRequest& request) {
    const auto sink = Submit(engine, request);
    sink->Wait();
    EXPECT_TRUE(sink->status().ok()) << sink->status();
    EXPECT_EQ(sink->completion().receipt.adapter_digest, request.adapter);
    return sink->tokens();
  }

  testing::TinyModelOptions tiny_;
  std::string folder_;
};

TEST_F(AdapterRequests, AnswerAsAloneBesideOthers) {
  const auto engine = Make();
  const std::vector<std::string> adapters = {"", "a", "b", "c"};
  std::vector<std::vector<TokenId>> alone;
  for (size_t i = 0; i < adapters.size(); ++i) {
    if (i > 0) {
      ASSERT_TRUE(engine->LoadAdapter(adapters[i], Files(i)).ok());
    }
    alone.push_back(Answer(*engine, Request(adapters[i])));
    for (size_t j = 0; j < i; ++j) EXPECT_NE(alone[i], alone[j]);
  }
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int round = 0; round < 3; ++round) {
    for (const std::string& adapter : adapters) sinks.push_back(Submit(*engine, Request(adapter)));
  }
  for (size_t i = 0; i < sinks.size(); ++i) {
    sinks[i]->Wait();
    EXPECT_EQ(sinks[i]->tokens(), alone[i % adapters.size()]) << i;
  }
  EXPECT_EQ(engine->Adapters().size(), 3u);
  EXPECT_EQ(engine->Adapters()[1].digest, "b");
}

TEST_F(AdapterRequests, FinishWithTheVersionTheyBeganWith) {
  const auto engine = Make();
  AdapterLease lease = *engine->LoadAdapter("a", Files(1));
  const std::vector<TokenId> want = Answer(*engine, Request("a", 200));
  const auto running = Submit(*engine, Request("a", 200));
  engine->UnloadAdapter("a");
  EXPECT_EQ(engine->FindAdapter("a"), nullptr);
  const auto refused = engine->Submit(Request("a"), std::make_shared<RecordingSink>());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("adapter: a"));
  // A lease from before is as good as a running request.
  GenerationRequest leased = Request("a", 200);
  leased.adapter_lease = lease;
  EXPECT_EQ(Answer(*engine, leased), want);
  running->Wait();
  EXPECT_EQ(running->tokens(), want);
  lease.reset();
  leased.adapter_lease.reset();
  // The last request gives its place back a moment after its end was told.
  while (engine->AdapterUse().bytes != 0) std::this_thread::yield();
}

TEST_F(AdapterRequests, ALeaseOfAnotherEngineOrDigestIsNone) {
  const auto engine = Make();
  const auto other = Make();
  GenerationRequest request = Request("a");
  request.adapter_lease = *other->LoadAdapter("a", Files(1));
  EXPECT_EQ(engine->Submit(request, std::make_shared<RecordingSink>()).status().code(),
            absl::StatusCode::kNotFound);
  request.adapter_lease = *engine->LoadAdapter("b", Files(1));
  EXPECT_EQ(engine->Submit(request, std::make_shared<RecordingSink>()).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(AdapterRequests, ABudgetOfNothingTakesNone) {
  const auto engine = Make(/*adapter_bytes=*/0);
  const auto refused = engine->LoadAdapter("a", Files(1));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(Answer(*engine, Request("")).empty());
}

}  // namespace
}  // namespace cogumi
