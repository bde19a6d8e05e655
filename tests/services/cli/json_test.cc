#include "services/cli/json.h"

#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace cogumi::cli {
namespace {

TEST(Json, KeepsTheOrderAndTheTypes) {
  const std::vector<int> ids = {1, 2};
  EXPECT_EQ(JsonObject()
                .Add("text", "a\"b\n")
                .Add("yes", true)
                .Add("count", uint64_t{18446744073709551615u})
                .Add("share", 0.5)
                .Add("ids", ids)
                .Add("inner", JsonObject().Add("x", -1))
                .Add("list", JsonArray().Add("a").Add(1.5).Add(JsonObject()))
                .str(),
            R"({"text":"a\"b\n","yes":true,"count":18446744073709551615,"share":0.5,)"
            R"("ids":[1,2],"inner":{"x":-1},"list":["a",1.5,{}]})");
}

TEST(Json, HasNoNumberForNanAndInfinity) {
  EXPECT_EQ(JsonNumber(std::numeric_limits<double>::quiet_NaN()), "null");
  EXPECT_EQ(JsonNumber(-std::numeric_limits<double>::infinity()), "null");
}

TEST(Json, InvalidUtf8BecomesValid) {
  EXPECT_EQ(JsonObject().Add("t", std::string("\xff")).str(), "{\"t\":\"\xef\xbf\xbd\"}");
}

}  // namespace
}  // namespace cogumi::cli
