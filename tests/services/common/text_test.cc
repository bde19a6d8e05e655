#include "services/common/text.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "services/common/logging.h"
#include "services/common/request_context.h"

namespace cogumi::services {
namespace {

constexpr char kReplacement[] = "\xEF\xBF\xBD";

TEST(Utf8Test, KnowsWellFormedText) {
  for (const char* text : {"", "a", "\xC2\xA2", "\xE2\x82\xAC", "\xF0\x90\x8D\x88", "\xED\x9F\xBF",
                           "\xF4\x8F\xBF\xBF"}) {
    EXPECT_TRUE(IsValidUtf8(text)) << text;
    EXPECT_EQ(ToValidUtf8(text), text);
  }
  for (const char* text : {"\x80", "\xC0\xAF", "\xE2\x82", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                           "\xF8\x88\x80\x80\x80", "a\xFF"}) {
    EXPECT_FALSE(IsValidUtf8(text)) << text;
    EXPECT_TRUE(IsValidUtf8(ToValidUtf8(text)));
  }
}

TEST(Utf8Test, ReplacesMaximalSequences) {
  EXPECT_EQ(ToValidUtf8("a\xE2\x82z"), std::string("a") + kReplacement + "z");
  EXPECT_EQ(ToValidUtf8("\xC0\xAF"), std::string(kReplacement) + kReplacement);
}

TEST(Utf8Test, TruncatesBetweenCharacters) {
  EXPECT_EQ(TruncateUtf8("a\xE2\x82\xAC", 3), "a");
  EXPECT_EQ(TruncateUtf8("a\xE2\x82\xAC", 4), "a\xE2\x82\xAC");
  EXPECT_EQ(TruncateUtf8("abc", 0), "");
}

TEST(Utf8Test, AnyBytesBecomeValid) {
  std::mt19937 random(3);
  for (int round = 0; round < 5000; ++round) {
    std::string text(random() % 40, '\0');
    for (char& c : text) c = static_cast<char>(random());
    EXPECT_TRUE(IsValidUtf8(ToValidUtf8(text)));
  }
}

TEST(RequestLogTest, IsOneLineOfJson) {
  RequestLogEntry entry;
  entry.service = "decoder";
  entry.method = "Generate";
  entry.request_id = "a\"b\n\x01";
  entry.tenant = "t\xFF";
  entry.status = "OK";
  entry.prompt_tokens = 3;
  entry.seconds = 0.5;
  const std::string line = FormatRequestLog(entry, 1700000000.25);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const auto json = nlohmann::json::parse(line);
  EXPECT_EQ(json["time"], "2023-11-14T22:13:20.250Z");
  EXPECT_EQ(json["request_id"], "a\"b\n\x01");
  EXPECT_EQ(json["tenant"], std::string("t") + kReplacement);
  EXPECT_EQ(json["prompt_tokens"], 3);
  EXPECT_FALSE(json.contains("completion_tokens"));
  EXPECT_FALSE(json.contains("reason"));
}

TEST(RequestContextTest, ChecksIds) {
  EXPECT_TRUE(IsValidRequestId("aZ0._-"));
  EXPECT_TRUE(IsValidRequestId(std::string(128, 'a')));
  for (const std::string& id : {std::string(), std::string(129, 'a'), std::string("a b"),
                                std::string("a\nb"), std::string("\xC3\xA4"), std::string("a/b")}) {
    EXPECT_FALSE(IsValidRequestId(id)) << id;
  }
  EXPECT_TRUE(IsValidRequestId(NewRequestId()));
  EXPECT_NE(NewRequestId(), NewRequestId());
  EXPECT_TRUE(IsValidTenant("acme"));
  EXPECT_FALSE(IsValidTenant(std::string(65, 'a')));
}

TEST(RequestContextTest, ChecksTraceparent) {
  const std::string good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  EXPECT_TRUE(IsValidTraceparent(good));
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = 'G';
    EXPECT_FALSE(IsValidTraceparent(bad)) << bad;
  }
  EXPECT_FALSE(IsValidTraceparent("ff" + good.substr(2)));
  EXPECT_FALSE(IsValidTraceparent("00-" + std::string(32, '0') + good.substr(35)));
  EXPECT_FALSE(IsValidTraceparent(good.substr(0, 36) + std::string(16, '0') + "-01"));
  EXPECT_FALSE(IsValidTraceparent(good + "0"));
}

TEST(LoggingTest, AReaderThatTakesNothingHoldsNobodyUp) {
  const auto ignored = std::signal(SIGPIPE, SIG_IGN);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const int terminal = ::dup(STDERR_FILENO);
  ::dup2(ends[1], STDERR_FILENO);
  LogLine("test", std::string(1 << 20, 'x'));  // far more than a pipe holds
  FlushLog();
  ::dup2(terminal, STDERR_FILENO);
  ::close(terminal);
  ::close(ends[0]);  // the writer's thread goes on
  ::close(ends[1]);
  LogLine("test", "to the terminal again");
  FlushLog();
  std::signal(SIGPIPE, ignored);
}

}  // namespace
}  // namespace cogumi::services
