#include "engine/tokenizer/byte_level.h"

#include <string>

#include "gtest/gtest.h"
#include "tests/support/gguf_writer.h"

namespace cogumi {
namespace {

TEST(ByteLevel, EveryByteComesBack) {
  for (int byte = 0; byte < 256; ++byte) {
    const std::string bytes(1, static_cast<char>(byte));
    std::string decoded = "x";
    ASSERT_TRUE(AppendByteLevelDecoded(testing::SpellByteLevel(bytes), &decoded));
    EXPECT_EQ(decoded, "x" + bytes);
  }
}

TEST(ByteLevel, KnownSpellings) {
  std::string decoded;
  EXPECT_TRUE(AppendByteLevelDecoded("\xc4\xa0the\xc4\x8a", &decoded));  // U+0120, U+010A
  EXPECT_EQ(decoded, " the\n");
}

TEST(ByteLevel, OtherCharactersAndInvalidUtf8LeaveTheBytesAlone) {
  std::string decoded = "x";
  for (const char* spelled : {"a b", "a\n", "\xe2\x82\xac", "a\xff", "a\xc4", "\xc5\x84"}) {
    EXPECT_FALSE(AppendByteLevelDecoded(spelled, &decoded)) << spelled;
    EXPECT_EQ(decoded, "x");
  }
}

}  // namespace
}  // namespace cogumi
