// Engine::Create over small model files: the whole engine, with the real transformer.
#include "cogumi/engine.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "engine/core/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/tiny_model.h"
#include "tests/unit/runtime/fake_parts.h"

namespace cogumi {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class EngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "engine-test-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Write(const testing::TinyModelOptions& model = {}) const {
    const std::string path = (folder_ / "tiny.f32.gguf").string();
    testing::WriteTinyModel(path, model);
    return path;
  }
  EngineOptions Options() const {
    EngineOptions options;
    options.model_path = (folder_ / "tiny.f32.gguf").string();
    options.threads = 2;
    options.kv_bytes = 64 << 20;
    return options;
  }
  static std::unique_ptr<Engine> Make(const EngineOptions& options) {
    auto engine = Engine::Create(options);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }
  static GenerationRequest Request(std::string text, int32_t max_tokens) {
    GenerationRequest request;
    for (const char byte : text) request.tokens.push_back(static_cast<unsigned char>(byte));
    request.sampling.max_tokens = max_tokens;
    request.sampling.ignore_eos = true;
    request.sampling.seed = 5;
    return request;
  }
  static std::shared_ptr<RecordingSink> Submit(Engine& engine, const GenerationRequest& request) {
    auto sink = std::make_shared<RecordingSink>();
    const auto handle = engine.Submit(request, sink);
    EXPECT_TRUE(handle.ok()) << handle.status();
    return sink;
  }

  std::filesystem::path folder_;
};

TEST_F(EngineTest, DescribesTheModel) {
  const std::string path = Write();
  const auto engine = Make(Options());
  const ModelDescription& model = engine->Model();
  EXPECT_EQ(model.id, "tiny.f32");
  EXPECT_EQ(model.architecture, "llama");
  EXPECT_EQ(model.path, path);
  EXPECT_EQ(model.file_bytes, static_cast<int64_t>(std::filesystem::file_size(path)));
  EXPECT_EQ(model.context_length, 256);
  EXPECT_EQ(model.vocabulary_size, testing::kTinyVocabularySize);
  EXPECT_EQ(model.layers, 2);
  EXPECT_EQ(model.embedding_length, 64);
  EXPECT_EQ(model.chat_template, "chatml");
  EXPECT_EQ(model.quantization, "F32");
  // Embedding; per layer two norms, attention (q, k, v, o) and three feed-forward matrices; a norm.
  EXPECT_EQ(model.parameters,
            267 * 64 + 2 * (2 * 64 + 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128) + 64);
  EXPECT_GT(model.created, 1600000000);
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  EXPECT_EQ(model.digest, Sha256::Hex(bytes));
  EXPECT_FALSE(engine->Configuration().kernel_configuration.empty());
}

TEST_F(EngineTest, GivenIdIsKept) {
  Write();
  EngineOptions options = Options();
  options.model_id = "mine";
  EXPECT_EQ(Make(options)->Model().id, "mine");
}

TEST_F(EngineTest, AnswersAMessage) {
  Write();
  const auto engine = Make(Options());
  const auto prompt = engine->Tokenize(std::vector<Message>{{MessageRole::kUser, "hello"}});
  ASSERT_TRUE(prompt.ok()) << prompt.status();
  EXPECT_EQ(prompt->template_digest.size(), 64u);
  EXPECT_THAT(*engine->Detokenize(prompt->tokens, true),
              AllOf(HasSubstr("hello"), HasSubstr(testing::kTinySystemMessage)));
  GenerationRequest request = Request("", 10);
  request.tokens = prompt->tokens;
  request.template_digest = prompt->template_digest;
  const auto sink = Submit(*engine, request);
  sink->Wait();
  ASSERT_TRUE(sink->status().ok()) << sink->status();
  EXPECT_EQ(sink->tokens().size(), 10u);
  EXPECT_EQ(sink->completion().receipt.model_digest, engine->Model().digest);
  EXPECT_EQ(sink->completion().receipt.template_digest, prompt->template_digest);
}

TEST_F(EngineTest, TheAnswerDoesNotDependOnTheBatchOrOnPreemption) {
  Write();
  EngineOptions options = Options();
  options.speculation = Speculation::kOff;  // has tests of its own; here pages are to run out
  const auto request = [](int i) {
    GenerationRequest r = Request(std::string(static_cast<size_t>(20 + 9 * i), 'a') + "z", 100);
    r.sampling.temperature = i % 2 == 0 ? 0.0f : 0.8f;
    r.priority = i % 3;
    return r;
  };
  std::vector<std::vector<TokenId>> alone;
  {
    options.prefill_chunk = 1000;
    const auto engine = Make(options);
    for (int i = 0; i < 6; ++i) {
      const auto sink = Submit(*engine, request(i));
      sink->Wait();
      alone.push_back(sink->tokens());
    }
  }
  options.prefill_chunk = 7;
  // Pages for two and a half sequences: head_dim 16, 2 KV heads, 2 layers, half precision.
  options.kv_bytes = 7 * 2 * 2 * 2 * 16 * 64 * 2;
  const auto engine = Make(options);
  EXPECT_EQ(engine->Stats().kv_pages, 7);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 6; ++i) sinks.push_back(Submit(*engine, request(i)));
  for (size_t i = 0; i < 6; ++i) {
    sinks[i]->Wait();
    EXPECT_EQ(sinks[i]->tokens(), alone[i]) << i;
  }
  EXPECT_GT(engine->Stats().preemptions, 0u);
  EXPECT_EQ(engine->Stats().kv_pages_used, 0);
}

TEST_F(EngineTest, ScoresWhatItWouldHaveSaid) {
  Write();
  EngineOptions options = Options();
  options.activations = ActivationFormat::kF32;
  options.kv_format = KvFormat::kF32;
  const auto engine = Make(options);
  GenerationRequest request = Request("score", 30);
  request.sampling.temperature = 0;
  const auto said = Submit(*engine, request);
  said->Wait();
  const std::vector<TokenId> answer = said->tokens();
  request.tokens.insert(request.tokens.end(), answer.begin(), answer.end());
  request.score = true;
  const auto scored = Submit(*engine, request);
  scored->Wait();
  ASSERT_TRUE(scored->status().ok()) << scored->status();
  const std::vector<TokenInfo>& infos = scored->completion().prompt_logprobs;
  ASSERT_EQ(infos.size(), 34u);
  for (size_t i = 0; i < answer.size(); ++i) {
    EXPECT_EQ(infos[4 + i].id, answer[i]);
    EXPECT_NEAR(infos[4 + i].logprob, said->infos()[i].logprob, 1e-4);
    EXPECT_NEAR(infos[4 + i].entropy, said->infos()[i].entropy, 1e-3);
  }
}

TEST_F(EngineTest, FilesThatAreNoModelsAreNamed) {
  EngineOptions options = Options();
  const auto missing = Engine::Create(options);
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().ToString()), HasSubstr("tiny.f32.gguf"));
  std::ofstream(options.model_path) << "this is no model";
  const auto malformed = Engine::Create(options);
  EXPECT_EQ(malformed.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(EngineTest, AModelWithoutAVocabularyTakesTokens) {
  testing::TinyModelOptions without;
  without.vocabulary = false;
  without.chat_template = false;
  Write(without);
  const auto engine = Make(Options());
  const auto sink = Submit(*engine, Request("abc", 5));
  sink->Wait();
  EXPECT_TRUE(sink->status().ok()) << sink->status();
  EXPECT_EQ(sink->tokens().size(), 5u);
  EXPECT_EQ(sink->text(), "");
}

TEST_F(EngineTest, OptionsAreChecked) {
  Write();
  EngineOptions options = Options();
  options.context_length = 257;
  EXPECT_THAT(std::string(Engine::Create(options).status().ToString()),
              HasSubstr("context_length: 257 is beyond the model's 256"));
  options = Options();
  options.kernels = "abacus";
  EXPECT_THAT(std::string(Engine::Create(options).status().ToString()), HasSubstr("abacus"));
  options = Options();
  options.chat_template = "jinja";
  EXPECT_THAT(std::string(Engine::Create(options).status().ToString()), HasSubstr("jinja"));
}

TEST_F(EngineTest, AModelWithoutATemplateStillCompletes) {
  testing::TinyModelOptions without;
  without.chat_template = false;
  Write(without);
  const auto engine = Make(Options());
  EXPECT_EQ(engine->Model().chat_template, "");
  EXPECT_EQ(engine->Tokenize(std::vector<Message>{{MessageRole::kUser, "hello"}}).status().code(),
            absl::StatusCode::kFailedPrecondition);
  const auto sink = Submit(*engine, Request("once", 5));
  sink->Wait();
  EXPECT_TRUE(sink->status().ok()) << sink->status();
}

}  // namespace
}  // namespace cogumi
