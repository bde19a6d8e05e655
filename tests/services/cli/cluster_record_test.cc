#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "gtest/gtest.h"
#include "services/cli/cluster.h"
#include "services/cli/paths.h"
#include "services/common/config.h"

namespace cogumi::cli {
namespace {

ClusterRecord Example() {
  ClusterRecord record = RecordOfThisProcess("split", "/models/a model with blanks.gguf");
  record.started = 1700000000;
  record.services = {{"decoder", "unix:/tmp/x/decoder", "127.0.0.1:9", {}, 11},
                     {"gateway", "127.0.0.1:1", "", {{"http", "127.0.0.1:2"}}, 12}};
  return record;
}

class ClusterRecordTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/cogumi-record-XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
    ::setenv("COGUMI_STATE_DIR", folder_.c_str(), 1);
  }
  void TearDown() override {
    ::unsetenv("COGUMI_STATE_DIR");
    std::filesystem::remove_all(folder_);
  }
  std::string folder_;
};

TEST_F(ClusterRecordTest, ReadsWhatItWrites) {
  const auto record = ParseClusterRecord(FormatClusterRecord(Example()));
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->supervisor, ::getpid());
  EXPECT_EQ(record->mode, "split");
  EXPECT_EQ(record->started, 1700000000);
  EXPECT_EQ(record->start_ticks, Example().start_ticks);
  EXPECT_GT(record->start_ticks, 0);
  EXPECT_EQ(record->version, services::Version());
  EXPECT_EQ(record->binary, std::filesystem::read_symlink("/proc/self/exe"));
  EXPECT_EQ(record->model, "/models/a model with blanks.gguf");
  ASSERT_NE(record->Service("gateway"), nullptr);
  EXPECT_EQ(record->Service("gateway")->address, "127.0.0.1:1");
  EXPECT_EQ(record->Service("gateway")->extra.at(0).second, "127.0.0.1:2");
  EXPECT_EQ(record->Service("router"), nullptr);
}

TEST_F(ClusterRecordTest, RefusesWhatIsNone) {
  const std::string first = "cluster supervisor=1 mode=a started=1 ticks=1 version=1 model=m\n";
  EXPECT_TRUE(ParseClusterRecord(first + "binary=b\n").ok());
  for (const std::string& text :
       {std::string(), std::string("\n"), std::string("cluster"), first, first + "nonsense",
        first + "binary=b\nnonsense",
        std::string("cluster supervisor=1 mode=a started=1 model=m\nbinary=b\n"),
        std::string("cluster supervisor=1 mode=a started=1 ticks=x version=1 model=m\nbinary=b"),
        std::string("cluster mode=a supervisor=1 started=1 ticks=1 version=1 model=m\nbinary=b")}) {
    EXPECT_FALSE(ParseClusterRecord(text).ok()) << text;
  }
}

TEST_F(ClusterRecordTest, FindsALivingClusterByItsModel) {
  ClusterRecord record = Example();
  ASSERT_TRUE(WriteClusterRecord(&record).ok());
  EXPECT_TRUE(FindServingCluster("").has_value());
  EXPECT_TRUE(FindServingCluster(record.model).has_value());
  EXPECT_FALSE(FindServingCluster("/models/other.gguf").has_value());
}

TEST_F(ClusterRecordTest, AProcessThatGotTheIdLaterIsNoCluster) {
  ClusterRecord record = Example();
  record.start_ticks -= 1;
  ASSERT_TRUE(WriteClusterRecord(&record).ok());
  EXPECT_FALSE(IsRunning(record));
  EXPECT_TRUE(FindClusters().empty());
  EXPECT_FALSE(std::filesystem::exists(record.path));
}

TEST_F(ClusterRecordTest, AClusterOfAnotherBuildIsTold) {
  ClusterRecord record = Example();
  ASSERT_TRUE(WriteClusterRecord(&record).ok());
  EXPECT_TRUE(FindServingCluster("", /*this_build=*/true).has_value());
  record.binary += "-other";
  ASSERT_TRUE(WriteClusterRecord(&record).ok());
  EXPECT_FALSE(FindServingCluster("", /*this_build=*/true).has_value());
  EXPECT_TRUE(FindServingCluster("").has_value());
  record = Example();
  record.version += "-other";
  ASSERT_TRUE(WriteClusterRecord(&record).ok());
  EXPECT_FALSE(FindServingCluster("", /*this_build=*/true).has_value());
}

TEST_F(ClusterRecordTest, APrivateClusterServesNobodyElse) {
  ClusterRecord record = Example();
  record.mode = "run";
  ASSERT_TRUE(WriteClusterRecord(&record).ok());
  EXPECT_EQ(FindClusters().size(), 1u);
  EXPECT_FALSE(FindServingCluster("").has_value());
}

TEST_F(ClusterRecordTest, WhatADeadSupervisorLeftIsRemoved) {
  const auto sockets = MakeSocketFolder();
  ASSERT_TRUE(sockets.ok());
  ClusterRecord record = Example();
  record.supervisor = 0x7ffffffe;  // beyond every process id
  record.services[0].address = "unix:" + *sockets + "/decoder";
  ASSERT_TRUE(WriteClusterRecord(&record).ok());
  EXPECT_TRUE(FindClusters().empty());
  EXPECT_FALSE(std::filesystem::exists(record.path));
  EXPECT_FALSE(std::filesystem::exists(*sockets));
}

TEST_F(ClusterRecordTest, OnlyOurOwnFoldersAreRemoved) {
  const std::string other = folder_ + "/precious";
  std::filesystem::create_directory(other);
  ClusterRecord record = Example();
  record.supervisor = 0x7ffffffe;
  record.services[0].address = "unix:" + other + "/decoder";
  ASSERT_TRUE(WriteClusterRecord(&record).ok());
  EXPECT_TRUE(FindClusters().empty());
  EXPECT_TRUE(std::filesystem::exists(other));
}

}  // namespace
}  // namespace cogumi::cli
