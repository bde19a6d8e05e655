#include "services/cli/chat_input.h"

#include "gtest/gtest.h"

namespace cogumi::cli {
namespace {

TEST(ChatInput, ALineIsAMessage) {
  ChatInput input;
  EXPECT_EQ(input.Add("  hello there "), "hello there");
  EXPECT_FALSE(input.is_command());
  EXPECT_FALSE(input.pending());
}

TEST(ChatInput, ASlashBeginsACommand) {
  ChatInput input;
  EXPECT_EQ(input.Add(" /set top_k 5"), "/set top_k 5");
  EXPECT_TRUE(input.is_command());
  EXPECT_EQ(input.Add("not /a command"), "not /a command");
  EXPECT_FALSE(input.is_command());
}

TEST(ChatInput, ABackslashJoinsTheNextLine) {
  ChatInput input;
  EXPECT_EQ(input.Add("one\\"), std::nullopt);
  EXPECT_TRUE(input.pending());
  EXPECT_EQ(input.Add("/two\\"), std::nullopt) << "a command only at the start of a message";
  EXPECT_EQ(input.Add("three"), "one\n/two\nthree");
  EXPECT_FALSE(input.is_command());
  EXPECT_FALSE(input.pending());
}

TEST(ChatInput, ThreeQuotesHoldSeveralLines) {
  ChatInput input;
  EXPECT_EQ(input.Add("\"\"\""), std::nullopt);
  EXPECT_TRUE(input.pending());
  EXPECT_EQ(input.Add("/first\\"), std::nullopt);
  EXPECT_EQ(input.Add(""), std::nullopt);
  EXPECT_EQ(input.Add("  last\"\"\" ignored"), "/first\\\n\n  last");
  EXPECT_FALSE(input.pending());
  EXPECT_EQ(input.Add("\"\"\"on one line\"\"\""), "on one line");
  EXPECT_EQ(input.Add("next"), "next");
}

TEST(ChatInput, AnEmptyLineIsAnEmptyMessage) {
  ChatInput input;
  EXPECT_EQ(input.Add("   "), "");
}

}  // namespace
}  // namespace cogumi::cli
