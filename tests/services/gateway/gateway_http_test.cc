// The gateway over HTTP, with raw sockets.
#include <nlohmann/json.hpp>

#include "gmock/gmock.h"
#include "tests/services/gateway/gateway_fixture.h"
#include "tests/services/gateway/raw_http.h"

namespace cogumi::gateway {
namespace {

using nlohmann::json;
using test::Eventually;
using test::RawHttp;
using test::RawResponse;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr char kHello[] = R"({"messages":[{"role":"user","content":"hello"}]})";
constexpr char kStream[] = R"({"messages":[{"role":"user","content":"hello"}],"stream":true})";
constexpr char kChatPath[] = "/v1/chat/completions";

std::string Post(const std::string& path, const std::string& body,
                 const std::string& headers = "") {
  return "POST " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
         headers + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}
std::string Get(const std::string& path, const std::string& headers = "") {
  return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + headers + "\r\n";
}
std::string Bearer(const std::string& who) {
  return "Authorization: Bearer " + who + "-secret-0123456789\r\n";
}

class GatewayHttpTest : public GatewayFixture {
 protected:
  RawResponse Exchange(const std::string& request) {
    RawHttp http(gateway_->http_address());
    http.Send(request);
    return http.Read();
  }
  static json Error(const RawResponse& response) { return json::parse(response.body)["error"]; }
  // What changes from call to call, made constant.
  static std::string Normalise(std::string text, const RawResponse& response) {
    const std::string id = response.headers.at("x-request-id");
    for (size_t at; (at = text.find(id)) != std::string::npos;) text.replace(at, id.size(), "ID");
    for (size_t at = 0; (at = text.find("\"created\":", at)) != std::string::npos;) {
      at += 10;
      text.replace(at, text.find(',', at) - at, "0");
    }
    for (size_t at = 0; (at = text.find("\"fp_", at)) != std::string::npos;) {
      at += 4;
      text.replace(at, 12, "F");
    }
    return text;
  }
};

// Golden: exactly what a person gets, headers included. No score, no route, no tier.
TEST_F(GatewayHttpTest, GoldenAnswer) {
  Start();
  const RawResponse response = Exchange(Post(kChatPath, kHello));
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(Normalise(response.body, response),
            R"({"id":"chatcmpl-ID","object":"chat.completion","created":0,"model":"tiny",)"
            R"("system_fingerprint":"fp_F","choices":[{"index":0,"message":{"role":"assistant",)"
            R"("content":"echo: hello","refusal":null},"logprobs":null,"finish_reason":"stop"}],)"
            R"("usage":{"prompt_tokens":11,"completion_tokens":3,"total_tokens":14,)"
            R"("prompt_tokens_details":{"cached_tokens":4}}})");
  std::vector<std::string> names;
  for (const auto& [name, value] : response.headers) names.push_back(name);
  EXPECT_THAT(names, ElementsAre("connection", "content-length", "content-type", "x-request-id"));
}

TEST_F(GatewayHttpTest, GoldenStream) {
  decoder().SetScript({.pieces = {"Hi \"you\"", "", "\xF0\x9F\x98\x80\n"}});
  Start();
  const RawResponse response =
      Exchange(Post(kChatPath, R"({"messages":[{"role":"user","content":"x"}],"stream":true,)"
                               R"("stream_options":{"include_usage":true}})"));
  EXPECT_EQ(response.status, 200);
  EXPECT_TRUE(response.complete);
  EXPECT_THAT(response.headers.at("content-type"), StartsWith("text/event-stream"));
  const std::string head =
      R"(data: {"id":"chatcmpl-ID","object":"chat.completion.chunk","created":0,"model":"tiny",)"
      R"("system_fingerprint":"fp_F","choices":[)";
  const std::string tail = R"("logprobs":null,"finish_reason":null}],"usage":null})"
                           "\n\n";
  EXPECT_EQ(Normalise(response.body, response),
            head + R"({"index":0,"delta":{"role":"assistant","content":""},)" + tail +  //
                head + R"({"index":0,"delta":{"content":"Hi \"you\""},)" + tail +       //
                head + "{\"index\":0,\"delta\":{\"content\":\"\xF0\x9F\x98\x80\\n\"}," + tail +
                head +
                R"({"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],)"
                R"("usage":null})"
                "\n\n" +
                head +
                R"(],"usage":{"prompt_tokens":11,"completion_tokens":3,"total_tokens":14,)"
                R"("prompt_tokens_details":{"cached_tokens":4}}})"
                "\n\n"
                "data: [DONE]\n\n");
}

TEST_F(GatewayHttpTest, Completions) {
  Start();
  RawResponse response = Exchange(Post("/v1/completions", R"({"prompt":"raw","logprobs":1})"));
  EXPECT_EQ(response.status, 200);
  json body = json::parse(response.body);
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_EQ(body["choices"][0]["text"], "echo: raw");
  EXPECT_EQ(body["choices"][0]["logprobs"]["text_offset"], json({0, 5, 6}));
  EXPECT_EQ(decoder().last().sampling().max_tokens(), 16);
  response = Exchange(Post("/v1/completions", R"({"prompt":["p","q"],"n":2})"));
  body = json::parse(response.body);
  ASSERT_EQ(body["choices"].size(), 4u);
  EXPECT_EQ(body["choices"][1]["text"], "echo: p");
  EXPECT_EQ(body["choices"][3]["text"], "echo: q");
  EXPECT_EQ(body["usage"]["prompt_tokens"], 22);
  EXPECT_EQ(body["usage"]["completion_tokens"], 12);
}

TEST_F(GatewayHttpTest, StreamedChoicesCarryTheirIndex) {
  Start();
  const RawResponse response = Exchange(
      Post(kChatPath, R"({"messages":[{"role":"user","content":"x"}],"stream":true,"n":3})"));
  std::map<int, std::string> texts;
  std::map<int, int> ends;
  size_t at = 0;
  while ((at = response.body.find("data: {", at)) != std::string::npos) {
    const json event =
        json::parse(response.body.substr(at + 6, response.body.find('\n', at) - at - 6));
    const json& choice = event["choices"][0];
    texts[choice["index"]] += choice["delta"].value("content", "");
    if (!choice["finish_reason"].is_null()) ++ends[choice["index"]];
    ++at;
  }
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(texts[i], "echo: x");
    EXPECT_EQ(ends[i], 1);
  }
}

TEST_F(GatewayHttpTest, SessionsByHeaderShareGrpcsStore) {
  Start();
  for (const char* question : {"one", "two"}) {
    const std::string body =
        std::string(R"({"messages":[{"role":"user","content":")") + question + "\"}]}";
    EXPECT_EQ(Exchange(Post(kChatPath, body, "Cogumi-Session: s\r\n")).status, 200);
  }
  EXPECT_EQ(decoder().last().messages().messages_size(), 3);
  EXPECT_THAT(Turns("s"), ElementsAre("one", "two"));
  RawResponse bad = Exchange(Post(kChatPath, kHello, "Cogumi-Session: a b\r\n"));
  EXPECT_EQ(bad.status, 400);
  EXPECT_EQ(Error(bad)["param"], "Cogumi-Session");
  bad = Exchange(Post("/v1/completions", R"({"prompt":"x"})", "Cogumi-Session: s\r\n"));
  EXPECT_EQ(bad.status, 400);
}

TEST_F(GatewayHttpTest, ModelsHealthAndMetrics) {
  Start();
  RawResponse response = Exchange(Get("/v1/models"));
  EXPECT_EQ(json::parse(response.body),
            json::parse(R"({"object":"list","data":[{"id":"tiny","object":"model",
                            "created":1700000000,"owned_by":"cogumi"}]})"));
  EXPECT_EQ(json::parse(Exchange(Get("/v1/models/t%69ny")).body)["id"], "tiny");
  response = Exchange(Get("/v1/models/gpt-99"));
  EXPECT_EQ(response.status, 404);
  EXPECT_EQ(Error(response)["code"], "model_not_found");
  EXPECT_EQ(Exchange(Get("/v1/models/")).status, 404);
  response = Exchange(Get("/health?verbose=1"));
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.body, R"({"status":"ok"})");
  EXPECT_EQ(Exchange(Post(kChatPath, kHello)).status, 200);
  response = Exchange(Get("/metrics"));
  EXPECT_EQ(response.status, 200);
  for (const char* series :
       {"cogumi_http_requests_total{", "cogumi_http_request_duration_seconds_bucket{",
        "cogumi_http_connections ", "cogumi_gateway_streams 0", "cogumi_gateway_tokens_total{",
        "cogumi_gateway_time_to_first_token_seconds_count 1", "cogumi_build_info{",
        "cogumi_gateway_backend_up{service=\"decoder\"} 1",
        "cogumi_gateway_routing_decisions_total{", "cogumi_query_cost_dollars_total{",
        "cogumi_session_commits_total 0"}) {
    EXPECT_THAT(response.body, HasSubstr(series));
  }
  EXPECT_THAT(response.body, HasSubstr(R"(route="/v1/models/{id}",status="404"} 2)"));
}

TEST_F(GatewayHttpTest, ErrorsBeforeTheFirstByteAreHttpErrors) {
  Start();
  decoder().SetScript(
      {.pieces = {"x"},
       .end = services::WithRetry(
           services::WithReason(absl::ResourceExhaustedError("queue full"), "QUEUE_FULL"), 2.5)});
  // Without a stream nothing was sent yet, whatever came from the decoder before.
  RawResponse response = Exchange(Post(kChatPath, kHello));
  EXPECT_EQ(response.status, 429);
  EXPECT_EQ(response.headers["retry-after"], "3");
  EXPECT_EQ(Error(response)["code"], "queue_full");
  EXPECT_EQ(Error(response)["type"], "rate_limit_error");
}

TEST_F(GatewayHttpTest, ErrorsInAStreamAreAnEventAndNoEndMark) {
  Start();
  decoder().SetScript({.pieces = {"a"}, .end = absl::InternalError("nan")});
  const RawResponse response = Exchange(Post(kChatPath, kStream));
  EXPECT_EQ(response.status, 200);
  EXPECT_FALSE(response.complete);
  EXPECT_THAT(response.body, HasSubstr(R"("content":"a")"));
  EXPECT_THAT(response.body, HasSubstr("data: {\"error\":{"));
  EXPECT_THAT(response.body, Not(HasSubstr("[DONE]")));
}

TEST_F(GatewayHttpTest, WhatIsWrongIsNamed) {
  Start();
  const struct {
    std::string path;
    std::string body;
    int status;
    json param;
  } kCases[] = {
      {kChatPath, R"({"messages":[{"role":"user","content":"x"}],"temperature":3})", 400,
       "temperature"},
      {kChatPath, R"({"messages":[{"role":"user","content":"x"}],"n":9})", 400, "n"},
      {kChatPath, R"({"messages":[{"role":"user","content":"x"}],"n":0})", 400, "n"},
      {kChatPath, R"({"messages":[{"role":"user","content":"x"}],"tools":[]})", 400, "tools"},
      {kChatPath, R"({"messages":[{"role":"user","content":"x"}],"temprature":1})", 400,
       "temprature"},
      {kChatPath, R"({"messages":[]})", 400, "messages"},
      {kChatPath, R"({"messages":[{"role":"user","content":"x"}],"model":"gpt-99"})", 404, "model"},
      {"/v1/completions", R"({"prompt":"x","logprobs":21})", 400, "logprobs"},
      {"/v1/completions", R"({"prompt":[-1]})", 400, "prompt"},
      {kChatPath, "not json", 400, nullptr},
      {kChatPath, "", 400, nullptr},
      {"/v1/unheard", "{}", 404, nullptr},
  };
  for (const auto& test : kCases) {
    const RawResponse response = Exchange(Post(test.path, test.body));
    EXPECT_EQ(response.status, test.status) << test.body;
    const json error = Error(response);
    EXPECT_EQ(error["param"], test.param) << test.body;
    EXPECT_TRUE(error["message"].is_string() && error["type"] == "invalid_request_error");
  }
  EXPECT_EQ(decoder().started(), 0);
  RawResponse response = Exchange(Get(kChatPath));
  EXPECT_EQ(response.status, 405);
  EXPECT_EQ(response.headers["allow"], "POST, OPTIONS");
  EXPECT_EQ(Exchange(Post("/v1/models", "{}")).status, 405);
  EXPECT_EQ(Exchange("DELETE /health HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 405);
  // A page of another site can send a form, but not this type without asking first.
  EXPECT_EQ(Exchange("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                     "Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}")
                .status,
            415);
}

TEST_F(GatewayHttpTest, AnAdapterIsPartOfTheModelsName) {
  Start();
  RawResponse response = Exchange(
      Post(kChatPath, R"({"messages":[{"role":"user","content":"x"}],"model":"tiny:poet"})"));
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(json::parse(response.body)["model"], "tiny:poet");
  EXPECT_EQ(decoder().last().adapter(), "poet");
  response = Exchange(Post("/v1/completions", R"({"prompt":"x","model":"tiny"})"));
  EXPECT_EQ(json::parse(response.body)["model"], "tiny");
  EXPECT_EQ(decoder().last().adapter(), "");
  // Adapters are listed behind the base as soon as the decoder knows them.
  EXPECT_EQ(json::parse(Exchange(Get("/v1/models")).body)["data"].size(), 1u);
  decoder().SetAdapters({"poet"});
  const json models = json::parse(Exchange(Get("/v1/models")).body)["data"];
  ASSERT_EQ(models.size(), 2u);
  EXPECT_EQ(models[0]["id"], "tiny");
  EXPECT_EQ(models[1]["id"], "tiny:poet");
  EXPECT_EQ(json::parse(Exchange(Get("/v1/models/tiny:poet")).body)["id"], "tiny:poet");
  EXPECT_EQ(Exchange(Get("/v1/models/tiny:other")).status, 404);
  // What the decoder says of an adapter that it does not know names the model.
  const absl::Status unknown = absl::NotFoundError("the adapter \"other\" does not exist");
  test::FakeDecoder::Script script;
  script.end = services::WithField(unknown, "adapter");
  decoder().SetScript(script);
  response = Exchange(
      Post(kChatPath, R"({"messages":[{"role":"user","content":"x"}],"model":"tiny:other"})"));
  EXPECT_EQ(response.status, 404);
  EXPECT_EQ(Error(response)["param"], "model");
}

TEST_F(GatewayHttpTest, TokensRolesAndQuotas) {
  StartWithTokens();
  RawResponse response = Exchange(Post(kChatPath, kHello));
  EXPECT_EQ(response.status, 401);
  EXPECT_EQ(response.headers["www-authenticate"], "Bearer");
  EXPECT_EQ(Error(response)["code"], "invalid_api_key");
  EXPECT_EQ(Exchange(Get("/v1/models", Bearer("wrong"))).status, 401);
  EXPECT_EQ(Exchange(Get("/metrics")).status, 401);
  EXPECT_EQ(Exchange(Get("/metrics", Bearer("acme"))).status, 403);
  EXPECT_EQ(Exchange(Get("/metrics", Bearer("operator"))).status, 200);
  EXPECT_EQ(Exchange(Get("/health")).status, 200);
  EXPECT_EQ(Exchange(Post(kChatPath, kHello, Bearer("operator"))).status, 403);
  EXPECT_EQ(Exchange(Post(kChatPath, kHello, Bearer("acme"))).status, 200);
  EXPECT_EQ(decoder().metadata()["cogumi-tenant"], "acme");
  EXPECT_EQ(Exchange(Post(kChatPath, kHello, Bearer("limited"))).status, 200);
  response = Exchange(Post(kChatPath, kHello, Bearer("limited")));
  EXPECT_EQ(response.status, 429);
  EXPECT_GT(std::atoi(response.headers["retry-after"].c_str()), 0);
  EXPECT_EQ(Error(response)["code"], "rate_limit_exceeded");
}

TEST_F(GatewayHttpTest, AnOpenGatewayAnswersToLoopbackNamesOnly) {
  Start();
  for (const char* host : {"localhost", "localhost:8080", "127.0.0.1:1", "[::1]:80", "LOCALHOST"}) {
    EXPECT_EQ(Exchange(std::string("GET /health HTTP/1.1\r\nHost: ") + host + "\r\n\r\n").status,
              200)
        << host;
  }
  for (const char* host :
       {"evil.example", "127.0.0.1.evil.example", "localhost.evil", "10.0.0.1"}) {
    EXPECT_EQ(Exchange(std::string("GET /health HTTP/1.1\r\nHost: ") + host + "\r\n\r\n").status,
              403)
        << host;
  }
}

TEST_F(GatewayHttpTest, CorsForListedOrigins) {
  config_.cors_origins = {"https://chat.example.org"};
  Start();
  const auto preflight = [&](const std::string& origin) {
    return Exchange(
        "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: " + origin +
        "\r\nAccess-Control-Request-Method: POST\r\n"
        "Access-Control-Request-Headers: authorization, content-type\r\n\r\n");
  };
  RawResponse response = preflight("https://chat.example.org");
  EXPECT_EQ(response.status, 204);
  EXPECT_EQ(response.headers["access-control-allow-origin"], "https://chat.example.org");
  EXPECT_EQ(response.headers["access-control-allow-headers"], "authorization, content-type");
  EXPECT_EQ(response.headers["vary"], "Origin");
  response = preflight("https://evil.example");
  EXPECT_EQ(response.status, 403);
  EXPECT_EQ(response.headers.count("access-control-allow-origin"), 0u);
  response = Exchange(Post(kChatPath, kHello, "Origin: https://chat.example.org\r\n"));
  EXPECT_EQ(response.headers["access-control-allow-origin"], "https://chat.example.org");
  response = Exchange(Post(kChatPath, kStream, "Origin: https://chat.example.org\r\n"));
  EXPECT_EQ(response.headers["access-control-allow-origin"], "https://chat.example.org");
}

TEST_F(GatewayHttpTest, RequestIdsAreKeptWhenWellFormed) {
  Start();
  EXPECT_EQ(Exchange(Get("/v1/models", "X-Request-Id: my-id.7\r\n")).headers["x-request-id"],
            "my-id.7");
  const std::string made =
      Exchange(Get("/v1/models", "X-Request-Id: bad id\r\n")).headers["x-request-id"];
  EXPECT_EQ(made.size(), 32u);
}

TEST_F(GatewayHttpTest, RequestsInPiecesChunksAndQueues) {
  Start();
  RawHttp http(gateway_->http_address());
  // A chunked body.
  http.Send(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
      "application/json\r\nTransfer-Encoding: chunked\r\n\r\n");
  const std::string body = kHello;
  http.Send("5\r\n" + body.substr(0, 5) + "\r\n");
  char size[16];
  std::snprintf(size, sizeof(size), "%zx\r\n", body.size() - 5);
  http.Send(size + body.substr(5) + "\r\n0\r\n\r\n");
  EXPECT_EQ(http.Read().status, 200);
  // Byte by byte, on the same connection.
  for (const char c : Get("/health")) http.Send(std::string(1, c));
  EXPECT_EQ(http.Read().status, 200);
  // Three at once: answered in order.
  http.Send(Get("/v1/models") + Post(kChatPath, kStream) + Get("/unheard"));
  EXPECT_THAT(http.Read().body, HasSubstr("list"));
  EXPECT_THAT(http.Read().body, HasSubstr("[DONE]"));
  EXPECT_EQ(http.Read().status, 404);
  // The last one of its connection.
  http.Send("GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  const RawResponse last = http.Read();
  EXPECT_EQ(last.status, 200);
  EXPECT_EQ(last.headers.at("connection"), "close");
  EXPECT_TRUE(http.AwaitEnd());
}

TEST_F(GatewayHttpTest, OlderHttpAndHead) {
  Start();
  RawHttp old(gateway_->http_address());
  const std::string body = kStream;
  old.Send(
      "POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
      "Content-Length: " +
      std::to_string(body.size()) + "\r\n\r\n" + body);
  const RawResponse response = old.Read();
  EXPECT_EQ(response.headers.count("transfer-encoding"), 0u);
  EXPECT_THAT(response.body, HasSubstr("data: [DONE]"));
  RawHttp head(gateway_->http_address());
  head.Send("HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
  EXPECT_EQ(head.Read(/*head=*/true).headers.at("content-length"), "15");
  head.Send(Get("/health"));
  EXPECT_EQ(head.Read().body, R"({"status":"ok"})");
}

TEST_F(GatewayHttpTest, LimitsOfHeadersAndBodies) {
  config_.max_body_bytes = 2048;
  Start();
  RawResponse response = Exchange(Get("/health", "X-Big: " + std::string(20000, 'x') + "\r\n"));
  EXPECT_EQ(response.status, 431);
  response = Exchange(Post(kChatPath, std::string(2049, ' ')));
  EXPECT_EQ(response.status, 413);
  EXPECT_THAT(Error(response)["message"].get<std::string>(), HasSubstr("2048"));
  EXPECT_EQ(Exchange(Post(kChatPath, std::string(2048 - sizeof(kHello) + 1, ' ') + kHello)).status,
            200);
  // Announced, and not sent.
  response = Exchange(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
      "application/json\r\nContent-Length: 99999999999\r\n\r\n");
  EXPECT_EQ(response.status, 413);
  // Without an announcement.
  RawHttp chunked(gateway_->http_address());
  chunked.Send(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
      "application/json\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n" +
      std::string(4095, ' ') + "\r\n");
  EXPECT_EQ(chunked.Read().status, 413);
  for (const char* wrong :
       {"NONSENSE\r\n\r\n", "GET /health HTTP/9.9\r\n\r\n", "GET  HTTP/1.1\r\n\r\n",
        "GET /health HTTP/1.1\r\nbad header\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"}) {
    EXPECT_EQ(Exchange(wrong).status, 400) << wrong;
  }
  EXPECT_EQ(Exchange(Get("/health")).status, 200);
}

TEST_F(GatewayHttpTest, Expect100Continue) {
  Start();
  RawHttp http(gateway_->http_address());
  const std::string body = kHello;
  http.Send(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
      "application/json\r\nExpect: 100-continue\r\nContent-Length: " +
      std::to_string(body.size()) + "\r\n\r\n");
  ASSERT_TRUE(http.Await("100 Continue\r\n\r\n"));
  http.Send(body);
  EXPECT_EQ(http.Read().status, 200);
}

TEST_F(GatewayHttpTest, DisconnectsReachTheDecoder) {
  Start();
  decoder().SetScript({.pieces = {"a", "b"}, .hold_after = 1});
  int expected = 0;
  for (const char* body : {kStream, kHello}) {
    RawHttp http(gateway_->http_address());
    http.Send(Post(kChatPath, body));
    if (body == kStream) {
      ASSERT_TRUE(http.Await("\"a\""));
    } else {
      ASSERT_TRUE(Eventually([&] { return decoder().running() == 1; }));
    }
    http.Close();
    ++expected;
    EXPECT_TRUE(Eventually([&] { return decoder().cancelled() == expected; }));
  }
  EXPECT_TRUE(Eventually(
      [&] { return Metrics().find("cogumi_gateway_streams 0\n") != std::string::npos; }));
  EXPECT_TRUE(Eventually([&] { return gateway_->host().runtime().calls.running() == 0; }));
}

TEST_F(GatewayHttpTest, TheLogSaysHowARequestEnded) {
  config_.server.log_requests = true;
  Start();
  EXPECT_THAT(LogOf([&] { Exchange(Post(kChatPath, kStream)); }),
              AllOf(HasSubstr(R"("status":"OK")"), HasSubstr(R"("completion_tokens":3)")));

  decoder().SetScript({.pieces = {"a", "b"}, .hold_after = 1});
  const std::string left = LogOf([&] {
    RawHttp http(gateway_->http_address());
    http.Send(Post(kChatPath, kStream));
    ASSERT_TRUE(http.Await("\"a\""));
  });
  EXPECT_THAT(left, HasSubstr(R"("status":"CANCELLED")"));
  EXPECT_THAT(left, HasSubstr(R"("completion_tokens":1)"));
  EXPECT_EQ(left.find("\"request_id\""), left.rfind("\"request_id\"")) << left;
  EXPECT_THAT(Metrics(), HasSubstr(R"(route="/v1/chat/completions",status="499"} 1)"));

  decoder().SetScript({.pieces = {std::string(4096, 'x')}, .endless = true});
  const std::string slow = LogOf([&] {
    RawHttp http(gateway_->http_address(), 4096);
    http.Send(Post(kChatPath, kStream));
    ASSERT_TRUE(Eventually([&] { return decoder().cancelled() == 2; }));
    EXPECT_TRUE(http.AwaitEnd());
  });
  EXPECT_THAT(slow, HasSubstr(R"("status":"RESOURCE_EXHAUSTED","reason":"SLOW_READER")"));
  EXPECT_THAT(slow, HasSubstr(R"("completion_tokens":)"));
}

TEST_F(GatewayHttpTest, ASlowReaderIsCutOff) {
  Start();
  decoder().SetScript({.pieces = {std::string(4096, 'x')}, .endless = true});
  RawHttp http(gateway_->http_address(), 4096);
  http.Send(Post(kChatPath, kStream));
  ASSERT_TRUE(http.Await("data: "));
  EXPECT_TRUE(Eventually([&] { return decoder().cancelled() == 1; }));
  EXPECT_TRUE(http.AwaitEnd());
  EXPECT_THAT(http.buffer(), Not(HasSubstr("[DONE]")));
  EXPECT_TRUE(Eventually([&] {
    return Metrics().find("cogumi_gateway_slow_readers_total 1\n") != std::string::npos;
  }));
}

TEST_F(GatewayHttpTest, ADrainFinishesWhatRunsAndRefusesTheRest) {
  Start();
  decoder().SetScript({.pieces = {"a", "b"}, .hold_after = 1});
  RawHttp idle(gateway_->http_address());
  idle.Send(Get("/health"));
  EXPECT_EQ(idle.Read().status, 200);
  RawHttp running(gateway_->http_address());
  running.Send(Post(kChatPath, kStream));
  ASSERT_TRUE(running.Await("\"a\""));
  gateway_->host().StartDraining();
  gateway_->OnDrain();
  EXPECT_TRUE(idle.AwaitEnd());
  RawResponse refused = Exchange(Post(kChatPath, kHello));
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.headers["connection"], "close");
  EXPECT_GT(std::atoi(refused.headers["retry-after"].c_str()), 0);
  EXPECT_EQ(Exchange(Get("/health")).status, 503);
  decoder().Release();
  const RawResponse response = running.Read();
  EXPECT_TRUE(response.complete);
  EXPECT_THAT(response.body, HasSubstr("\"b\""));
  EXPECT_THAT(response.body, HasSubstr("[DONE]"));
  EXPECT_TRUE(gateway_->host().Drain(20).ok());
}

TEST_F(GatewayHttpTest, HealthFollowsTheDecoder) {
  auto remote = std::make_unique<test::FakeBackendServer>("127.0.0.1:0");
  const std::string address = remote->address();
  config_.decoder = address;
  config_.router = address;
  config_.modifiers = "127.0.0.1:1";
  auto gateway = StartGateway(config_);
  ASSERT_TRUE(gateway.ok()) << gateway.status();
  gateway_ = *std::move(gateway);
  const auto health = [this] { return Exchange(Get("/health")).status; };
  EXPECT_TRUE(Eventually([&] { return health() == 200 && Healthy(); }));
  EXPECT_EQ(Exchange(Post(kChatPath, kHello)).status, 200);
  EXPECT_TRUE(Eventually([&] {
    return Metrics().find("cogumi_gateway_backend_up{service=\"router\"} 1") != std::string::npos;
  }));
  EXPECT_THAT(Metrics(), HasSubstr("cogumi_gateway_backend_up{service=\"modifiers\"} 0"));
  remote = nullptr;
  EXPECT_TRUE(Eventually([&] { return health() == 503 && !Healthy(); }));
  // Errors name the service and no address.
  const RawResponse refused = Exchange(Post(kChatPath, kHello));
  EXPECT_EQ(refused.status, 503);
  EXPECT_THAT(refused.body, HasSubstr("the decoder cannot be reached"));
  EXPECT_THAT(refused.body, Not(HasSubstr("127.0.0.1")));
  remote = std::make_unique<test::FakeBackendServer>(address);
  ASSERT_EQ(remote->address(), address);
  EXPECT_TRUE(Eventually([&] { return health() == 200 && Healthy(); }));
  EXPECT_EQ(Exchange(Post(kChatPath, kHello)).status, 200);
}

TEST_F(GatewayHttpTest, TheEndOfTheGatewayEndsItsConnections) {
  Start();
  decoder().SetScript({.pieces = {"a", "b"}, .hold_after = 1});
  RawHttp http(gateway_->http_address());
  http.Send(Post(kChatPath, kStream));
  ASSERT_TRUE(http.Await("\"a\""));
  gateway_ = nullptr;
  EXPECT_TRUE(http.AwaitEnd());
  EXPECT_TRUE(Eventually([&] { return decoder().running() == 0; }));
}

}  // namespace
}  // namespace cogumi::gateway
