// The catalogue on disk and ModifierService over it.
#include "services/modifiers/modifiers_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "cogumi/v1/modifiers.grpc.pb.h"
#include "engine/core/sha256.h"
#include "services/common/status.h"
#include "services/modifiers/start.h"
#include "tests/services/modifiers/adapter_maker.h"
#include "tests/support/tiny_model.h"

namespace cogumi::services {
namespace {

using test::AdapterParts;
using test::RightParts;
using test::TemporaryFolder;
using test::TinyBase;
using test::WriteAdapter;
using test::WriteFile;
using ::testing::HasSubstr;

bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return condition();
}

class ModifiersTest : public ::testing::Test {
 protected:
  ModifiersTest() {
    config_.server.address = "127.0.0.1:0";
    config_.server.metrics_address = "";
    config_.server.log_requests = false;
    config_.catalogue.state_dir = state_ / "state";
    config_.catalogue.base = TinyBase();
    AdapterParts parts = RightParts(TinyBase());
    WriteAdapter(source_ / "one", parts);
    parts.value = 0.125f;
    WriteAdapter(source_ / "two", parts);
  }

  void Start() {
    auto service = StartModifiers(config_);
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
    stub_ = v1::ModifierService::NewStub(
        grpc::CreateChannel(service_->host().address(), grpc::InsecureChannelCredentials()));
  }
  void Restart() {
    service_.reset();
    Start();
  }

  absl::Status Register(const std::string& name, const std::string& path,
                        v1::RegisterResponse* response = nullptr) {
    grpc::ClientContext context;
    v1::RegisterRequest request;
    request.set_name(name);
    request.set_path(path);
    v1::RegisterResponse own;
    return FromGrpc(
        stub_->Register(&context, request, response != nullptr ? response : &own));
  }
  absl::Status Remove(const std::string& name) {
    grpc::ClientContext context;
    v1::RemoveRequest request;
    request.set_name(name);
    v1::RemoveResponse response;
    return FromGrpc(stub_->Remove(&context, request, &response));
  }
  v1::ListResponse List() {
    grpc::ClientContext context;
    v1::ListResponse response;
    EXPECT_TRUE(stub_->List(&context, {}, &response).ok());
    return response;
  }
  absl::Status Fetch(const std::string& digest, std::map<std::string, std::string>* files) {
    grpc::ClientContext context;
    v1::FetchRequest request;
    request.set_digest(digest);
    auto reader = stub_->Fetch(&context, request);
    v1::FetchResponse piece;
    while (reader->Read(&piece)) {
      EXPECT_LE(piece.data().size(), size_t{1} << 20);
      EXPECT_EQ(piece.offset(), static_cast<int64_t>((*files)[piece.file()].size()));
      (*files)[piece.file()] += piece.data();
    }
    return FromGrpc(reader->Finish());
  }
  std::string Metrics() { return RenderMetrics(*service_->host().runtime().metrics); }

  TemporaryFolder state_;
  TemporaryFolder source_;
  ModifiersConfig config_;
  std::unique_ptr<RunningService> service_;
  std::unique_ptr<v1::ModifierService::Stub> stub_;
};

TEST_F(ModifiersTest, RegistersListsGetsAndRemoves) {
  Start();
  EXPECT_EQ(List().adapters_size(), 0);
  v1::RegisterResponse registered;
  ASSERT_TRUE(Register("code", source_ / "one", &registered).ok());
  EXPECT_FALSE(registered.unchanged());
  EXPECT_GT(registered.adapter().registered_ms(), 0);
  ASSERT_TRUE(Register("code", source_ / "one", &registered).ok());
  EXPECT_TRUE(registered.unchanged());
  EXPECT_EQ(List().revision(), 1);
  ASSERT_EQ(List().adapters_size(), 1);

  for (const bool by_name : {true, false}) {
    grpc::ClientContext context;
    v1::GetRequest request;
    by_name ? request.set_name("code") : request.set_digest(registered.adapter().digest());
    v1::GetResponse response;
    ASSERT_TRUE(stub_->Get(&context, request, &response).ok());
    EXPECT_EQ(response.adapter().name(), "code");
    EXPECT_EQ(response.adapter().rank(), 2);
  }
  // Another version under the same name.
  ASSERT_TRUE(Register("code", source_ / "two").ok());
  ASSERT_EQ(List().adapters_size(), 1);
  EXPECT_NE(List().adapters(0).digest(), registered.adapter().digest());
  EXPECT_FALSE(std::filesystem::exists(config_.catalogue.state_dir + "/adapters/" +
                                       registered.adapter().digest()));
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_modifiers 1"));
  EXPECT_TRUE(Remove("code").ok());
  EXPECT_EQ(List().adapters_size(), 0);
  EXPECT_TRUE(absl::IsNotFound(Remove("code")));
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_modifiers 0"));
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_modifier_removed_total 1"));
}

TEST_F(ModifiersTest, HandsOutVerifiedBytes) {
  // More than one piece.
  BaseModel base = TinyBase();
  base.feed_forward_length = 100000;
  config_.catalogue.base = base;
  WriteAdapter(source_ / "large", RightParts(base));
  Start();
  v1::RegisterResponse registered;
  ASSERT_TRUE(Register("large", source_ / "large", &registered).ok());
  std::map<std::string, std::string> files;
  ASSERT_TRUE(Fetch(registered.adapter().digest(), &files).ok());
  ASSERT_EQ(files.size(), 3u);
  for (const auto& file : registered.adapter().files()) {
    EXPECT_EQ(Sha256::Hex(files[file.name()]), file.digest()) << file.name();
  }
  EXPECT_GT(files[kWeightsFile].size(), size_t{1} << 20);
  files.clear();
  EXPECT_TRUE(absl::IsNotFound(Fetch(std::string(64, '0'), &files)));
  for (const char* digest : {"", "../../../etc/passwd", "ABC"}) {
    EXPECT_EQ(FieldOf(Fetch(digest, &files)), "digest") << digest;
  }
}

TEST_F(ModifiersTest, SurvivesARestart) {
  Start();
  ASSERT_TRUE(Register("a", source_ / "one").ok());
  ASSERT_TRUE(Register("b", source_ / "two").ok());
  ASSERT_TRUE(Register("c", source_ / "two").ok());
  ASSERT_TRUE(Remove("c").ok());
  const v1::ListResponse before = List();
  Restart();
  const v1::ListResponse after = List();
  EXPECT_EQ(after.SerializeAsString(), before.SerializeAsString());
  EXPECT_EQ(after.revision(), 4);
  std::map<std::string, std::string> files;
  EXPECT_TRUE(Fetch(after.adapters(1).digest(), &files).ok());
}

TEST_F(ModifiersTest, DamagedBytesAreLeftOut) {
  Start();
  v1::RegisterResponse registered;
  ASSERT_TRUE(Register("a", source_ / "one", &registered).ok());
  ASSERT_TRUE(Register("b", source_ / "two").ok());
  service_.reset();
  const std::string weights = config_.catalogue.state_dir + "/adapters/" +
                              registered.adapter().digest() + "/" + kWeightsFile;
  std::string bytes = test::ReadFile(weights);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  WriteFile(weights, bytes);
  Start();
  ASSERT_EQ(List().adapters_size(), 1);
  EXPECT_EQ(List().adapters(0).name(), "b");
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_modifiers_left_out 1"));
  // Registering it again mends it.
  ASSERT_TRUE(Register("a", source_ / "one").ok());
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_modifiers_left_out 0"));
  Restart();
  EXPECT_EQ(List().adapters_size(), 2);
}

TEST_F(ModifiersTest, AdaptersOfAnotherBaseComeBackWithIt) {
  Start();
  ASSERT_TRUE(Register("a", source_ / "one").ok());
  service_.reset();
  config_.catalogue.base.digest = std::string(64, '1');
  Start();
  EXPECT_EQ(List().adapters_size(), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(Register("a2", source_ / "one")));
  service_.reset();
  config_.catalogue.base = TinyBase();
  Start();
  EXPECT_EQ(List().adapters_size(), 1);
}

TEST_F(ModifiersTest, AnUnreadableIndexIsNotOverwritten) {
  Start();
  ASSERT_TRUE(Register("a", source_ / "one").ok());
  service_.reset();
  const std::string index = config_.catalogue.state_dir + "/index.json";
  for (const char* text : {"{", "{}", "{\"format\":2,\"revision\":1,\"adapters\":[]}",
                           "{\"format\":1,\"revision\":1,\"adapters\":[{\"name\":\"../x\"}]}"}) {
    WriteFile(index, text);
    EXPECT_TRUE(absl::IsDataLoss(StartModifiers(config_).status())) << text;
    EXPECT_EQ(test::ReadFile(index), text);
  }
}

TEST_F(ModifiersTest, OneProcessAtATime) {
  Start();
  EXPECT_TRUE(absl::IsUnavailable(StartModifiers(config_).status()));
}

TEST_F(ModifiersTest, LeftoversOfACrashAreCleared) {
  Start();
  service_.reset();
  const std::string state = config_.catalogue.state_dir;
  std::filesystem::create_directories(state + "/incoming/half");
  std::filesystem::create_directories(state + "/adapters/" + std::string(64, '9'));
  Start();
  EXPECT_TRUE(std::filesystem::is_empty(state + "/incoming"));
  EXPECT_TRUE(std::filesystem::is_empty(state + "/adapters"));
}

TEST_F(ModifiersTest, BadInputNamesItsField) {
  Start();
  for (const std::string& name : {std::string(), std::string("../x"), std::string("A"),
                                  std::string(65, 'a')}) {
    EXPECT_EQ(FieldOf(Register(name, source_ / "one")), "name") << name;
    EXPECT_EQ(FieldOf(Remove(name)), "name") << name;
  }
  for (const std::string& path : {std::string(), std::string("relative"),
                                  (source_ / "x") + "/../one", std::string(5000, 'x')}) {
    EXPECT_EQ(FieldOf(Register("a", path)), "path") << path;
  }
  EXPECT_TRUE(absl::IsNotFound(Register("a", source_ / "nowhere")));
  grpc::ClientContext context;
  v1::GetResponse response;
  EXPECT_EQ(FieldOf(FromGrpc(stub_->Get(&context, {}, &response))), "key");
  AdapterParts parts = RightParts(TinyBase());
  parts.tensors.pop_back();
  WriteAdapter(source_ / "broken", parts);
  EXPECT_TRUE(absl::IsInvalidArgument(Register("a", source_ / "broken")));
  EXPECT_EQ(List().adapters_size(), 0);
  EXPECT_TRUE(std::filesystem::is_empty(config_.catalogue.state_dir + "/incoming"));
  EXPECT_TRUE(std::filesystem::is_empty(config_.catalogue.state_dir + "/adapters"));
}

TEST_F(ModifiersTest, TheFolderIsReadAndIsALimit) {
  config_.catalogue.folder = source_.path();
  AdapterParts parts = RightParts(TinyBase());
  parts.config = "{}";
  WriteAdapter(source_ / "broken", parts);
  std::filesystem::create_directories(source_ / "no-adapter");
  Start();
  ASSERT_EQ(List().adapters_size(), 2);
  EXPECT_EQ(List().adapters(0).name(), "one");
  EXPECT_EQ(List().adapters(1).name(), "two");
  EXPECT_TRUE(Register("again", "one").ok());
  EXPECT_TRUE(Register("absolute", source_ / "two").ok());
  const TemporaryFolder outside;
  WriteAdapter(outside / "x", RightParts(TinyBase()));
  EXPECT_EQ(FieldOf(Register("x", outside / "x")), "path");
  std::filesystem::create_symlink(outside / "x", source_ / "link");
  EXPECT_EQ(FieldOf(Register("x", "link")), "path");
}

TEST_F(ModifiersTest, TheFolderIsFollowed) {
  config_.catalogue.folder = source_.path();
  config_.folder_seconds = 0.01;
  Start();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  auto watch = stub_->Watch(&context, {});
  v1::WatchResponse change;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(watch->Read(&change));
  ASSERT_EQ(change.type(), v1::CHANGE_TYPE_SYNCED);

  // A whole folder comes at once, as by a rename.
  const TemporaryFolder outside;
  WriteAdapter(outside / "three", RightParts(TinyBase()));
  std::filesystem::rename(outside / "three", source_ / "three");
  ASSERT_TRUE(watch->Read(&change));
  EXPECT_EQ(change.type(), v1::CHANGE_TYPE_ADDED);
  EXPECT_EQ(change.adapter().name(), "three");
  const std::string before = change.adapter().digest();

  AdapterParts parts = RightParts(TinyBase());
  parts.value = 0.25f;
  WriteAdapter(outside / "changed", parts);
  std::filesystem::rename(outside / "changed/adapter_model.safetensors",
                          source_ / "three/adapter_model.safetensors");
  ASSERT_TRUE(watch->Read(&change));
  EXPECT_EQ(change.type(), v1::CHANGE_TYPE_REMOVED);
  ASSERT_TRUE(watch->Read(&change));
  EXPECT_EQ(change.type(), v1::CHANGE_TYPE_ADDED);
  EXPECT_NE(change.adapter().digest(), before);

  std::filesystem::remove_all(source_ / "three");
  ASSERT_TRUE(watch->Read(&change));
  EXPECT_EQ(change.type(), v1::CHANGE_TYPE_REMOVED);
  EXPECT_EQ(change.adapter().name(), "three");
  context.TryCancel();
}

TEST_F(ModifiersTest, WhatLeftTheFolderMeanwhileIsGoneAtTheStart) {
  config_.catalogue.folder = source_.path();
  Start();
  ASSERT_TRUE(Register("by-name", "one").ok());
  ASSERT_EQ(List().adapters_size(), 3);
  service_.reset();
  std::filesystem::remove_all(source_ / "one");
  Start();
  ASSERT_EQ(List().adapters_size(), 2);
  // What a caller registered by another name does not follow the folder.
  EXPECT_EQ(List().adapters(0).name(), "by-name");
  EXPECT_EQ(List().adapters(1).name(), "two");
}

TEST_F(ModifiersTest, ARemovedAdapterOfTheFolderStaysRemoved) {
  config_.catalogue.folder = source_.path();
  Start();
  ASSERT_TRUE(Remove("one").ok());
  Restart();
  ASSERT_EQ(List().adapters_size(), 1);
  EXPECT_EQ(List().adapters(0).name(), "two");
  Restart();  // the index that the scan wrote still knows
  EXPECT_EQ(List().adapters_size(), 1);
  // Other bytes are another adapter.
  AdapterParts parts = RightParts(TinyBase());
  parts.value = 0.125f;
  std::filesystem::remove_all(source_ / "one");
  WriteAdapter(source_ / "one", parts);
  Restart();
  EXPECT_EQ(List().adapters_size(), 2);
  // And a caller may always ask for it again.
  ASSERT_TRUE(Remove("two").ok());
  ASSERT_TRUE(Register("two", "two").ok());
  Restart();
  EXPECT_EQ(List().adapters_size(), 2);
}

TEST_F(ModifiersTest, TheBaseIsReadFromTheServedModel) {
  cogumi::testing::TinyModelOptions model;
  model.layers = 3;
  cogumi::testing::WriteTinyModel(source_ / "model.gguf", model);
  config_.catalogue.base_model = source_ / "model.gguf";
  const auto base = ReadBaseModel(config_.catalogue.base_model);
  ASSERT_TRUE(base.ok()) << base.status();
  EXPECT_EQ(base->name, "tiny");
  EXPECT_EQ(base->digest, Sha256::Hex(test::ReadFile(source_ / "model.gguf")));
  EXPECT_EQ(base->layers, 3);
  EXPECT_EQ(base->embedding_length, 64);
  EXPECT_EQ(base->heads, 4);
  EXPECT_EQ(base->kv_heads, 2);
  EXPECT_EQ(base->head_length, 16);
  EXPECT_EQ(base->feed_forward_length, 128);
  Start();
  EXPECT_TRUE(absl::IsFailedPrecondition(Register("other", source_ / "one")));
  WriteAdapter(source_ / "right", RightParts(*base));
  EXPECT_TRUE(Register("right", source_ / "right").ok());
  // Its digest, with the shape of another.
  BaseModel flat = *base;
  flat.layers = 2;
  WriteAdapter(source_ / "flat", RightParts(flat));
  EXPECT_TRUE(absl::IsInvalidArgument(Register("flat", source_ / "flat")));
  Restart();
  EXPECT_EQ(List().adapters_size(), 1);
}

TEST_F(ModifiersTest, AModelThatIsNoneRefusesAdaptersOnly) {
  WriteFile(source_ / "model.gguf", "GGUF?");
  config_.catalogue.base_model = source_ / "model.gguf";
  Start();
  const absl::Status refused = Register("a", source_ / "one");
  EXPECT_THAT(std::string(refused.message()), HasSubstr("model.gguf"));
  EXPECT_EQ(List().adapters_size(), 0);
}

TEST_F(ModifiersTest, WatchersHearEverything) {
  Start();
  ASSERT_TRUE(Register("a", source_ / "one").ok());
  grpc::ClientContext context;
  auto watch = stub_->Watch(&context, {});
  v1::WatchResponse change;
  ASSERT_TRUE(watch->Read(&change));
  EXPECT_EQ(change.type(), v1::CHANGE_TYPE_ADDED);
  EXPECT_EQ(change.adapter().name(), "a");
  ASSERT_TRUE(watch->Read(&change));
  EXPECT_EQ(change.type(), v1::CHANGE_TYPE_SYNCED);
  EXPECT_EQ(change.revision(), 1);
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_modifier_watchers 1"));

  ASSERT_TRUE(Register("b", source_ / "two").ok());
  ASSERT_TRUE(watch->Read(&change));
  EXPECT_EQ(change.type(), v1::CHANGE_TYPE_ADDED);
  EXPECT_EQ(change.adapter().name(), "b");
  // A replaced version: the old one goes, the new one comes.
  ASSERT_TRUE(Register("b", source_ / "one").ok());
  ASSERT_TRUE(watch->Read(&change));
  EXPECT_EQ(change.type(), v1::CHANGE_TYPE_REMOVED);
  ASSERT_TRUE(watch->Read(&change));
  EXPECT_EQ(change.type(), v1::CHANGE_TYPE_ADDED);
  EXPECT_EQ(change.revision(), 4);
  ASSERT_TRUE(Remove("a").ok());
  ASSERT_TRUE(watch->Read(&change));
  EXPECT_EQ(change.type(), v1::CHANGE_TYPE_REMOVED);
  EXPECT_EQ(change.adapter().name(), "a");

  context.TryCancel();
  EXPECT_TRUE(Eventually([&] {
    return Metrics().find("cogumi_modifier_watchers 0") != std::string::npos;
  }));
}

TEST_F(ModifiersTest, DrainEndsWatches) {
  Start();
  grpc::ClientContext context;
  auto watch = stub_->Watch(&context, {});
  v1::WatchResponse change;
  ASSERT_TRUE(watch->Read(&change));
  service_->host().StartDraining();
  service_->OnDrain();
  EXPECT_TRUE(service_->host().Drain(60).ok());
  EXPECT_FALSE(watch->Read(&change));
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace cogumi::services
