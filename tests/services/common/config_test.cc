#include "services/common/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

namespace cogumi::services {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class ConfigTest : public testing::Test {
 protected:
  ConfigTest() {
    set_.String("name", &name_, "A name.")
        .Int("threads", &threads_, 0, 64, "Threads.")
        .Double("share", &share_, 0, 1, "A share.")
        .Bool("verbose", &verbose_, "Says more.")
        .Bytes("kv_bytes", &bytes_, 1 << 20, 1LL << 40, "Bytes.")
        .Duration("grace", &grace_, 0, 60, "Time.")
        .Choice("kernels", &kernels_, {"fast", "exact"}, "Which.")
        .List("origins", &origins_, "Origins.")
        .Int("base.layers", &layers_, 1, 100, "Layers.");
  }

  std::string Write(const std::string& yaml) {
    const std::string path = testing::TempDir() + "/config_test.yaml";
    std::ofstream(path) << yaml;
    return path;
  }

  absl::StatusOr<ConfigOutcome> Load(std::vector<const char*> flags,
                                     std::vector<const char*> environment = {}) {
    flags.insert(flags.begin(), "program");
    environment.push_back(nullptr);
    ConfigRequest request{"program", "Says.", {&set_}, static_cast<int>(flags.size()),
                          flags.data(), environment.data()};
    return LoadConfig(request);
  }

  std::string ErrorOf(std::vector<const char*> flags, std::vector<const char*> environment = {}) {
    const auto outcome = Load(std::move(flags), std::move(environment));
    EXPECT_FALSE(outcome.ok());
    return std::string(outcome.status().message());
  }
  std::string ErrorOfYaml(const std::string& yaml) {
    const std::string path = Write(yaml);
    return ErrorOf({"--config", path.c_str()});
  }

  std::string name_ = "default";
  int32_t threads_ = 1;
  double share_ = 0.5;
  bool verbose_ = false;
  int64_t bytes_ = 512 << 20;
  double grace_ = 30;
  std::string kernels_ = "fast";
  std::vector<std::string> origins_ = {"a"};
  int32_t layers_ = 30;
  OptionSet set_{"decoder"};
};

TEST_F(ConfigTest, LaterLayersWin) {
  const std::string path = Write(
      "decoder:\n  name: file\n  threads: 2\n  share: 0.25\n  kv_bytes: 1GiB\n  base:\n"
      "    layers: 12\n  origins: [x, y]\nrouter:\n  anything: goes\n");
  ASSERT_TRUE(Load({"--config", path.c_str(), "--name=flag"},
                   {"COGUMI_DECODER_THREADS=3", "COGUMI_DECODER_NAME=environment"})
                  .ok());
  EXPECT_EQ(name_, "flag");
  EXPECT_EQ(threads_, 3);
  EXPECT_EQ(share_, 0.25);
  EXPECT_EQ(bytes_, 1LL << 30);
  EXPECT_EQ(layers_, 12);
  EXPECT_EQ(grace_, 30);
  EXPECT_THAT(origins_, ElementsAre("x", "y"));
}

TEST_F(ConfigTest, EveryKindOfFlag) {
  ASSERT_TRUE(Load({"--threads", "4", "--share=1", "--verbose", "--kv-bytes", "64MiB",
                    "--grace=250ms", "--kernels", "exact", "--origins", "p,q", "--origins=r",
                    "--base.layers=7"})
                  .ok());
  EXPECT_EQ(threads_, 4);
  EXPECT_TRUE(verbose_);
  EXPECT_EQ(bytes_, 64 << 20);
  EXPECT_EQ(grace_, 0.25);
  EXPECT_EQ(kernels_, "exact");
  EXPECT_THAT(origins_, ElementsAre("p", "q", "r"));
  EXPECT_EQ(layers_, 7);
  ASSERT_TRUE(Load({"--no-verbose"}).ok());
  EXPECT_FALSE(verbose_);
}

TEST_F(ConfigTest, TheFileMayComeFromTheEnvironment) {
  const std::string variable = "COGUMI_CONFIG=" + Write("decoder: {threads: 9}\n");
  ASSERT_TRUE(Load({}, {variable.c_str()}).ok());
  EXPECT_EQ(threads_, 9);
}

TEST_F(ConfigTest, UnknownNamesAreErrorsWithASuggestion) {
  EXPECT_THAT(ErrorOf({"--thread", "4"}), HasSubstr("did you mean --threads?"));
  EXPECT_THAT(ErrorOf({}, {"COGUMI_DECODER_THREDS=4"}),
              HasSubstr("did you mean COGUMI_DECODER_THREADS?"));
  EXPECT_THAT(ErrorOfYaml("decoder:\n  kv_byte: 1GiB\n"), HasSubstr("did you mean kv_bytes?"));
  EXPECT_THAT(ErrorOfYaml("decoder:\n  kv_byte: 1GiB\n"), HasSubstr("line 2"));
  EXPECT_THAT(ErrorOfYaml("decodr: {}\n"), HasSubstr("did you mean decoder?"));
  EXPECT_THAT(ErrorOfYaml("decoder: {base: {layer: 1}}\n"), HasSubstr("base.layers"));
  // Nothing near: no suggestion.
  EXPECT_EQ(ErrorOf({"--zzzzzzzzz", "4"}).find("did you mean"), std::string::npos);
  EXPECT_THAT(ErrorOfYaml("serve: {split: true}\n"), HasSubstr("unknown section serve"));
  EXPECT_THAT(ErrorOfYaml("cli: {}\n"), HasSubstr("unknown section cli"));
  EXPECT_THAT(ErrorOf({}, {"COGUMI_GATWAY_HTTP=x"}),
              HasSubstr("did you mean COGUMI_GATEWAY_HTTP?"));
  EXPECT_THAT(ErrorOf({}, {"COGUMI_NONSENSE=x"}), HasSubstr("COGUMI_NONSENSE"));
  // Variables of other sections are theirs.
  EXPECT_TRUE(
      Load({}, {"COGUMI_GATEWAY_THREDS=4", "COGUMI_RUN_TOPK=1", "COGUMI_MODEL=x", "PATH=y"}).ok());
}

TEST_F(ConfigTest, ValuesOutsideTheirRangeAreErrors) {
  for (const char* value : {"-1", "65", "99999999999999999999", "x", "", "1.5", "nan"}) {
    EXPECT_THAT(ErrorOf({"--threads", value}), HasSubstr("threads")) << value;
    EXPECT_EQ(threads_, 1);
  }
  for (const char* value : {"-0.1", "1.1", "nan", "inf", "x"}) {
    EXPECT_THAT(ErrorOf({"--share", value}), HasSubstr("share")) << value;
  }
  for (const char* value : {"1MiX", "-1", "1KiB", "2TiB", "99999999999999999999TiB", "MiB"}) {
    EXPECT_THAT(ErrorOf({"--kv-bytes", value}), HasSubstr("kv_bytes")) << value;
  }
  for (const char* value : {"61s", "2m", "-1s", "5 parsecs", "nan"}) {
    EXPECT_THAT(ErrorOf({"--grace", value}), HasSubstr("grace")) << value;
  }
  EXPECT_THAT(ErrorOf({"--kernels", "slow"}), HasSubstr("fast | exact"));
  EXPECT_THAT(ErrorOf({"--verbose=maybe"}), HasSubstr("verbose"));
  EXPECT_THAT(ErrorOf({"--threads"}), HasSubstr("wants a value"));
  EXPECT_THAT(ErrorOf({"stray"}), HasSubstr("unexpected argument"));
}

TEST_F(ConfigTest, MalformedFilesAreErrors) {
  EXPECT_THAT(ErrorOf({"--config", "/nowhere.yaml"}), HasSubstr("/nowhere.yaml"));
  EXPECT_THAT(ErrorOfYaml("decoder: [unclosed\n"), HasSubstr("config_test.yaml"));
  EXPECT_THAT(ErrorOfYaml("- a\n- b\n"), HasSubstr("sections"));
  EXPECT_THAT(ErrorOfYaml("decoder: 5\n"), HasSubstr("keys are wanted"));
  EXPECT_THAT(ErrorOfYaml("decoder: {threads: [1, 2]}\n"), HasSubstr("plain value"));
  EXPECT_THAT(ErrorOfYaml("decoder: {origins: {a: 1}}\n"), HasSubstr("list"));
  EXPECT_THAT(ErrorOfYaml("decoder: {threads: 1, threads: 2}\n"), HasSubstr("given twice"));
  EXPECT_THAT(ErrorOfYaml("decoder: {name: " + std::string(2 << 20, 'x') + "}\n"),
              HasSubstr("larger than"));
  EXPECT_TRUE(Load({"--config", Write("").c_str()}).ok());
  EXPECT_TRUE(Load({"--config", Write("decoder:\n").c_str()}).ok());
}

TEST_F(ConfigTest, SeveralSectionsInOneProcess) {
  int32_t other = 0;
  OptionSet router("router");
  router.Int("threads", &other, 0, 64, "Threads.");
  const char* argv[] = {"program", "--decoder.threads", "5", "--router.threads=6"};
  const char* environment[] = {nullptr};
  const ConfigRequest request{"program", "Says.", {&set_, &router}, 4, argv, environment};
  ASSERT_TRUE(LoadConfig(request).ok());
  EXPECT_EQ(threads_, 5);
  EXPECT_EQ(other, 6);
}

TEST_F(ConfigTest, HelpNamesEveryOption) {
  const ConfigRequest request{"program", "Says.", {&set_}, 0, nullptr, nullptr};
  const std::string help = ConfigHelp(request);
  for (const auto& option : set_.options()) {
    EXPECT_THAT(help, HasSubstr(option.help)) << option.name;
  }
  EXPECT_THAT(help, HasSubstr("--kv-bytes"));
  EXPECT_THAT(help, HasSubstr("512MiB"));
  EXPECT_THAT(help, HasSubstr("COGUMI_DECODER_"));
}

TEST(UnitsTest, Bytes) {
  EXPECT_EQ(*ParseBytes("0"), 0);
  EXPECT_EQ(*ParseBytes("1.5GiB"), 1610612736);
  EXPECT_EQ(*ParseBytes("2GB"), 2000000000);
  EXPECT_EQ(*ParseBytes("64 kb"), 64000);
  for (const char* text : {"", "GiB", "1e3", "1XB", "--1", "1..5", "0x10"}) {
    EXPECT_FALSE(ParseBytes(text).ok()) << text;
  }
  EXPECT_EQ(FormatBytes(512 << 20), "512MiB");
  EXPECT_EQ(FormatBytes(1000), "1000");
}

TEST(UnitsTest, Durations) {
  EXPECT_EQ(*ParseDuration("30s"), 30);
  EXPECT_EQ(*ParseDuration("5m"), 300);
  EXPECT_EQ(*ParseDuration("250ms"), 0.25);
  EXPECT_EQ(*ParseDuration("1.5"), 1.5);
  for (const char* text : {"", "s", "-3s", "3 weeks", "nan"}) {
    EXPECT_FALSE(ParseDuration(text).ok()) << text;
  }
}

}  // namespace
}  // namespace cogumi::services
