#include <nlohmann/json.hpp>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/common/status.h"
#include "services/common/text.h"
#include "services/gateway/json_text.h"
#include "services/gateway/model_catalogue.h"
#include "services/gateway/openai_request.h"
#include "services/gateway/openai_response.h"
#include "services/gateway/validate.h"

namespace cogumi::gateway {
namespace {

namespace v1 = cogumi::v1;
using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::string Chat(const std::string& fields) {
  return R"({"messages":[{"role":"user","content":"hi"}])" + (fields.empty() ? "" : "," + fields) +
         "}";
}

TEST(OpenAiRequestTest, EveryFieldArrives) {
  const auto request = ParseOpenAiChat(R"({
    "model": "m", "stream": true, "stream_options": {"include_usage": true}, "n": 3,
    "messages": [
      {"role": "developer", "content": "be brief"},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
      {"role": "assistant", "content": "c", "refusal": null},
      {"role": "user", "content": "\u00e4\ud83d\ude00"}],
    "temperature": 0, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "presence_penalty": -1,
    "frequency_penalty": 1.5, "repetition_penalty": 1.2, "seed": -1, "stop": ["x", "y"],
    "logit_bias": {"5": -100, "6": 1.5}, "max_completion_tokens": 9, "logprobs": true,
    "top_logprobs": 4, "ignore_eos": true, "user": "me",
    "response_format": {"type": "text"}, "tools": null})");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_TRUE(request->chat && request->stream && request->include_usage && request->logprobs);
  EXPECT_EQ(request->n, 3);
  const v1::ChatRequest& chat = request->chat_request;
  EXPECT_EQ(chat.model(), "m");
  ASSERT_EQ(chat.messages_size(), 4);
  EXPECT_EQ(chat.messages(0).role(), v1::ROLE_SYSTEM);
  EXPECT_EQ(chat.messages(1).content(), "ab");
  EXPECT_EQ(chat.messages(2).role(), v1::ROLE_ASSISTANT);
  EXPECT_EQ(chat.messages(3).content(), "\xC3\xA4\xF0\x9F\x98\x80");
  const v1::SamplingParams& s = chat.sampling();
  EXPECT_EQ(s.temperature(), 0);
  EXPECT_EQ(s.top_p(), 0.5f);
  EXPECT_EQ(s.top_k(), 7);
  EXPECT_EQ(s.min_p(), 0.1f);
  EXPECT_EQ(s.presence_penalty(), -1);
  EXPECT_EQ(s.frequency_penalty(), 1.5f);
  EXPECT_EQ(s.repetition_penalty(), 1.2f);
  EXPECT_EQ(s.seed(), 0xffffffffffffffffu);
  EXPECT_THAT(std::vector<std::string>(s.stop().begin(), s.stop().end()), ElementsAre("x", "y"));
  EXPECT_EQ(s.logit_bias().at(5), -100);
  EXPECT_EQ(s.logit_bias().at(6), 1.5f);
  EXPECT_EQ(s.max_tokens(), 9);
  EXPECT_EQ(s.top_logprobs(), 4);
  EXPECT_TRUE(s.ignore_eos());
}

TEST(OpenAiRequestTest, DefaultsAreOpenAis) {
  auto request = ParseOpenAiChat(Chat(""));
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->chat_request.sampling().temperature(), 1.0f);
  EXPECT_FALSE(request->chat_request.sampling().has_max_tokens());
  EXPECT_FALSE(request->stream);
  EXPECT_EQ(request->n, 1);
  request = ParseOpenAiCompletion(R"({"prompt":"x"})");
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->prompts[0].sampling().temperature(), 1.0f);
  EXPECT_EQ(request->prompts[0].sampling().max_tokens(), 16);
  EXPECT_FALSE(request->prompts[0].sampling().logprobs());
}

TEST(OpenAiRequestTest, PromptsInAllTheirForms) {
  auto request = ParseOpenAiCompletion(R"({"prompt":"x","logprobs":0,"echo":false,"best_of":1})");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->prompts[0].text(), "x");
  EXPECT_TRUE(request->logprobs && request->prompts[0].sampling().logprobs());
  request = ParseOpenAiCompletion(R"({"prompt":["x","y"],"model":"m"})");
  ASSERT_EQ(request->prompts.size(), 2u);
  EXPECT_EQ(request->prompts[1].text(), "y");
  EXPECT_EQ(request->prompts[1].model(), "m");
  request = ParseOpenAiCompletion(R"({"prompt":[1,2,3]})");
  ASSERT_EQ(request->prompts.size(), 1u);
  EXPECT_EQ(request->prompts[0].tokens().ids_size(), 3);
  request = ParseOpenAiCompletion(R"({"prompt":[[1],[2,3]]})");
  ASSERT_EQ(request->prompts.size(), 2u);
  EXPECT_EQ(request->prompts[1].tokens().ids(1), 3);
}

struct Refused {
  std::string body;
  std::string field;
  std::string reason;
};

void ExpectRefused(const Refused& test, bool chat) {
  const auto request = chat ? ParseOpenAiChat(test.body) : ParseOpenAiCompletion(test.body);
  ASSERT_FALSE(request.ok()) << test.body;
  EXPECT_EQ(services::FieldOf(request.status()), test.field) << test.body;
  EXPECT_EQ(services::ReasonOf(request.status()), test.reason) << test.body;
  EXPECT_EQ(HttpStatusOf(request.status()), 400) << test.body;
}

TEST(OpenAiRequestTest, WhatIsNotSupportedIsNamed) {
  for (const char* field :
       {"tools", "tool_choice", "functions", "function_call", "audio", "modalities", "prediction",
        "response_format", "parallel_tool_calls", "service_tier", "store", "metadata",
        "reasoning_effort", "web_search_options", "grammar"}) {
    ExpectRefused({Chat('"' + std::string(field) + R"(":{"type":"json_object"})"), field,
                   "UNSUPPORTED_PARAMETER"},
                  true);
  }
  for (const char* field : {"suffix", "best_of", "echo"}) {
    ExpectRefused(
        {R"({"prompt":"x",")" + std::string(field) + R"(":5})", field, "UNSUPPORTED_PARAMETER"},
        false);
  }
  ExpectRefused({R"({"messages":[{"role":"tool","content":"x"}]})", "messages[0].role",
                 "UNSUPPORTED_PARAMETER"},
                true);
  ExpectRefused({R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})",
                 "messages[0].content[0].type", "UNSUPPORTED_PARAMETER"},
                true);
  ExpectRefused({R"({"messages":[{"role":"user","content":"x","name":"bob"}]})", "messages[0].name",
                 "UNSUPPORTED_PARAMETER"},
                true);
}

TEST(OpenAiRequestTest, WhatIsNotKnownIsNamed) {
  for (const char* field : {"temprature", "max_token", "messages2", ""}) {
    for (const char* value : {"1", "null"}) {
      const std::string pair = '"' + std::string(field) + "\":" + value;
      ExpectRefused({Chat(pair), field, "UNKNOWN_PARAMETER"}, true);
      ExpectRefused({R"({"prompt":"x",)" + pair + "}", field, "UNKNOWN_PARAMETER"}, false);
    }
  }
  ExpectRefused(
      {Chat(R"("stream":true,"stream_options":{"x":1})"), "stream_options.x", "UNKNOWN_PARAMETER"},
      true);
  ExpectRefused({R"({"messages":[{"role":"user","content":"x","mood":1}]})", "messages[0].mood",
                 "UNKNOWN_PARAMETER"},
                true);
  // The other interface's fields are not this one's.
  ExpectRefused({Chat(R"("prompt":"x")"), "prompt", "UNKNOWN_PARAMETER"}, true);
  ExpectRefused(
      {R"({"prompt":"x","max_completion_tokens":1})", "max_completion_tokens", "UNKNOWN_PARAMETER"},
      false);
}

TEST(OpenAiRequestTest, WrongTypesAreNamed) {
  const struct {
    const char* field;
    std::vector<std::string> values;
  } kCases[] = {
      {"model", {"5", "[]"}},
      {"stream", {"1", "\"yes\""}},
      {"n", {"1.5", "\"1\"", "99999999999", "-99999999999", "18446744073709551615"}},
      {"temperature", {"\"warm\"", "true", "[]", "1e300"}},
      {"top_p", {"\"x\"", "{}"}},
      {"top_k", {"0.5", "3000000000"}},
      {"seed", {"1.5", "\"x\"", "1e20"}},
      {"stop", {"5", "[5]", "{}"}},
      {"logit_bias", {"[]", "{\"x\":1}", "{\"5\":\"x\"}", "{\"99999999999\":1}"}},
      {"max_tokens", {"1.5", "\"9\"", "2147483648"}},
      {"logprobs", {"1", "\"true\""}},
      {"top_logprobs", {"1.5"}},
      {"ignore_eos", {"1", "\"true\""}},
      {"user", {"5"}},
      {"messages", {"5", "{}", "\"x\""}},
      {"stream_options", {"5"}},
  };
  for (const auto& test : kCases) {
    for (const std::string& value : test.values) {
      const std::string pair = '"' + std::string(test.field) + "\":" + value;
      // A repeated key counts by its last value.
      const auto request = ParseOpenAiChat(Chat(pair));
      ASSERT_FALSE(request.ok()) << pair;
      EXPECT_THAT(services::FieldOf(request.status()), ::testing::StartsWith(test.field)) << pair;
      EXPECT_EQ(HttpStatusOf(request.status()), 400) << pair;
    }
  }
  for (const char* body :
       {R"({"prompt":5})", R"({"prompt":[]})", R"({"prompt":[1,"x"]})", R"({"prompt":[{}]})",
        R"({"prompt":[[1.5]]})", R"({"prompt":[3000000000]})", R"({"model":"m"})"}) {
    const auto request = ParseOpenAiCompletion(body);
    ASSERT_FALSE(request.ok()) << body;
    EXPECT_EQ(services::FieldOf(request.status()), "prompt") << body;
  }
}

TEST(OpenAiRequestTest, MessagesNeedRoleAndContent) {
  for (const char* message :
       {R"({"content":"x"})", R"({"role":"user"})", R"({"role":"wizard","content":"x"})",
        R"({"role":"user","content":null})", R"({"role":"user","content":5})", "5",
        R"({"role":"user","content":[5]})", R"({"role":"user","content":[{"type":"text"}]})",
        R"({"role":"user","content":[{"text":"x"}]})"}) {
    const auto request = ParseOpenAiChat("{\"messages\":[" + std::string(message) + "]}");
    ASSERT_FALSE(request.ok()) << message;
    EXPECT_THAT(services::FieldOf(request.status()), ::testing::StartsWith("messages[0]"));
  }
  EXPECT_EQ(services::FieldOf(ParseOpenAiChat("{}").status()), "messages");
}

TEST(OpenAiRequestTest, TwoLimitsMustAgree) {
  EXPECT_TRUE(ParseOpenAiChat(Chat(R"("max_tokens":5,"max_completion_tokens":5)")).ok());
  EXPECT_FALSE(ParseOpenAiChat(Chat(R"("max_tokens":5,"max_completion_tokens":6)")).ok());
  EXPECT_EQ(services::FieldOf(ParseOpenAiChat(Chat(R"("stream_options":{})")).status()),
            "stream_options");
}

TEST(OpenAiRequestTest, WhatIsNoJsonIsRefusedWithoutRepeatingIt) {
  for (const std::string& body :
       {std::string(), std::string("{"), std::string("[]"), std::string("null"),
        std::string("{\"secret\""), std::string("\xff\xfe"), std::string("{\"messages\":1e999}"),
        std::string("{\"a\":\"\xC0\x80 secret\"}"), std::string("{\"a\":\"\\ud800\"}"),
        std::string("{} {}"), std::string(1, '\0'), std::string(100000, '[')}) {
    const auto request = ParseOpenAiChat(body);
    ASSERT_FALSE(request.ok());
    EXPECT_EQ(services::ReasonOf(request.status()), "INVALID_JSON") << body.substr(0, 50);
    EXPECT_THAT(std::string(request.status().message()), Not(HasSubstr("secret")));
  }
}

TEST(OpenAiRequestTest, ShapeIsCheckedBeforeMemoryIsTaken) {
  EXPECT_TRUE(CheckJsonShape(std::string(64, '[')).ok());
  EXPECT_FALSE(CheckJsonShape(std::string(65, '[')).ok());
  EXPECT_TRUE(CheckJsonShape(std::string(199999, ',')).ok());
  EXPECT_FALSE(CheckJsonShape(std::string(200000, ',')).ok());
  // What stands in a string has no shape.
  EXPECT_TRUE(CheckJsonShape('"' + std::string(300000, ',') + "\\\"" + std::string(99, '[')).ok());
}

TEST(OpenAiRequestTest, RandomBytesNeverCrashIt) {
  std::mt19937 random(7);
  const std::string good =
      Chat(R"("temperature":0.5,"stop":["a"],"logit_bias":{"1":2},"n":2,"stream_options":null)");
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string body = good;
    const int edits = 1 + static_cast<int>(random() % 4);
    for (int e = 0; e < edits; ++e) {
      const size_t at = random() % body.size();
      switch (random() % 3) {
        case 0:
          body[at] = static_cast<char>(random());
          break;
        case 1:
          body.erase(at, random() % 5);
          break;
        default:
          body.insert(at, 1, "{}[],:\"\\0e-"[random() % 12]);
      }
      if (body.empty()) body = "x";
    }
    accepted += ParseOpenAiChat(body).ok() ? 1 : 0;
  }
  EXPECT_GT(accepted, 0);
}

// Ranges: min - 1, the edges, max + 1, NaN and infinities, by the proto's names.
TEST(ValidateTest, SamplingRanges) {
  const float kNan = std::nanf("");
  const float kInf = std::numeric_limits<float>::infinity();
  struct Case {
    const char* field;
    void (v1::SamplingParams::*set)(float);
    std::vector<float> good;
    std::vector<float> bad;
  };
  const Case kCases[] = {
      {"temperature", &v1::SamplingParams::set_temperature, {0, 1, 2}, {-0.01f, 2.01f, kNan, kInf}},
      {"top_p", &v1::SamplingParams::set_top_p, {0.001f, 1}, {0, -1, 1.01f, kNan, kInf}},
      {"min_p", &v1::SamplingParams::set_min_p, {0, 0.999f}, {-0.01f, 1, kNan, kInf}},
      {"presence_penalty",
       &v1::SamplingParams::set_presence_penalty,
       {-2, 2},
       {-2.01f, 2.01f, kNan, kInf, -kInf}},
      {"frequency_penalty",
       &v1::SamplingParams::set_frequency_penalty,
       {-2, 2},
       {-2.01f, 2.01f, kNan, kInf, -kInf}},
      {"repetition_penalty",
       &v1::SamplingParams::set_repetition_penalty,
       {0.01f, 10},
       {0, -1, 10.01f, kNan, kInf}},
  };
  for (const Case& test : kCases) {
    for (const float value : test.good) {
      v1::SamplingParams sampling;
      (sampling.*test.set)(value);
      EXPECT_TRUE(ValidateSampling(sampling).ok()) << test.field << " " << value;
    }
    for (const float value : test.bad) {
      v1::SamplingParams sampling;
      (sampling.*test.set)(value);
      EXPECT_EQ(services::FieldOf(ValidateSampling(sampling)),
                std::string("sampling.") + test.field)
          << value;
    }
  }
  const auto refused = [](const std::function<void(v1::SamplingParams&)>& set) {
    v1::SamplingParams sampling;
    set(sampling);
    return services::FieldOf(ValidateSampling(sampling));
  };
  EXPECT_EQ(refused([](auto& s) { s.set_top_k(-1); }), "sampling.top_k");
  EXPECT_EQ(refused([](auto& s) { s.set_top_k(0); }), "");
  EXPECT_EQ(refused([](auto& s) { s.set_max_tokens(0); }), "sampling.max_tokens");
  EXPECT_EQ(refused([](auto& s) { s.set_max_tokens(INT32_MIN); }), "sampling.max_tokens");
  EXPECT_EQ(refused([](auto& s) { s.set_max_tokens(1); }), "");
  EXPECT_EQ(refused([](auto& s) { s.set_top_logprobs(1); }), "sampling.top_logprobs");
  for (const int top : {-1, 21, INT32_MAX}) {
    EXPECT_EQ(refused([top](auto& s) {
                s.set_logprobs(true);
                s.set_top_logprobs(top);
              }),
              "sampling.top_logprobs");
  }
  EXPECT_EQ(refused([](auto& s) { s.add_stop(""); }), "sampling.stop");
  EXPECT_EQ(refused([](auto& s) { s.add_stop(std::string(257, 'x')); }), "sampling.stop");
  EXPECT_EQ(refused([](auto& s) { s.add_stop(std::string(256, 'x')); }), "");
  EXPECT_EQ(refused([](auto& s) {
              for (int i = 0; i < 17; ++i) s.add_stop("x");
            }),
            "sampling.stop");
  EXPECT_EQ(refused([](auto& s) { s.add_stop_token_ids(-1); }), "sampling.stop_token_ids");
  EXPECT_EQ(refused([](auto& s) {
              for (int i = 0; i < 65; ++i) s.add_stop_token_ids(1);
            }),
            "sampling.stop_token_ids");
  for (const float bias : {100.01f, -100.01f, kNan, kInf}) {
    EXPECT_EQ(refused([bias](auto& s) { (*s.mutable_logit_bias())[5] = bias; }),
              "sampling.logit_bias");
  }
  EXPECT_EQ(refused([](auto& s) { (*s.mutable_logit_bias())[-1] = 0; }), "sampling.logit_bias");
  EXPECT_EQ(refused([](auto& s) { (*s.mutable_logit_bias())[0] = 100; }), "");
  EXPECT_EQ(refused([](auto& s) {
              for (int i = 0; i < 1025; ++i) (*s.mutable_logit_bias())[i] = 0;
            }),
            "sampling.logit_bias");
}

TEST(ValidateTest, ReservedFieldsAreNotBuiltYet) {
  const auto code = [](const std::function<void(v1::ChatRequest&)>& set) {
    v1::ChatRequest request;
    request.add_messages()->set_role(v1::ROLE_USER);
    set(request);
    const absl::Status status = ValidateChat(request, {});
    EXPECT_EQ(services::ReasonOf(status), "NOT_BUILT");
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
    return services::FieldOf(status);
  };
  EXPECT_EQ(code([](auto& r) { r.mutable_grammar()->set_regex("x"); }), "grammar");
  EXPECT_EQ(code([](auto& r) { r.add_tools(); }), "tools");
  v1::CompleteRequest complete;
  complete.set_text("x");
  complete.mutable_grammar();
  EXPECT_EQ(services::FieldOf(ValidateComplete(complete, {})), "grammar");
}

TEST(ValidateTest, MessagesTextsAndTokens) {
  RequestLimits limits{.max_text_bytes = 10, .max_messages = 2, .max_tokens = 2};
  const auto field = [&](const std::function<void(v1::ChatRequest&)>& set) {
    v1::ChatRequest request;
    set(request);
    return services::FieldOf(ValidateChat(request, limits));
  };
  const auto add = [](v1::ChatRequest& request, v1::Role role, const std::string& text) {
    request.add_messages()->set_role(role);
    request.mutable_messages()->rbegin()->set_content(text);
  };
  EXPECT_EQ(field([](auto&) {}), "messages");
  EXPECT_EQ(field([&](auto& r) { add(r, v1::ROLE_USER, std::string(10, 'x')); }), "");
  EXPECT_EQ(field([&](auto& r) { add(r, v1::ROLE_USER, std::string(11, 'x')); }), "messages");
  EXPECT_EQ(field([&](auto& r) {
              for (int i = 0; i < 3; ++i) add(r, v1::ROLE_USER, "");
            }),
            "messages");
  EXPECT_EQ(field([&](auto& r) { add(r, v1::ROLE_UNSPECIFIED, "x"); }), "messages[0].role");
  EXPECT_EQ(field([&](auto& r) { add(r, static_cast<v1::Role>(9), "x"); }), "messages[0].role");
  for (const int priority : {-101, 101, INT32_MIN}) {
    EXPECT_EQ(field([&](auto& r) {
                add(r, v1::ROLE_USER, "x");
                r.set_priority(priority);
              }),
              "priority");
  }
  // With a session: system messages, then one user message.
  const auto with_session = [&](std::vector<v1::Role> roles) {
    return field([&](auto& r) {
      r.set_session_id("s");
      for (const v1::Role role : roles) add(r, role, "x");
    });
  };
  EXPECT_EQ(with_session({v1::ROLE_USER}), "");
  EXPECT_EQ(with_session({v1::ROLE_SYSTEM, v1::ROLE_USER}), "");
  EXPECT_EQ(with_session({v1::ROLE_USER, v1::ROLE_USER}), "messages[0].role");
  EXPECT_EQ(with_session({v1::ROLE_SYSTEM}), "messages[0].role");
  EXPECT_EQ(with_session({v1::ROLE_SYSTEM, v1::ROLE_ASSISTANT}), "messages[1].role");
  for (const std::string& id : {std::string("a b"), std::string("../x"), std::string(65, 'x'),
                                std::string("\xC3\xA4"), std::string("a\0b", 3)}) {
    EXPECT_EQ(services::FieldOf(ValidateSessionId(id)), "session_id");
  }
  EXPECT_TRUE(ValidateSessionId(std::string(64, '-')).ok());

  v1::CompleteRequest complete;
  EXPECT_EQ(services::FieldOf(ValidateComplete(complete, limits)), "input");
  complete.mutable_tokens();
  EXPECT_EQ(services::FieldOf(ValidateComplete(complete, limits)), "tokens");
  complete.mutable_tokens()->add_ids(-1);
  EXPECT_EQ(services::FieldOf(ValidateComplete(complete, limits)), "tokens");
  complete.mutable_tokens()->set_ids(0, 1);
  EXPECT_TRUE(ValidateComplete(complete, limits).ok());
  complete.mutable_tokens()->add_ids(1);
  complete.mutable_tokens()->add_ids(1);
  EXPECT_EQ(services::FieldOf(ValidateComplete(complete, limits)), "tokens");
  complete.set_text(std::string(11, 'x'));
  EXPECT_EQ(services::FieldOf(ValidateComplete(complete, limits)), "text");
}

TEST(JsonTextTest, EscapesWhatMustBe) {
  std::string all;
  for (int c = 0; c < 128; ++c) all.push_back(static_cast<char>(c));
  all += "\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80";
  std::string out;
  AppendQuoted(all, &out);
  EXPECT_EQ(json::parse(out).get<std::string>(), all);
  for (const char c : out) EXPECT_GE(static_cast<unsigned char>(c), 0x20);
  for (const float value : {0.0f, -0.0f, 1.5f, -1e-30f, 3.4e38f, 0.1f}) {
    out.clear();
    AppendNumber(value, &out);
    EXPECT_EQ(json::parse(out).get<float>(), value);
  }
  out.clear();
  AppendNumber(-std::numeric_limits<float>::infinity(), &out);
  EXPECT_EQ(out, "null");
}

v1::GenerateChunk Chunk(const std::string& text) {
  v1::GenerateChunk chunk;
  chunk.set_text(text);
  return chunk;
}

void AddLogprob(v1::GenerateChunk* chunk, const std::string& token, float logprob) {
  v1::TokenLogprob* row = chunk->add_logprobs();
  row->set_token(token);
  row->set_logprob(logprob);
  v1::TopLogprob* top = row->add_top();
  top->set_token(token);
  top->set_logprob(logprob);
}

AnswerFrame Frame(bool chat) {
  return {.chat = chat,
          .id = chat ? "chatcmpl-1" : "cmpl-1",
          .created = 5,
          .model = "m",
          .fingerprint = "fp_123"};
}

TEST(OpenAiResponseTest, GoldenEventsOfAChat) {
  AnswerFrame frame = Frame(true);
  frame.include_usage = true;
  EventFormat format(frame, 1);
  std::string out;
  format.AppendChunk(0, Chunk("say \"hi\"\n"), &out);
  format.AppendChunk(0, Chunk(""), &out);
  format.AppendFinish(0, v1::FINISH_REASON_LENGTH, &out);
  v1::Usage usage;
  usage.set_prompt_tokens(3);
  usage.set_completion_tokens(2);
  usage.set_cached_tokens(1);
  format.AppendDone(usage, &out);
  const std::string head =
      R"(data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"m",)"
      R"("system_fingerprint":"fp_123","choices":[)";
  EXPECT_EQ(out, head +
                     R"({"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,)"
                     R"("finish_reason":null}],"usage":null})"
                     "\n\n" +
                     head +
                     R"({"index":0,"delta":{"content":"say \"hi\"\n"},"logprobs":null,)"
                     R"("finish_reason":null}],"usage":null})"
                     "\n\n" +
                     head +
                     R"({"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],)"
                     R"("usage":null})"
                     "\n\n" +
                     head +
                     R"(],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,)"
                     R"("prompt_tokens_details":{"cached_tokens":1}}})"
                     "\n\n"
                     "data: [DONE]\n\n");
}

TEST(OpenAiResponseTest, TheEndOfAStreamSaysWhatReallyAnswered) {
  AnswerFrame frame = Frame(true);
  frame.include_usage = true;
  EventFormat format(frame, 1);
  std::string out;
  format.AppendChunk(0, Chunk("x"), &out);
  EXPECT_THAT(out, HasSubstr(R"("system_fingerprint":"fp_123")"));
  v1::Receipt receipt;
  receipt.set_model_digest("another");
  receipt.set_kernel_digest("kernels");
  receipt.set_adapter_digest("adapter");
  format.SetReceipt(receipt);
  out.clear();
  format.AppendFinish(0, v1::FINISH_REASON_STOP, &out);
  format.AppendDone({}, &out);
  const std::string fingerprint =
      "\"system_fingerprint\":\"" + SystemFingerprint("another", "kernels", "adapter") + "\"";
  EXPECT_EQ(out.find("fp_123"), std::string::npos);
  const size_t first = out.find(fingerprint);
  ASSERT_NE(first, std::string::npos);
  EXPECT_NE(out.find(fingerprint, first + 1), std::string::npos);
}

TEST(OpenAiResponseTest, GoldenEventsOfACompletion) {
  EventFormat format(Frame(false), 2);
  std::string out;
  format.AppendChunk(1, Chunk("x"), &out);
  format.AppendFinish(1, v1::FINISH_REASON_STOP, &out);
  format.AppendDone({}, &out);
  const std::string head =
      R"(data: {"id":"cmpl-1","object":"text_completion","created":5,"model":"m",)"
      R"("system_fingerprint":"fp_123","choices":[)";
  EXPECT_EQ(out, head +
                     R"({"index":1,"text":"x","logprobs":null,"finish_reason":null}]})"
                     "\n\n" +
                     head +
                     R"({"index":1,"text":"","logprobs":null,"finish_reason":"stop"}]})"
                     "\n\n"
                     "data: [DONE]\n\n");
}

TEST(OpenAiResponseTest, LogProbabilitiesInBothFormats) {
  // The euro sign in two tokens: its text comes with the second.
  v1::GenerateChunk first = Chunk("a");
  AddLogprob(&first, "a", -0.5f);
  AddLogprob(&first, "\xE2\x82", -0.25f);
  v1::GenerateChunk second = Chunk("\xE2\x82\xAC!");
  AddLogprob(&second, "\xAC", -1);
  AddLogprob(&second, "!", -2);

  AnswerFrame frame = Frame(true);
  frame.logprobs = true;
  BodyFormat chat(frame, 1);
  chat.AddChunk(0, first);
  chat.AddChunk(0, second);
  json body = json::parse(chat.Body({}));
  const json& rows = body["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_EQ(rows[0]["token"], "a");
  EXPECT_EQ(rows[0]["logprob"], -0.5);
  EXPECT_EQ(rows[1]["token"], "\\xe2\\x82");
  EXPECT_EQ(rows[1]["bytes"], json({0xE2, 0x82}));
  EXPECT_EQ(rows[3]["top_logprobs"][0]["token"], "!");
  EXPECT_EQ(body["choices"][0]["message"]["content"], "a\xE2\x82\xAC!");

  frame = Frame(false);
  frame.logprobs = true;
  EventFormat completion(frame, 1);
  std::string out;
  completion.AppendChunk(0, first, &out);
  const size_t split = out.size();
  completion.AppendChunk(0, second, &out);
  const json one = json::parse(out.substr(6, split - 6));
  const json two = json::parse(out.substr(split + 6));
  EXPECT_EQ(one["choices"][0]["logprobs"],
            json::parse(R"({"tokens":["a","bytes:\\xe2\\x82"],"token_logprobs":[-0.5,-0.25],
                            "top_logprobs":[{"a":-0.5},{"bytes:\\xe2\\x82":-0.25}],
                            "text_offset":[0,1]})"));
  EXPECT_EQ(two["choices"][0]["logprobs"]["text_offset"], json({2, 2}));
}

TEST(OpenAiResponseTest, WholeBody) {
  BodyFormat format(Frame(true), 2);
  format.AddChunk(1, Chunk("b"));
  format.AddChunk(0, Chunk("a"));
  v1::GenerateComplete complete;
  complete.set_finish_reason(v1::FINISH_REASON_LENGTH);
  complete.mutable_receipt()->set_model_digest("m");
  complete.mutable_receipt()->set_kernel_digest("k");
  format.Finish(1, complete);
  complete.set_finish_reason(v1::FINISH_REASON_STOP);
  format.Finish(0, complete);
  const json body = json::parse(format.Body({}));
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_EQ(body["choices"][0]["message"]["content"], "a");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(body["choices"][1]["message"]["content"], "b");
  EXPECT_EQ(body["choices"][1]["finish_reason"], "length");
  EXPECT_THAT(body["system_fingerprint"].get<std::string>(),
              ::testing::MatchesRegex("fp_[0-9a-f]{12}"));
}

TEST(OpenAiResponseTest, ErrorsAsOpenAis) {
  const auto error = [](const absl::Status& status, bool chat = true) {
    return json::parse(ErrorBody(status, chat))["error"];
  };
  json body = error(services::FieldError("sampling.temperature", "is 3, must be in [0, 2]"));
  EXPECT_EQ(body["message"], "temperature: is 3, must be in [0, 2]");
  EXPECT_EQ(body["type"], "invalid_request_error");
  EXPECT_EQ(body["param"], "temperature");
  EXPECT_EQ(body["code"], "invalid_field");
  EXPECT_EQ(error(services::FieldError("sampling.top_logprobs", "x"), false)["param"], "logprobs");
  EXPECT_EQ(error(services::FieldError("text", "x"), false)["param"], "prompt");
  EXPECT_EQ(error(services::FieldError("session_id", "x"))["param"], "Cogumi-Session");
  body = error(absl::UnauthenticatedError("x"));
  EXPECT_EQ(body["code"], "invalid_api_key");
  EXPECT_TRUE(body["param"].is_null());
  EXPECT_EQ(error(absl::OutOfRangeError("x"))["code"], "context_length_exceeded");
  EXPECT_EQ(error(absl::InternalError("bad \xff utf-8"))["type"], "server_error");

  const std::pair<absl::StatusCode, int> kCodes[] = {
      {absl::StatusCode::kInvalidArgument, 400},  {absl::StatusCode::kOutOfRange, 400},
      {absl::StatusCode::kUnimplemented, 400},    {absl::StatusCode::kUnauthenticated, 401},
      {absl::StatusCode::kPermissionDenied, 403}, {absl::StatusCode::kNotFound, 404},
      {absl::StatusCode::kAborted, 409},          {absl::StatusCode::kResourceExhausted, 429},
      {absl::StatusCode::kCancelled, 499},        {absl::StatusCode::kInternal, 500},
      {absl::StatusCode::kDataLoss, 500},         {absl::StatusCode::kUnavailable, 503},
      {absl::StatusCode::kDeadlineExceeded, 504},
  };
  for (const auto& [code, want] : kCodes) EXPECT_EQ(HttpStatusOf(absl::Status(code, "x")), want);
}

}  // namespace
}  // namespace cogumi::gateway
