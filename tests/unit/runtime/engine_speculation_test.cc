// Every drafter under the whole engine, with the real transformer: answers equal token for token
// to those without speculation.
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cogumi/engine.h"
#include "engine/core/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/sanitizers.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/runtime/fake_parts.h"

namespace cogumi {
namespace {

using ::testing::HasSubstr;

class EngineSpeculationTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "speculation-test-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    testing::TinyModelOptions model;
    model.context_length = 512;
    Write("model", model);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& name, const testing::TinyModelOptions& model) const {
    testing::WriteTinyModel(Path(name), model);
  }
  std::string Path(const std::string& name) const { return (folder_ / (name + ".gguf")).string(); }

  EngineOptions Options(Speculation speculation, const std::string& draft = "") const {
    EngineOptions options;
    options.model_path = Path("model");
    options.threads = 2;
    options.kv_bytes = 256 << 10;  // sixteen pages for six sequences of up to four
    options.max_running = 6;
    options.max_queued = 1000;
    options.prefill_chunk = 32;
    options.speculation = speculation;
    if (!draft.empty()) options.draft_model_path = Path(draft);
    // Time stands still: drafts cost nothing and are verified whenever there are any.
    options.clock = &clock_;
    return options;
  }

  // Byte prompts that repeat themselves in part, so that lookup finds something.
  static std::vector<GenerationRequest> Requests(int count = testing::kSanitized ? 60 : 500,
                                                 size_t longest = 90) {
    std::mt19937_64 random(11);
    std::vector<GenerationRequest> requests;
    for (int i = 0; i < count; ++i) {
      GenerationRequest request;
      const size_t period = 3 + random() % 12;
      const size_t length = 1 + random() % longest;
      for (size_t k = 0; k < length; ++k) {
        request.tokens.push_back(k >= period && random() % 8 != 0
                                     ? request.tokens[k - period]
                                     : static_cast<TokenId>('a' + random() % 26));
      }
      SamplingParams& sampling = request.sampling;
      sampling.max_tokens = 1 + static_cast<int32_t>(random() % 120);
      sampling.seed = random();
      sampling.ignore_eos = true;
      sampling.temperature = i % 2 == 0 ? 0.0f : 0.25f * static_cast<float>(1 + random() % 4);
      if (i % 5 == 1) sampling.top_k = 3;
      if (i % 5 == 2) sampling.repetition_penalty = 1.2f;
      if (i % 5 == 3) sampling.stop = {"qz", "\n"};
      if (i % 5 == 4) sampling.presence_penalty = 0.3f;
      sampling.logprobs = true;
      requests.push_back(std::move(request));
    }
    return requests;
  }

  static std::vector<std::shared_ptr<RecordingSink>> Answer(
      Engine& engine, const std::vector<GenerationRequest>& requests) {
    std::vector<std::shared_ptr<RecordingSink>> sinks;
    for (const GenerationRequest& request : requests) {
      sinks.push_back(std::make_shared<RecordingSink>());
      const auto handle = engine.Submit(request, sinks.back());
      EXPECT_TRUE(handle.ok()) << handle.status();
      if (!handle.ok()) return sinks;
    }
    for (const auto& sink : sinks) sink->Wait();
    return sinks;
  }

  // How much of the drafts was accepted; more than `least` are verified.
  double ExpectEqualAnswers(const EngineOptions& options,
                            const std::vector<GenerationRequest>& requests = Requests(),
                            uint64_t least = 60, uint64_t most = 1 << 20) const {
    EngineOptions without = options;
    without.speculation = Speculation::kOff;
    without.draft_model_path.clear();
    const auto plain_engine = Engine::Create(without);
    const auto engine = Engine::Create(options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    if (!engine.ok() || !plain_engine.ok()) return 0;
    const auto plain = Answer(**plain_engine, requests);
    const auto drafted = Answer(**engine, requests);
    if (HasFailure()) return 0;
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_TRUE(drafted[i]->status().ok()) << drafted[i]->status();
      EXPECT_EQ(drafted[i]->tokens(), plain[i]->tokens()) << "prompt " << i;
      EXPECT_EQ(drafted[i]->text(), plain[i]->text()) << "prompt " << i;
      EXPECT_EQ(drafted[i]->completion().matched_stop, plain[i]->completion().matched_stop);
      for (size_t k = 0; k < plain[i]->infos().size() && !HasFailure(); ++k) {
        EXPECT_EQ(drafted[i]->infos()[k].logprob, plain[i]->infos()[k].logprob);
      }
      if (HasFailure()) return 0;
    }
    const EngineStats stats = (*engine)->Stats();
    EXPECT_EQ((*plain_engine)->Stats().drafts, 0u);
    EXPECT_EQ(stats.kv_pages_used, 0);
    EXPECT_GT(stats.drafts, least);
    EXPECT_LT(stats.drafts, most);
    return static_cast<double>(stats.accepted_tokens) / static_cast<double>(stats.drafted_tokens);
  }

  FakeClock clock_;
  std::filesystem::path folder_;
};

TEST_F(EngineSpeculationTest, Lookup) {
  EXPECT_GT(ExpectEqualAnswers(Options(Speculation::kNgram)), 0.05);
}

TEST_F(EngineSpeculationTest, DraftsAreTakenBackInEveryKvFormat) {
  // Across the ends of pages, after which older ones become narrow.
  for (const KvFormat format : {KvFormat::kInt8, KvFormat::kInt4, KvFormat::kK8V4}) {
    SCOPED_TRACE(NameOf(format));
    EngineOptions options = Options(Speculation::kNgram);
    options.kv_format = format;
    options.kv_bytes = 512 << 10;
    const double accepted =
        ExpectEqualAnswers(options, Requests(testing::kSanitized ? 20 : 120, 350));
    EXPECT_GT(accepted, 0.02);
    EXPECT_LT(accepted, 0.98);
    // A draft model's own cache has the format too. What a token sees is a rule of its position, so
    // the model refuses no drafts of its own but for penalties.
    options.speculation = Speculation::kDraftModel;
    options.draft_model_path = Path("model");
    EXPECT_GT(ExpectEqualAnswers(options, Requests(testing::kSanitized ? 20 : 30, 350)), 0.8);
  }
}

TEST_F(EngineSpeculationTest, TheModelAsItsOwnDraft) {
  // The same arithmetic and the same draws: everything is accepted, but of penalties' answers.
  EXPECT_GT(ExpectEqualAnswers(Options(Speculation::kDraftModel, "model")), 0.9);
}

TEST_F(EngineSpeculationTest, ItsFirstLayer) {
  testing::TinyModelOptions first;
  first.context_length = 512;
  first.layers = 1;
  Write("first", first);
  ExpectEqualAnswers(Options(Speculation::kDraftModel, "first"));
}

TEST_F(EngineSpeculationTest, AnotherModel) {
  testing::TinyModelOptions other;
  other.seed = 99;
  other.context_length = 100;  // shorter than the model's own
  Write("other", other);
  EngineOptions options = Options(Speculation::kDraftModel, "other");
  options.draft_kv_bytes = 64 << 10;  // four pages for six sequences
  // It switches itself off.
  ExpectEqualAnswers(options, Requests(), 0, 100);
}

TEST_F(EngineSpeculationTest, DraftModelsAreChecked) {
  const auto refusal = [](const EngineOptions& options) {
    return std::string(Engine::Create(options).status().ToString());
  };
  EXPECT_THAT(refusal(Options(Speculation::kDraftModel)), HasSubstr("draft_model_path: is empty"));
  EXPECT_THAT(refusal(Options(Speculation::kNgram, "model")),
              HasSubstr("draft_model_path: is given"));
  EXPECT_THAT(refusal(Options(Speculation::kDefault)), HasSubstr("speculation"));
  EXPECT_THAT(refusal(Options(Speculation::kDraftModel, "absent")), HasSubstr("absent.gguf"));
  testing::TinyModelOptions without;
  without.vocabulary = false;
  without.chat_template = false;
  Write("without", without);
  EXPECT_THAT(refusal(Options(Speculation::kDraftModel, "without")),
              HasSubstr("draft_model_path: token"));
  EngineOptions options = Options(Speculation::kDraftModel, "model");
  options.draft_kv_bytes = 0;
  EXPECT_THAT(refusal(options), HasSubstr("draft_kv_bytes: 0"));
  options.draft_kv_bytes = 100;
  EXPECT_THAT(refusal(options), HasSubstr("draft_kv_bytes: 100"));
}

TEST_F(EngineSpeculationTest, ARequestChooses) {
  const auto engine = Engine::Create(Options(Speculation::kDraftModel, "model"));
  ASSERT_TRUE(engine.ok()) << engine.status();
  std::vector<GenerationRequest> requests = Requests(20, 350);
  // Without penalties, which a draft's own tokens do not count for: there the model accepts all
  // that it drafts itself.
  for (GenerationRequest& request : requests) {
    request.sampling.repetition_penalty = 1;
    request.sampling.presence_penalty = 0;
  }
  std::vector<std::vector<TokenId>> answers;  // without drafts
  for (const Speculation choice :
       {Speculation::kOff, Speculation::kNgram, Speculation::kDraftModel, Speculation::kDefault}) {
    SCOPED_TRACE(static_cast<int>(choice));
    for (GenerationRequest& request : requests) request.speculation = choice;
    const auto sinks = Answer(**engine, requests);
    if (HasFailure()) return;
    int32_t drafts = 0;
    int32_t drafted = 0;
    int32_t accepted = 0;
    for (size_t i = 0; i < sinks.size(); ++i) {
      ASSERT_TRUE(sinks[i]->status().ok()) << sinks[i]->status();
      if (choice == Speculation::kOff) answers.push_back(sinks[i]->tokens());
      EXPECT_EQ(sinks[i]->tokens(), answers[i]) << "prompt " << i;
      const SpeculationStats& stats = sinks[i]->completion().speculation;
      drafts += stats.drafts;
      drafted += stats.drafted_tokens;
      accepted += stats.accepted_tokens;
    }
    if (choice == Speculation::kOff) {
      EXPECT_EQ(drafts, 0);
      EXPECT_EQ(drafted, 0);
      continue;
    }
    EXPECT_GT(drafts, 20);
    EXPECT_GT(accepted, 0);
    if (choice == Speculation::kNgram) {
      EXPECT_LT(accepted, drafted) << "lookup guesses wrong sometimes";
    } else {
      EXPECT_EQ(accepted, drafted);
    }
  }
}

}  // namespace
}  // namespace cogumi
