// A decoder whose drafts come from a draft model, started as its options say: real engine, tiny
// models.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cogumi/v1/decoder.grpc.pb.h"
#include "engine/core/clock.h"
#include "engine/core/status_macros.h"
#include "services/common/config.h"
#include "services/common/metrics.h"
#include "services/common/server.h"
#include "services/common/status.h"
#include "services/decoder/start.h"
#include "tests/support/tiny_model.h"

namespace cogumi::services {
namespace {

using ::testing::HasSubstr;
using Flags = std::map<std::string, std::string>;

struct Answer {
  absl::Status status;
  std::vector<int32_t> tokens;
  std::string text;
  v1::SpeculationStats speculation;
};

class DraftModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "decoder-drafts-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    cogumi::testing::WriteTinyModel(Path("tiny"));
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return (folder_ / (name + ".gguf")).string(); }

  absl::StatusOr<std::unique_ptr<RunningService>> Start(const Flags& flags) const {
    DecoderConfig config;
    OptionSet set("decoder");
    DeclareDecoderOptions(set, &config);
    for (const auto& [name, value] : flags) RETURN_IF_ERROR(set.Set(name, value));
    config.server.address = "";  // in process
    config.server.metrics_address = "";
    config.server.log_requests = false;
    config.modifiers = "";
    config.engine.model_path = Path("tiny");
    config.engine.threads = 1;
    config.engine.kv_bytes = 16 << 20;
    // Time stands still: drafts cost nothing and are verified whenever there are any.
    config.engine.clock = &clock_;
    return StartDecoder(config);
  }

  // Why such a decoder does not start.
  std::string Refusal(const Flags& flags) const {
    const absl::Status status = Start(flags).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  }

  static Answer Generate(RunningService& decoder, v1::Speculation speculation) {
    const auto stub = v1::DecoderService::NewStub(decoder.host().InProcessChannel());
    grpc::ClientContext context;
    v1::GenerateRequest request;
    request.set_text("The then on an");
    request.set_speculation(speculation);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_sampling()->set_max_tokens(100);
    request.mutable_sampling()->set_ignore_eos(true);
    Answer answer;
    const auto reader = stub->Generate(&context, request);
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      for (const int32_t token : response.chunk().token_ids()) answer.tokens.push_back(token);
      answer.text += response.chunk().text();
      if (response.has_complete()) answer.speculation = response.complete().speculation();
    }
    answer.status = FromGrpc(reader->Finish());
    return answer;
  }

  FakeClock clock_;
  std::filesystem::path folder_;
};

TEST_F(DraftModelTest, ServesTheSameAnswerAndTellsWhatWasDrafted) {
  const auto plain = Start({{"speculation", "off"}});
  ASSERT_TRUE(plain.ok()) << plain.status();
  const Answer expected = Generate(**plain, v1::SPECULATION_UNSPECIFIED);
  ASSERT_TRUE(expected.status.ok()) << expected.status;
  EXPECT_EQ(expected.tokens.size(), 100u);
  EXPECT_EQ(expected.speculation.drafts(), 0);

  const auto decoder = Start(
      {{"speculation", "draft_model"}, {"draft_model", Path("tiny")}, {"draft_kv_bytes", "1MiB"}});
  ASSERT_TRUE(decoder.ok()) << decoder.status();
  const Answer drafted = Generate(**decoder, v1::SPECULATION_UNSPECIFIED);
  ASSERT_TRUE(drafted.status.ok()) << drafted.status;
  EXPECT_EQ(drafted.tokens, expected.tokens);
  EXPECT_EQ(drafted.text, expected.text);
  const v1::SpeculationStats& stats = drafted.speculation;
  EXPECT_GT(stats.drafts(), 5);
  EXPECT_GT(stats.drafted_tokens(), 20);
  // No lookup: the model says itself what it is asked, so every draft of it is right.
  EXPECT_EQ(stats.accepted_tokens(), stats.drafted_tokens());

  const Answer undrafted = Generate(**decoder, v1::SPECULATION_OFF);
  ASSERT_TRUE(undrafted.status.ok()) << undrafted.status;
  EXPECT_EQ(undrafted.tokens, expected.tokens);
  EXPECT_EQ(undrafted.speculation.drafts(), 0);

  // The one answer with drafts is all that the counters have.
  const std::string metrics = RenderMetrics(*(*decoder)->host().runtime().metrics);
  const auto counted = [](const std::string& name, int32_t value) {
    return HasSubstr("\nvllm:spec_decode_num_" + name + "_total{model_name=\"tiny\"} " +
                     std::to_string(value) + "\n");
  };
  EXPECT_THAT(metrics, counted("drafts", stats.drafts()));
  EXPECT_THAT(metrics, counted("draft_tokens", stats.drafted_tokens()));
  EXPECT_THAT(metrics, counted("accepted_tokens", stats.accepted_tokens()));
}

TEST_F(DraftModelTest, AnUnusableDraftModelIsRefusedAtTheStart) {
  cogumi::testing::TinyModelOptions other;
  other.vocabulary = false;
  other.chat_template = false;
  cogumi::testing::WriteTinyModel(Path("other"), other);
  const std::string reason =
      Refusal({{"speculation", "draft_model"}, {"draft_model", Path("other")}});
  EXPECT_THAT(reason, HasSubstr("draft_model_path: token"));
  EXPECT_THAT(reason, HasSubstr(Path("other")));
  EXPECT_THAT(Refusal({{"speculation", "draft_model"}}), HasSubstr("draft_model_path: is empty"));
  EXPECT_THAT(Refusal({{"draft_model", Path("tiny")}}), HasSubstr("draft_model_path: is given"));
  const absl::Status absent =
      Start({{"speculation", "draft_model"}, {"draft_model", Path("absent")}}).status();
  EXPECT_EQ(absent.code(), absl::StatusCode::kNotFound) << absent;
  EXPECT_THAT(std::string(absent.message()), HasSubstr("absent.gguf"));
}

}  // namespace
}  // namespace cogumi::services
