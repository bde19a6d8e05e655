#include "services/cli/human.h"

#include <limits>

#include "gtest/gtest.h"

namespace cogumi::cli {
namespace {

TEST(HumanBytes, TakesTheUnitThatFits) {
  EXPECT_EQ(HumanBytes(0), "0 bytes");
  EXPECT_EQ(HumanBytes(1023), "1023 bytes");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes(98362432), "93.8 MiB");
  EXPECT_EQ(HumanBytes(int64_t{3} << 30), "3.0 GiB");
  EXPECT_EQ(HumanBytes(std::numeric_limits<int64_t>::max()), "8388608.0 TiB");
}

}  // namespace
}  // namespace cogumi::cli
