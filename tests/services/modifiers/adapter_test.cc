// What makes an adapter acceptable: JSON, safetensors, PEFT options, card, shapes.
#include "services/modifiers/adapter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <limits>
#include <string>

#include "engine/core/sha256.h"
#include "engine/io/json.h"
#include "engine/io/peft_config.h"
#include "engine/io/safetensors.h"
#include "tests/services/modifiers/adapter_maker.h"

namespace cogumi::services {
namespace {

using test::AdapterParts;
using test::MakeSafetensors;
using test::RightParts;
using test::TemporaryFolder;
using test::TinyBase;
using test::WithHeader;
using test::WriteAdapter;
using test::WriteFile;
using testing::ElementsAre;
using testing::HasSubstr;

std::string MessageOf(const absl::Status& status) { return std::string(status.message()); }

// --- JSON ----------------------------------------------------------------------------------------

TEST(JsonTest, ReadsValues) {
  const auto root = ParseJson(R"({"a": [1, -2, 2.5, "x", true, null], "b": {}})", {});
  ASSERT_TRUE(root.ok());
  const Json::Array& items = *root->Find("a")->array();
  EXPECT_EQ(*items[0].integer(), 1);
  EXPECT_EQ(*items[1].integer(), -2);
  double number = 0;
  EXPECT_TRUE(items[2].number(&number));
  EXPECT_EQ(number, 2.5);
  EXPECT_EQ(*items[3].string(), "x");
  EXPECT_TRUE(*items[4].boolean());
  EXPECT_TRUE(items[5].is_null());
  EXPECT_TRUE(root->Find("b")->object()->empty());
  EXPECT_EQ(root->Find("c"), nullptr);
}

TEST(JsonTest, RefusesWhatIsMalformedOrTooMuch) {
  for (const char* text : {"", "{", "{\"a\":}", "[1,]", "nul", "{\"a\":1}{", "\"\xFF\"", "01"}) {
    EXPECT_FALSE(ParseJson(text, {}).ok()) << text;
  }
  EXPECT_THAT(MessageOf(ParseJson(R"({"a":1,"a":2})", {}).status()), HasSubstr("twice"));
  EXPECT_FALSE(ParseJson(std::string(17, '[') + std::string(17, ']'), {}).ok());
  EXPECT_TRUE(ParseJson(std::string(16, '[') + std::string(16, ']'), {}).ok());
  EXPECT_FALSE(ParseJson(std::string(60000, '['), {}).ok());
  JsonLimits limits;
  limits.max_values = 10;
  EXPECT_FALSE(ParseJson("[1,2,3,4,5,6,7,8,9,10]", limits).ok());
  EXPECT_TRUE(ParseJson("[1,2,3,4,5,6,7,8,9]", limits).ok());
  EXPECT_FALSE(ParseJson(std::string(65537, ' '), {}).ok());
  // Beyond int64: a number, but no whole one.
  EXPECT_EQ(ParseJson("18446744073709551615", {})->integer(), nullptr);
}

// --- safetensors ---------------------------------------------------------------------------------

absl::Status ParseFile(const std::string& file) {
  const auto length = SafetensorsHeaderLength(file.substr(0, 8), file.size());
  if (!length.ok()) return length.status();
  return ParseSafetensorsHeader(std::string_view(file).substr(8, *length), file.size()).status();
}

TEST(SafetensorsTest, ReadsARightFile) {
  const std::string file = MakeSafetensors({{"a", {2, 3}}, {"b", {4}}}, 1);
  const auto length = SafetensorsHeaderLength(file.substr(0, 8), file.size());
  ASSERT_TRUE(length.ok());
  const auto header =
      ParseSafetensorsHeader(std::string_view(file).substr(8, *length), file.size());
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->tensors.size(), 2u);
  EXPECT_EQ(header->tensors[0].name, "a");
  EXPECT_THAT(header->tensors[0].shape, ElementsAre(2, 3));
  EXPECT_EQ(header->tensors[1].end, file.size());
}

TEST(SafetensorsTest, EveryTruncationIsRefused) {
  const std::string file = MakeSafetensors({{"a", {2, 3}}, {"b", {4}}}, 1);
  ASSERT_TRUE(ParseFile(file).ok());
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_FALSE(ParseFile(file.substr(0, size)).ok()) << size;
  }
  EXPECT_THAT(MessageOf(ParseFile(file + "x")), HasSubstr("behind the last tensor"));
}

TEST(SafetensorsTest, RefusesWhatLies) {
  const auto entry = [](const std::string& dtype, const std::string& shape,
                        const std::string& offsets) {
    return "{\"t\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" +
           offsets + "}}";
  };
  EXPECT_TRUE(ParseFile(WithHeader(entry("F32", "[2]", "[0,8]"), 8)).ok());
  EXPECT_TRUE(ParseFile(WithHeader(entry("F16", "[4]", "[0,8]"), 8)).ok());
  EXPECT_TRUE(ParseFile(WithHeader(entry("BF16", "[4]", "[0,8]"), 8)).ok());
  const std::pair<std::string, const char*> cases[] = {
      {entry("I8", "[8]", "[0,8]"), "dtype"},
      {entry("F64", "[1]", "[0,8]"), "dtype"},
      {entry("F32", "[3]", "[0,8]"), "8 bytes for 3"},
      {entry("F32", "[0]", "[0,0]"), "dimension 0"},
      {entry("F32", "[-2]", "[0,8]"), "dimension -2"},
      {entry("F32", "[2.5]", "[0,8]"), "dimension 2.5"},
      {entry("F32", "[4294967296,4294967296]", "[0,8]"), "too large"},
      {entry("F32", "[9223372036854775807,2]", "[0,8]"), "too large"},
      {entry("F32", "[1,1,1,1,2]", "[0,8]"), "dimensions"},
      {entry("F32", "[2]", "[8,0]"), "data_offsets"},
      {entry("F32", "[2]", "[0,16]"), "data_offsets"},
      {entry("F32", "[2]", "[-8,0]"), "data_offsets"},
      {entry("F32", "[2]", "[0]"), "data_offsets"},
      {entry("F32", "2", "[0,8]"), "shape"},
      {entry("F32", "[2]", "[18446744073709551608,18446744073709551615]"), "data_offsets"},
      {"{\"t\":5}", "no object"},
      {"{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}}", "unknown key"},
      {"[]", "no object"},
      {"{}", "behind the last tensor"},
  };
  for (const auto& [header, why] : cases) {
    EXPECT_THAT(MessageOf(ParseFile(WithHeader(header, 8))), HasSubstr(why)) << header;
  }
  const std::string two = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                          "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[";
  EXPECT_THAT(MessageOf(ParseFile(WithHeader(two + "4,12]}}", 12))), HasSubstr("overlap"));
  EXPECT_THAT(MessageOf(ParseFile(WithHeader(two + "12,20]}}", 20))), HasSubstr("gap"));
  EXPECT_TRUE(ParseFile(WithHeader(two + "8,16]}}", 16)).ok());
}

TEST(SafetensorsTest, HeaderLengthIsCapped) {
  std::string length(8, '\0');
  EXPECT_FALSE(SafetensorsHeaderLength(length, 100).ok());
  length.assign(8, '\xFF');
  EXPECT_FALSE(SafetensorsHeaderLength(length, std::numeric_limits<uint64_t>::max()).ok());
  EXPECT_FALSE(SafetensorsHeaderLength("1234567", 7).ok());
  std::string many = "{";
  for (size_t i = 0; i <= kMaxTensors; ++i) {
    many += (i > 0 ? ",\"" : "\"") + std::to_string(i) +
            "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[" + std::to_string(4 * i) + "," +
            std::to_string(4 * i + 4) + "]}";
  }
  EXPECT_FALSE(ParseFile(WithHeader(many + "}", 4 * (kMaxTensors + 1))).ok());
}

// --- PEFT options --------------------------------------------------------------------------------

std::string ConfigWith(const std::string& more) {
  return R"({"peft_type":"LORA","task_type":"CAUSAL_LM","r":8,"lora_alpha":16,)"
         R"("target_modules":["v_proj","q_proj"])" +
         (more.empty() ? "" : "," + more) + "}";
}

TEST(PeftConfigTest, ReadsWhatItNeeds) {
  const auto config = ParsePeftConfig(ConfigWith(R"("base_model_name_or_path":"m")"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rank, 8);
  EXPECT_EQ(config->alpha, 16);
  EXPECT_EQ(config->base_model, "m");
  EXPECT_THAT(config->target_modules, ElementsAre("q_proj", "v_proj"));
}

TEST(PeftConfigTest, NeutralAndTrainingOptionsPass) {
  for (const char* option :
       {R"("lora_dropout":0.1)", R"("inference_mode":false)", R"("bias":"none")",
        R"("use_dora":false)", R"("use_rslora":false)", R"("modules_to_save":null)",
        R"("modules_to_save":[])", R"("rank_pattern":{})", R"("alpha_pattern":null)",
        R"("init_lora_weights":true)", R"("init_lora_weights":"gaussian")", R"("revision":null)",
        R"("layers_to_transform":null)", R"("fan_in_fan_out":false)", R"("loftq_config":{})",
        R"("megatron_core":"megatron.core")", R"("peft_version":"0.18")"}) {
    EXPECT_TRUE(ParsePeftConfig(ConfigWith(option)).ok()) << option;
  }
}

TEST(PeftConfigTest, OptionsThatChangeTheArithmeticAreRefusedByName) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("use_dora":true)", "use_dora"},
      {R"("use_rslora":true)", "use_rslora"},
      {R"("use_qalora":true)", "use_qalora"},
      {R"("modules_to_save":["lm_head"])", "modules_to_save"},
      {R"("rank_pattern":{"q_proj":4})", "rank_pattern"},
      {R"("alpha_pattern":{"q_proj":4})", "alpha_pattern"},
      {R"("bias":"all")", "bias"},
      {R"("bias":"lora_only")", "bias"},
      {R"("lora_bias":true)", "lora_bias"},
      {R"("fan_in_fan_out":true)", "fan_in_fan_out"},
      {R"("layers_to_transform":[0])", "layers_to_transform"},
      {R"("layer_replication":[[0,2]])", "layer_replication"},
      {R"("trainable_token_indices":[1])", "trainable_token_indices"},
      {R"("target_parameters":["x"])", "target_parameters"},
      {R"("exclude_modules":["q_proj"])", "exclude_modules"},
      {R"("init_lora_weights":"pissa")", "init_lora_weights"},
      {R"("init_lora_weights":"loftq")", "init_lora_weights"},
      {R"("megatron_config":{"a":1})", "megatron_config"},
      {R"("use_doraa":false)", "did you mean use_dora?"},
      {R"("something_new":1)", "something_new"},
  };
  for (const auto& [option, why] : cases) {
    const auto config = ParsePeftConfig(ConfigWith(option));
    EXPECT_THAT(MessageOf(config.status()), HasSubstr(why)) << option;
  }
}

TEST(PeftConfigTest, ValuesOutsideTheirRangeAreRefused) {
  const auto with = [](const std::string& rank, const std::string& alpha,
                       const std::string& targets, const std::string& type = "\"LORA\"",
                       const std::string& task = "\"CAUSAL_LM\"") {
    return ParsePeftConfig("{\"peft_type\":" + type + ",\"task_type\":" + task + ",\"r\":" + rank +
                           ",\"lora_alpha\":" + alpha + ",\"target_modules\":" + targets + "}")
        .status();
  };
  EXPECT_TRUE(with("1", "0.5", "[\"q_proj\"]").ok());
  EXPECT_TRUE(with("64", "4096", "\"all-linear\"").ok());
  EXPECT_TRUE(with("8", "16", "[\"q_proj\"]", "\"LORA\"", "null").ok());
  for (const char* rank : {"0", "-1", "65", "8.5", "\"8\"", "null", "9223372036854775807"}) {
    EXPECT_THAT(MessageOf(with(rank, "16", "[\"q_proj\"]")), HasSubstr(": r: ")) << rank;
  }
  for (const char* alpha : {"0", "-1", "4097", "\"16\"", "null", "1e999"}) {
    EXPECT_FALSE(with("8", alpha, "[\"q_proj\"]").ok()) << alpha;
  }
  for (const char* targets : {"[]", "null", "\"q.*\"", "[\"lm_head\"]", "[\"embed_tokens\"]", "[1]",
                              "[\"q_proj\",\"q_proj\"]"}) {
    EXPECT_THAT(MessageOf(with("8", "16", targets)), HasSubstr("target_modules")) << targets;
  }
  EXPECT_THAT(MessageOf(with("8", "16", "[\"q_proj\"]", "\"IA3\"")), HasSubstr("peft_type"));
  EXPECT_THAT(MessageOf(with("8", "16", "[\"q_proj\"]", "\"LORA\"", "\"SEQ_CLS\"")),
              HasSubstr("task_type"));
}

// --- whole folders -------------------------------------------------------------------------------

class InspectTest : public testing::Test {
 protected:
  std::string ErrorOf(const AdapterParts& parts) {
    WriteAdapter(folder_.path(), parts);
    const auto adapter = InspectAdapter(folder_.path(), base_);
    EXPECT_FALSE(adapter.ok());
    return MessageOf(adapter.status());
  }

  const BaseModel base_ = TinyBase();
  const AdapterParts right_ = RightParts(base_);
  TemporaryFolder folder_;
};

TEST_F(InspectTest, DescribesARightAdapter) {
  WriteAdapter(folder_.path(), right_);
  const auto adapter = InspectAdapter(folder_.path(), base_);
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  EXPECT_EQ(adapter->domain(), "code");
  EXPECT_EQ(adapter->rank(), 2);
  EXPECT_EQ(adapter->alpha(), 4);
  EXPECT_THAT(adapter->target_modules(), ElementsAre("q_proj", "down_proj"));
  EXPECT_EQ(adapter->base_model(), base_.digest);
  EXPECT_EQ(adapter->parameters(), 2 * (2 * 8 + 8 * 2 + 2 * 12 + 8 * 2));
  EXPECT_EQ(adapter->license(), "Apache-2.0");
  ASSERT_EQ(adapter->files_size(), 3);
  for (const auto& file : adapter->files()) {
    const std::string content = test::ReadFile(folder_ / file.name());
    EXPECT_EQ(file.bytes(), static_cast<int64_t>(content.size()));
    EXPECT_EQ(file.digest(), Sha256::Hex(content));
  }
  EXPECT_TRUE(IsValidDigest(adapter->digest()));
  // One changed bit is another version.
  AdapterParts other = right_;
  other.value = 0.25f;
  WriteAdapter(folder_.path(), other);
  EXPECT_NE(InspectAdapter(folder_.path(), base_)->digest(), adapter->digest());
}

TEST_F(InspectTest, TensorsMustBeThoseOfTheConfiguration) {
  AdapterParts parts = right_;
  parts.tensors[0].second = {3, 8};
  EXPECT_THAT(ErrorOf(parts), HasSubstr("has shape [3, 8], the base wants [2, 8]"));
  parts = right_;
  parts.tensors[1].second = {2, 8};
  EXPECT_THAT(ErrorOf(parts), HasSubstr("the base wants [8, 2]"));
  parts = right_;
  parts.tensors.pop_back();
  EXPECT_THAT(ErrorOf(parts), HasSubstr("layers.1.mlp.down_proj.lora_B.weight is missing"));
  parts = right_;
  parts.tensors.push_back({"base_model.model.lm_head.lora_A.weight", {2, 8}});
  EXPECT_THAT(ErrorOf(parts), HasSubstr("belongs to no target module"));
  parts = right_;
  parts.tensors[0].first = "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight";
  EXPECT_THAT(ErrorOf(parts), HasSubstr("belongs to no target module"));
  parts = right_;
  parts.value = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(ErrorOf(parts), HasSubstr("not finite"));
  parts.value = std::numeric_limits<float>::infinity();
  EXPECT_THAT(ErrorOf(parts), HasSubstr("not finite"));
}

TEST_F(InspectTest, TheCardIsChecked) {
  AdapterParts parts = right_;
  parts.card = R"({"domain":"code","license":"MIT","base_digest":")" + std::string(64, 'e') + "\"}";
  WriteAdapter(folder_.path(), parts);
  EXPECT_TRUE(absl::IsFailedPrecondition(InspectAdapter(folder_.path(), base_).status()));
  const std::pair<std::string, const char*> cases[] = {
      {R"({"domain":"cooking","license":"MIT","base_digest":"BASE"})", "domain"},
      {R"({"license":"MIT","base_digest":"BASE"})", "domain"},
      {R"({"domain":"code","license":"","base_digest":"BASE"})", "license"},
      {R"({"domain":"code","base_digest":"BASE"})", "license"},
      {R"({"domain":"code","license":"MIT"})", "base_digest"},
      {R"({"domain":"code","license":"MIT","base_digest":"../../etc/passwd"})", "base_digest"},
      {R"({"domain":"code","license":5,"base_digest":"BASE"})", "license"},
      {R"({"domain":"code","licence":"MIT","base_digest":"BASE"})", "did you mean license?"},
      {"[]", "card.json"},
      {"", "card.json"},
  };
  for (auto [card, why] : cases) {
    const size_t at = card.find("BASE");
    if (at != std::string::npos) card.replace(at, 4, base_.digest);
    parts.card = card;
    EXPECT_THAT(ErrorOf(parts), HasSubstr(why)) << card;
  }
}

TEST_F(InspectTest, FilesMustBePlainAndBounded) {
  WriteAdapter(folder_.path(), right_);
  std::filesystem::remove(folder_ / kCardFile);
  EXPECT_TRUE(absl::IsNotFound(InspectAdapter(folder_.path(), base_).status()));
  std::filesystem::create_symlink("/etc/hostname", folder_ / kCardFile);
  EXPECT_THAT(MessageOf(InspectAdapter(folder_.path(), base_).status()),
              HasSubstr("symbolic link"));
  std::filesystem::remove(folder_ / kCardFile);
  std::filesystem::create_directory(folder_ / kCardFile);
  EXPECT_FALSE(InspectAdapter(folder_.path(), base_).ok());
  std::filesystem::remove(folder_ / kCardFile);
  WriteFile(folder_ / kCardFile, std::string(kMaxJsonBytes + 1, ' '));
  EXPECT_THAT(MessageOf(InspectAdapter(folder_.path(), base_).status()), HasSubstr("at most"));
}

TEST(NamesTest, AreStrict) {
  for (const char* name : {"a", "0", "code-v1.2_x", "a..b"}) {
    EXPECT_TRUE(IsValidAdapterName(name)) << name;
  }
  for (const std::string& name :
       {std::string(), std::string("."), std::string(".."), std::string("-a"), std::string("A"),
        std::string("a/b"), std::string("../x"), std::string(65, 'a'), std::string("a b"),
        std::string("a\0b", 3)}) {
    EXPECT_FALSE(IsValidAdapterName(name)) << name;
  }
  EXPECT_TRUE(IsValidDigest(std::string(64, 'f')));
  EXPECT_FALSE(IsValidDigest(std::string(64, 'F')));
  EXPECT_FALSE(IsValidDigest(std::string(63, 'f')));
  EXPECT_FALSE(IsValidDigest("../" + std::string(61, 'f')));
}

}  // namespace
}  // namespace cogumi::services
