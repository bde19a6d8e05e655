#include "engine/decode/validate_sampling.h"

#include <functional>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cogumi {
namespace {

constexpr int32_t kVocabulary = 1000;
constexpr int32_t kContext = 256;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int32_t kIntMin = std::numeric_limits<int32_t>::min();
constexpr int32_t kIntMax = std::numeric_limits<int32_t>::max();

struct Field {
  std::string name;
  std::function<void(SamplingParams&, double)> set;
  std::vector<double> good;
  std::vector<double> bad;
};

template <typename T>
std::function<void(SamplingParams&, double)> To(T SamplingParams::*member) {
  return [member](SamplingParams& params, double value) { params.*member = static_cast<T>(value); };
}

std::vector<Field> Fields() {
  const double nan = static_cast<double>(kNan);
  const double inf = static_cast<double>(kInf);
  const double huge = 3e38;
  return {
      {"temperature", To(&SamplingParams::temperature), {0, 1e-30, 2},
       {-1e-6, 2.00001, nan, inf, -inf, huge}},
      {"top_k", To(&SamplingParams::top_k), {0, 1, kVocabulary},
       {-1, kVocabulary + 1, kIntMin, kIntMax}},
      {"top_p", To(&SamplingParams::top_p), {1e-9, 1}, {0, -1e-6, 1.00001, nan, inf, -inf, huge}},
      {"min_p", To(&SamplingParams::min_p), {0, 0.999}, {-1e-6, 1, nan, inf, -inf, huge}},
      {"presence_penalty", To(&SamplingParams::presence_penalty), {-2, 2},
       {-2.00001, 2.00001, nan, inf, -inf, huge}},
      {"frequency_penalty", To(&SamplingParams::frequency_penalty), {-2, 2},
       {-2.00001, 2.00001, nan, inf, -inf, huge}},
      {"repetition_penalty", To(&SamplingParams::repetition_penalty), {1e-30, 10},
       {0, -1, 10.0001, nan, inf, -inf, huge}},
      {"max_tokens", [](SamplingParams& p, double v) { p.max_tokens = static_cast<int32_t>(v); },
       {1, kContext}, {0, -1, kContext + 1, kIntMin, kIntMax}},
      {"top_logprobs",
       [](SamplingParams& p, double v) {
         p.logprobs = true;
         p.top_logprobs = static_cast<int32_t>(v);
       },
       {0, 20}, {-1, 21, kIntMin, kIntMax}},
      {"logit_bias[7]",
       [](SamplingParams& p, double v) { p.logit_bias = {{7, static_cast<float>(v)}}; },
       {-100, 100}, {-100.001, 100.001, nan, inf, -inf, huge}},
      {"stop_token_ids[0]",
       [](SamplingParams& p, double v) { p.stop_token_ids = {static_cast<TokenId>(v)}; },
       {0, kVocabulary - 1}, {-1, kVocabulary, kIntMin, kIntMax}},
  };
}

TEST(ValidateSampling, DefaultsPass) {
  EXPECT_TRUE(ValidateSampling({}, kVocabulary, kContext).ok());
}

TEST(ValidateSampling, NamesEachFieldOutsideOfItsRange) {
  for (const Field& field : Fields()) {
    for (const double value : field.good) {
      SamplingParams params;
      field.set(params, value);
      EXPECT_TRUE(ValidateSampling(params, kVocabulary, kContext).ok()) << field.name << value;
    }
    for (const double value : field.bad) {
      SamplingParams params;
      field.set(params, value);
      const absl::Status status = ValidateSampling(params, kVocabulary, kContext);
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field.name << value;
      EXPECT_THAT(std::string(status.message().data(), status.message().size()),
                  testing::StartsWith(field.name + ": "));
    }
  }
}

TEST(ValidateSampling, TheMessageTellsValueAndRange) {
  SamplingParams params;
  params.top_k = 1001;
  EXPECT_EQ(ValidateSampling(params, kVocabulary, kContext).message(),
            "top_k: 1001 is outside [0, 1000]");
}

TEST(ValidateSampling, BiasedIdsAreInTheVocabulary) {
  for (const TokenId id : {-1, kVocabulary, kIntMin, kIntMax}) {
    SamplingParams params;
    params.logit_bias = {{id, 1.0f}};
    EXPECT_EQ(ValidateSampling(params, kVocabulary, kContext).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(ValidateSampling, CountsOfListsAreBounded) {
  SamplingParams params;
  params.logit_bias.assign(kVocabulary + 1, {1, 1.0f});
  EXPECT_FALSE(ValidateSampling(params, kVocabulary, kContext).ok());
  params = {};
  params.stop_token_ids.assign(kVocabulary + 1, 1);
  EXPECT_FALSE(ValidateSampling(params, kVocabulary, kContext).ok());
}

TEST(ValidateSampling, StopStrings) {
  SamplingParams params;
  params.stop.assign(16, std::string(256, 'x'));
  EXPECT_TRUE(ValidateSampling(params, kVocabulary, kContext).ok());
  for (const std::string& bad : {std::string(), std::string(257, 'x'), std::string("\xC3")}) {
    params.stop = {"fine", bad};
    const absl::Status status = ValidateSampling(params, kVocabulary, kContext);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message().data(), status.message().size()),
                testing::StartsWith("stop[1]: "));
  }
  params.stop.assign(17, "x");
  EXPECT_FALSE(ValidateSampling(params, kVocabulary, kContext).ok());
}

TEST(ValidateSampling, AlternativesNeedLogprobs) {
  SamplingParams params;
  params.top_logprobs = 3;
  EXPECT_FALSE(ValidateSampling(params, kVocabulary, kContext).ok());
}

}  // namespace
}  // namespace cogumi
