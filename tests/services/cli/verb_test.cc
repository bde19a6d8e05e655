#include "services/cli/verb.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cogumi::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class SampleVerb : public Verb {
 public:
  explicit SampleVerb(bool open = false)
      : Verb("sample verb", "[A] B", "Does.", 1, 2), open_(open) {
    options_.Int("top_k", &top_k, 0, 100, "k").Bool("raw", &raw, "raw").String("name", &name, "n");
  }
  absl::StatusOr<int> Run() override { return kExitOk; }
  bool TakesUnknownFlags() const override { return open_; }
  const std::vector<std::string>& positionals() const { return positionals_; }
  const std::vector<std::string>& unknown() const { return unknown_flags_; }

  int32_t top_k = 7;
  bool raw = false;
  std::string name;

 private:
  const bool open_;
};

std::string MessageOf(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}

TEST(Verb, TakesOptionsInEveryForm) {
  SampleVerb verb;
  ASSERT_TRUE(verb.Parse({"one", "--top-k", "5", "--raw", "--name=x=y", "two"}).ok());
  EXPECT_EQ(verb.top_k, 5);
  EXPECT_TRUE(verb.raw);
  EXPECT_EQ(verb.name, "x=y");
  EXPECT_THAT(verb.positionals(), ElementsAre("one", "two"));
  EXPECT_FALSE(verb.json());
  ASSERT_TRUE(verb.Parse({"--no-raw", "--json"}).ok());
  EXPECT_FALSE(verb.raw);
  EXPECT_TRUE(verb.json());
}

TEST(Verb, TwoDashesEndTheOptions) {
  SampleVerb verb;
  ASSERT_TRUE(verb.Parse({"--", "--raw", "-1"}).ok());
  EXPECT_FALSE(verb.raw);
  EXPECT_THAT(verb.positionals(), ElementsAre("--raw", "-1"));
}

TEST(Verb, AMinusSignIsNoOption) {
  SampleVerb verb;
  ASSERT_TRUE(verb.Parse({"-1 + 2", "-"}).ok());
  EXPECT_THAT(verb.positionals(), ElementsAre("-1 + 2", "-"));
}

TEST(Verb, NamesWhatIsWrongAndWhatIsNear) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"x", "--top-j", "5"}, "--top-k"},
      {{"x", "--rwa"}, "--raw"},
      {{"x", "--top-k", "101"}, "101"},
      {{"x", "--top-k", "many"}, "many"},
      {{"x", "--top-k"}, "needs a value"},
      {{"x", "-r"}, "-r"},
      {{}, "[A] B"},
      {{"a", "b", "c"}, "'c'"},
      {{"x", "--no-name"}, "--no-name"}};
  for (const auto& [words, expected] : cases) {
    SampleVerb verb;
    const auto outcome = verb.Parse(words);
    ASSERT_FALSE(outcome.ok()) << expected;
    EXPECT_TRUE(IsUsageError(outcome.status())) << expected;
    EXPECT_THAT(MessageOf(outcome.status()), HasSubstr(expected));
  }
}

TEST(Verb, TheEnvironmentComesBeforeFlags) {
  ::setenv("COGUMI_SAMPLE_VERB_TOP_K", "50", 1);
  SampleVerb from_environment, from_flag;
  ASSERT_TRUE(from_environment.Parse({"x"}).ok());
  EXPECT_EQ(from_environment.top_k, 50);
  ASSERT_TRUE(from_flag.Parse({"x", "--top-k", "3"}).ok());
  EXPECT_EQ(from_flag.top_k, 3);
  ::setenv("COGUMI_SAMPLE_VERB_TOP_K", "bad", 1);
  SampleVerb wrong;
  EXPECT_THAT(MessageOf(wrong.Parse({"x"}).status()), HasSubstr("COGUMI_SAMPLE_VERB_TOP_K"));
  ::unsetenv("COGUMI_SAMPLE_VERB_TOP_K");
}

TEST(Verb, AnOpenVerbKeepsUnknownFlagsWithTheirValues) {
  SampleVerb verb(/*open=*/true);
  ASSERT_TRUE(verb.Parse({"x", "--gateway.http", "1:2", "--a=b", "--flag", "--raw"}).ok());
  EXPECT_THAT(verb.unknown(), ElementsAre("--gateway.http", "1:2", "--a=b", "--flag"));
  EXPECT_TRUE(verb.raw);
}

TEST(Verb, HelpShowsEveryOption) {
  const std::string help = SampleVerb().Help();
  for (const char* word : {"cogumi sample verb [A] B", "--top-k", "--raw", "--json", "--help",
                           "COGUMI_SAMPLE_VERB_"}) {
    EXPECT_THAT(help, HasSubstr(word));
  }
}

TEST(Verb, AdviceTravelsWithTheError) {
  const absl::Status status = WithAdvice(absl::NotFoundError("gone"), "look elsewhere");
  EXPECT_EQ(AdviceOf(status), "look elsewhere");
  EXPECT_FALSE(IsUsageError(status));
  EXPECT_TRUE(WithAdvice(absl::OkStatus(), "x").ok());
}

TEST(Verb, VariablesThatNobodyReadsAreErrors) {
  const struct {
    const char* name;
    const char* suggestion;
  } kCases[] = {{"COGUMI_SAMPLE_VERB_TOPK", "COGUMI_SAMPLE_VERB_TOP_K"},
                {"COGUMI_GATWAY_HTTP", "COGUMI_GATEWAY_HTTP"},
                {"COGUMI_MODLE", "COGUMI_MODEL"},
                {"COGUMI_RNU_MAX_TOKENS", "COGUMI_RUN_MAX_TOKENS"}};
  for (const auto& test : kCases) {
    ::setenv(test.name, "1", 1);
    const auto outcome = SampleVerb().Parse({"x"});
    ::unsetenv(test.name);
    EXPECT_TRUE(IsUsageError(outcome.status())) << test.name;
    EXPECT_THAT(MessageOf(outcome.status()), HasSubstr(test.suggestion));
  }
  // Those of other verbs and services are theirs to check.
  ::setenv("COGUMI_CHAT_TOPK", "1", 1);
  ::setenv("COGUMI_GATEWAY_HTPT", "1", 1);
  EXPECT_TRUE(SampleVerb().Parse({"x"}).ok());
  ::unsetenv("COGUMI_CHAT_TOPK");
  ::unsetenv("COGUMI_GATEWAY_HTPT");
}

}  // namespace
}  // namespace cogumi::cli
