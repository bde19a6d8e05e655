// The real catalogue, decoder and engine in one process: adapters come and go under load, and no
// request fails, no memory stays.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cogumi/v1/decoder.grpc.pb.h"
#include "cogumi/v1/modifiers.grpc.pb.h"
#include "engine/core/sha256.h"
#include "services/common/status.h"
#include "services/decoder/start.h"
#include "services/modifiers/start.h"
#include "tests/support/adapter_files.h"
#include "tests/support/sanitizers.h"
#include "tests/support/tiny_model.h"

namespace cogumi::services {
namespace {

constexpr int kCycles = 30;
constexpr int kLongCycles = 1000;  // with COGUMI_LONG_TESTS set
constexpr int kVersions = 3;

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void Write(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

int64_t ResidentBytes() {
  std::ifstream status("/proc/self/statm");
  int64_t total = 0;
  int64_t resident = 0;
  status >> total >> resident;
  return resident * 4096;
}

class AdapterCycles : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "adapters-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    testing_model_.context_length = 512;
    cogumi::testing::WriteTinyModel(folder_ + "/tiny.gguf", testing_model_);
    const LlamaShape shape = cogumi::testing::ShapeOf(testing_model_);

    ModifiersConfig modifiers;
    modifiers.server.address = "unix:" + folder_ + "/modifiers.sock";
    modifiers.server.metrics_address = "";
    modifiers.server.log_requests = false;
    modifiers.catalogue.state_dir = folder_ + "/state";
    BaseModel& base = modifiers.catalogue.base;
    base = {"tiny",
            Sha256::Hex(Read(folder_ + "/tiny.gguf")),
            shape.layers,
            shape.embedding_length,
            shape.heads,
            shape.kv_heads,
            shape.head_length,
            shape.feed_forward_length};
    auto started = StartModifiers(modifiers);
    ASSERT_TRUE(started.ok()) << started.status();
    modifiers_ = *std::move(started);

    DecoderConfig decoder;
    decoder.server.address = "unix:" + folder_ + "/decoder.sock";
    decoder.server.metrics_address = "";
    decoder.server.log_requests = false;
    decoder.engine.model_path = folder_ + "/tiny.gguf";
    decoder.engine.threads = 1;
    decoder.engine.kv_bytes = 16 << 20;
    decoder.engine.adapter_bytes = 16 << 20;
    decoder.modifiers = modifiers.server.address;
    auto serving = StartDecoder(decoder);
    ASSERT_TRUE(serving.ok()) << serving.status();
    decoder_ = *std::move(serving);

    for (int i = 0; i < kVersions; ++i) {
      cogumi::testing::AdapterFilesOptions options;
      options.shape = shape;
      options.seed = static_cast<uint64_t>(i) + 1;
      const AdapterFiles files = cogumi::testing::RandomAdapter(options);
      const std::string path = Version(i);
      std::filesystem::create_directories(path);
      Write(path + "/adapter_config.json", files.config);
      Write(path + "/adapter_model.safetensors", files.weights);
      Write(path + "/card.json", R"({"domain":"code","license":"MIT","description":"",
                                     "base_digest":")" +
                                     base.digest + "\"}");
    }
    catalogue_ = v1::ModifierService::NewStub(modifiers_->host().InProcessChannel());
    generator_ = v1::DecoderService::NewStub(decoder_->host().InProcessChannel());
  }
  void TearDown() override {
    decoder_.reset();
    modifiers_.reset();
    std::filesystem::remove_all(folder_);
  }

  std::string Version(int i) const { return folder_ + "/version-" + std::to_string(i); }

  std::string Register(const std::string& name, int version) {
    grpc::ClientContext context;
    v1::RegisterRequest request;
    request.set_name(name);
    request.set_path(Version(version));
    v1::RegisterResponse response;
    const grpc::Status status = catalogue_->Register(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.adapter().digest();
  }
  void Remove(const std::string& name) {
    grpc::ClientContext context;
    v1::RemoveRequest request;
    request.set_name(name);
    v1::RemoveResponse response;
    const grpc::Status status = catalogue_->Remove(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
  }

  struct Answer {
    absl::Status status;
    std::vector<int> tokens;
    std::string adapter_digest;
  };
  // `began`, if any, is told once there is a token, or at the end.
  Answer Generate(const std::string& adapter, int tokens, std::promise<void>* began = nullptr) {
    grpc::ClientContext context;
    v1::GenerateRequest request;
    request.set_text("The then on an");
    request.set_adapter(adapter);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_sampling()->set_max_tokens(tokens);
    request.mutable_sampling()->set_ignore_eos(true);
    Answer answer;
    const auto reader = generator_->Generate(&context, request);
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      if (began != nullptr) std::exchange(began, nullptr)->set_value();
      for (const int token : response.chunk().token_ids()) answer.tokens.push_back(token);
      if (response.has_complete()) {
        answer.adapter_digest = response.complete().receipt().adapter_digest();
      }
    }
    answer.status = FromGrpc(reader->Finish());
    if (began != nullptr) began->set_value();
    return answer;
  }
  // A name is known once its registration has returned; the decoder hears a moment later that it
  // stands for other bytes than before.
  Answer GenerateOnce(const std::string& adapter, const std::string& digest) {
    for (int i = 0; i < 2000; ++i) {
      Answer answer = Generate(adapter, 8);
      if (!answer.status.ok() || answer.adapter_digest == digest) return answer;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return Generate(adapter, 8);
  }

  cogumi::testing::TinyModelOptions testing_model_;
  std::string folder_;
  std::unique_ptr<RunningService> modifiers_;
  std::unique_ptr<RunningService> decoder_;
  std::unique_ptr<v1::ModifierService::Stub> catalogue_;
  std::unique_ptr<v1::DecoderService::Stub> generator_;
};

TEST_F(AdapterCycles, EachVersionAnswersByItself) {
  const Answer base = Generate("", 8);
  ASSERT_TRUE(base.status.ok()) << base.status;
  EXPECT_EQ(base.adapter_digest, "");
  std::set<std::vector<int>> answers = {base.tokens};
  for (int i = 0; i < kVersions; ++i) {
    const std::string digest = Register("poet", i);
    const Answer answer = GenerateOnce("poet", digest);
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_EQ(answer.adapter_digest, digest);
    answers.insert(answer.tokens);
  }
  EXPECT_EQ(answers.size(), 1u + kVersions) << "every adapter changes the answer";
  EXPECT_TRUE(absl::IsNotFound(Generate("nobody", 1).status));
}

TEST_F(AdapterCycles, ServesWhatIsResidentWithoutTheCatalogue) {
  const std::string poet = Register("poet", 0);
  const std::string coder = Register("coder", 1);
  const Answer before = GenerateOnce("poet", poet);
  modifiers_.reset();
  const Answer after = Generate("poet", 8);
  ASSERT_TRUE(after.status.ok()) << after.status;
  EXPECT_EQ(after.tokens, before.tokens);
  const Answer cold = Generate("coder", 8);
  EXPECT_TRUE(absl::IsUnavailable(cold.status)) << cold.status;
  EXPECT_THAT(std::string(cold.status.message()), ::testing::HasSubstr("\"coder\""));
  EXPECT_TRUE(Generate("", 8).status.ok());
}

TEST_F(AdapterCycles, NoRequestFailsAndNoMemoryStays) {
  const std::string steady = Register("steady", 0);
  const Answer alone = GenerateOnce("steady", steady);
  ASSERT_TRUE(alone.status.ok()) << alone.status;
  std::atomic<bool> stop{false};
  std::atomic<int> answered{0};
  std::vector<std::thread> load;
  for (int i = 0; i < 3; ++i) {
    load.emplace_back([&, i] {
      while (!stop) {
        // The base and an adapter, beside others that come and go.
        const Answer answer = Generate(i == 0 ? "" : "steady", 8);
        EXPECT_TRUE(answer.status.ok()) << answer.status;
        if (i > 0) {
          EXPECT_EQ(answer.tokens, alone.tokens);
        }
        ++answered;
      }
    });
  }
  const int cycles = std::getenv("COGUMI_LONG_TESTS") != nullptr ? kLongCycles : kCycles;
  std::map<std::string, std::vector<int>> expected;
  for (int i = 1; i <= 2; ++i) {
    const std::string digest = Register("poet", i);
    ASSERT_TRUE(GenerateOnce("poet", digest).status.ok());
    expected[digest] = Generate("poet", 60).tokens;
    ASSERT_EQ(expected[digest].size(), 60u);
    Remove("poet");
  }
  int64_t settled = 0, later = 0;
  for (int i = 0; i < cycles; ++i) {
    const std::string digest = Register("poet", 1 + i % 2);
    const Answer answer = GenerateOnce("poet", digest);
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_EQ(answer.adapter_digest, digest);
    // A long answer that has begun ends as it would while its adapter is removed.
    std::promise<void> began;
    Answer longer;
    std::thread running([&] { longer = Generate("poet", 60, &began); });
    began.get_future().wait();
    Remove("poet");
    running.join();
    ASSERT_TRUE(longer.status.ok()) << longer.status;
    EXPECT_EQ(longer.adapter_digest, digest);
    EXPECT_EQ(longer.tokens, expected.at(digest));
    if (i == cycles / 3) settled = ResidentBytes();
    if (i == 2 * cycles / 3) later = ResidentBytes();
  }
  stop = true;
  for (std::thread& thread : load) thread.join();
  EXPECT_GT(answered, cycles);
  // A version takes 2 MiB. The allocator's own growth ends: the last third adds little.
  // The address sanitizer keeps what was freed.
  if (!cogumi::testing::kAddressSanitized) {
    EXPECT_LT(later - settled, 8 << 20);
    EXPECT_LT(ResidentBytes() - later, 2 << 20);
  }
}

}  // namespace
}  // namespace cogumi::services
