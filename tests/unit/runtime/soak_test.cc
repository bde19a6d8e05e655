// The whole engine on a tiny real model under requests that end in every way: afterwards nothing is
// left running, waiting or held.
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cogumi/engine.h"
#include "engine/core/clock.h"
#include "gtest/gtest.h"
#include "tests/support/adapter_files.h"
#include "tests/support/long_tests.h"
#include "tests/support/sanitizers.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/runtime/fake_parts.h"

namespace cogumi {
namespace {

// Time that moves when the callers say so.
class SharedClock : public Clock {
 public:
  double Now() const override { return static_cast<double>(ticks_.load()) * 0.001; }
  double UnixNow() const override { return 1.7e9 + Now(); }
  void Advance() { ticks_.fetch_add(1); }

 private:
  std::atomic<int64_t> ticks_{1};
};

struct Ends {
  std::atomic<int64_t> ok{0};
  std::atomic<int64_t> cancelled{0};
  std::atomic<int64_t> late{0};
  std::atomic<int64_t> refused{0};
  std::atomic<int64_t> wrong{0};
};

// A caller that leaves after some tokens, on the step thread, as a broken connection does.
class LeavingSink : public RecordingSink {
 public:
  LeavingSink(Engine* engine, int64_t leave_after) : engine_(engine), left_(leave_after) {}
  void OnChunk(Chunk chunk) override {
    RecordingSink::OnChunk(std::move(chunk));
    if (--left_ == 0 && handle != 0) engine_->Cancel(handle);
  }
  std::atomic<RequestHandle> handle{0};

 private:
  Engine* engine_;
  std::atomic<int64_t> left_;
};

GenerationRequest RandomRequest(std::mt19937_64& random, double now, const std::string& adapter) {
  const auto below = [&random](uint64_t bound) { return random() % bound; };
  GenerationRequest request;
  const uint64_t text = below(4);
  const uint64_t length = below(10) == 0 ? 150 + below(60) : 1 + below(90);
  for (uint64_t i = 0; i < length; ++i) {
    request.tokens.push_back(static_cast<TokenId>((i * 7 + text * 31) % 256));
  }
  if (below(4) == 0) request.tokens.back() = static_cast<TokenId>(below(256));
  request.tenant = "tenant-" + std::to_string(below(3));
  request.priority = static_cast<int32_t>(below(3));
  request.sampling.max_tokens = static_cast<int32_t>(1 + below(40));
  request.sampling.seed = random();
  if (below(6) == 0) request.deadline = now + 0.001 * static_cast<double>(1 + below(30));
  request.score = below(12) == 0;
  if (!adapter.empty() && below(2) == 0) request.adapter = adapter;
  return request;
}

void Caller(Engine& engine, SharedClock& clock, uint64_t seed, int requests,
            const std::string& adapter, Ends& ends) {
  std::mt19937_64 random(seed);
  std::vector<std::shared_ptr<LeavingSink>> waiting;
  const auto settle = [&](size_t most) {
    while (waiting.size() > most) {
      const std::shared_ptr<LeavingSink> sink = waiting.front();
      waiting.erase(waiting.begin());
      sink->Wait();
      const absl::StatusCode code = sink->status().code();
      (code == absl::StatusCode::kOk                 ? ends.ok
       : code == absl::StatusCode::kCancelled        ? ends.cancelled
       : code == absl::StatusCode::kDeadlineExceeded ? ends.late
                                                     : ends.wrong)++;
      if (sink->ends() != 1 || sink->chunks_after_end() != 0) ++ends.wrong;
    }
  };
  for (int i = 0; i < requests; ++i) {
    clock.Advance();
    const bool leaves = random() % 5 == 0;
    const int64_t after = leaves ? 1 + static_cast<int64_t>(random() % 10) : 1 << 20;
    auto sink = std::make_shared<LeavingSink>(&engine, after);
    const auto handle = engine.Submit(RandomRequest(random, clock.Now(), adapter), sink);
    if (!handle.ok()) {
      ++(handle.status().code() == absl::StatusCode::kResourceExhausted ? ends.refused
                                                                        : ends.wrong);
      settle(0);
      continue;
    }
    sink->handle = *handle;
    waiting.push_back(std::move(sink));
    if (random() % 4 == 0) {
      engine.Cancel(waiting[random() % waiting.size()]->handle);
    }
    settle(random() % 9);
  }
  settle(0);
}

class Soak : public ::testing::Test {
 protected:
  static constexpr int kCallers = 4;

  void SetUp() override {
    std::string folder = (std::filesystem::temp_directory_path() / "soak-test-XXXXXX").string();
    ASSERT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    testing::WriteTinyModel(folder_ + "/tiny.gguf", tiny_);
    options_.model_path = folder_ + "/tiny.gguf";
    options_.threads = 1;
    options_.max_running = 6;
    options_.max_queued = 10;
    options_.prefill_chunk = 48;
    options_.kv_bytes = 12 * 2 * 2 * 2 * 16 * 64 * 2;  // twelve pages
    options_.watchdog_seconds = 1e6;
    options_.clock = &clock_;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // The long run belongs under the address sanitizer, which sees what is touched after its end.
  static int Requests(int in_full) {
    return testing::kAddressSanitized || LongTests() ? in_full : in_full / 8;
  }

  // With every gauge back at zero. Half of the requests name the adapter, if there is one.
  EngineStats Run(Engine& engine, int requests, const std::string& adapter = "") {
    const int each = requests / kCallers;
    Ends ends;
    std::vector<std::thread> callers;
    callers.reserve(kCallers);
    for (int i = 0; i < kCallers; ++i) {
      callers.emplace_back(
          [&, i] { Caller(engine, clock_, static_cast<uint64_t>(i) + 1, each, adapter, ends); });
    }
    for (std::thread& caller : callers) caller.join();

    const EngineStats stats = engine.Stats();
    EXPECT_EQ(stats.running, 0);
    EXPECT_EQ(stats.queued, 0);
    EXPECT_EQ(stats.kv_pages_used, 0);
    EXPECT_EQ(stats.kv_bytes_used, 0);
    EXPECT_LE(stats.kv_bytes_cached, stats.kv_bytes);
    int64_t held = 0;
    for (const KvUsage& usage : stats.kv_blocks) held += usage.bytes;
    EXPECT_EQ(held, stats.kv_bytes_cached);
    if (!options_.prefix_cache) {
      EXPECT_EQ(stats.kv_bytes_cached, 0);
      for (const KvUsage& usage : stats.kv_blocks) EXPECT_EQ(usage.bytes, 0) << usage.precision;
    }
    EXPECT_EQ(ends.wrong, 0);
    EXPECT_EQ(ends.ok + ends.cancelled + ends.late + ends.refused, each * kCallers);
    EXPECT_EQ(static_cast<int64_t>(stats.finished_stop + stats.finished_length), ends.ok);
    EXPECT_EQ(static_cast<int64_t>(stats.cancelled), ends.cancelled);
    EXPECT_EQ(static_cast<int64_t>(stats.deadline_exceeded), ends.late);
    EXPECT_EQ(stats.failed, 0u);
    EXPECT_GT(ends.ok, each);
    EXPECT_GT(ends.cancelled, each / 10);
    EXPECT_GT(ends.late, 0);
    return stats;
  }

  SharedClock clock_;
  testing::TinyModelOptions tiny_;
  EngineOptions options_;
  std::string folder_;
};

TEST_F(Soak, EveryEndLeavesNothingBehind) {
  auto engine = Engine::Create(options_);
  ASSERT_TRUE(engine.ok()) << engine.status();
  const EngineStats stats = Run(**engine, Requests(10000));
  EXPECT_GT(stats.prefix_hits, 0u);
  EXPECT_GT(stats.preemptions, 0u);
}

TEST_F(Soak, WithoutAPrefixCacheEveryGaugeEndsAtZero) {
  options_.prefix_cache = false;
  auto engine = Engine::Create(options_);
  ASSERT_TRUE(engine.ok()) << engine.status();
  const EngineStats stats = Run(**engine, Requests(10000));
  EXPECT_GT(stats.preemptions, 0u);
}

TEST_F(Soak, WithNarrowPagesAdaptersAndNoPrefixCache) {
  for (const KvFormat format : {KvFormat::kInt4, KvFormat::kK8V4}) {
    options_.kv_format = format;
    options_.prefix_cache = false;
    options_.adapter_bytes = 16 << 20;
    auto created = Engine::Create(options_);
    ASSERT_TRUE(created.ok()) << created.status();
    Engine& engine = **created;
    testing::AdapterFilesOptions files;
    files.shape = testing::ShapeOf(tiny_);
    const std::string adapter(64, 'a');
    ASSERT_TRUE(engine.LoadAdapter(adapter, testing::RandomAdapter(files)).ok());
    const EngineStats stats = Run(engine, Requests(2000), adapter);
    EXPECT_GT(stats.preemptions, 0u);
    // Nobody holds it any more.
    engine.UnloadAdapter(adapter);
    EXPECT_EQ(engine.AdapterUse().resident, 0);
    EXPECT_EQ(engine.AdapterUse().bytes, 0);
  }
}

TEST_F(Soak, WithADraftModel) {
  options_.speculation = Speculation::kDraftModel;
  options_.draft_model_path = options_.model_path;
  options_.draft_kv_bytes = 64 << 10;
  // This clock moves with submissions: what drafts seem to cost, and so how many there are, is
  // chance. A round in six had none that was accepted.
  uint64_t accepted = 0;
  for (int round = 0; accepted == 0 && round < 20; ++round) {
    auto engine = Engine::Create(options_);
    ASSERT_TRUE(engine.ok()) << engine.status();
    accepted = Run(**engine, Requests(2000)).accepted_tokens;
  }
  EXPECT_GT(accepted, 0u);
}

}  // namespace
}  // namespace cogumi
