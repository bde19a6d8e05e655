// config/cogumi.yaml names every option of every service, with its default.
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <iterator>
#include <string>

#include "services/common/config.h"
#include "services/decoder/start.h"
#include "services/gateway/gateway.h"
#include "services/modifiers/start.h"
#include "services/router/start.h"

namespace cogumi::services {
namespace {

constexpr char kExample[] = "config/cogumi.yaml";

// Loads the example over the defaults of `declare` and compares each option before and behind.
void CheckSection(const std::string& section, const std::function<void(OptionSet&)>& declare) {
  OptionSet before(section);
  declare(before);
  const char* argv[] = {"program", "--config", kExample};
  const char* environment[] = {nullptr};
  const auto outcome = LoadConfig({"program", "", {&before}, 3, argv, environment});
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  OptionSet behind(section);
  declare(behind);
  for (size_t i = 0; i < before.options().size(); ++i) {
    EXPECT_EQ(behind.options()[i].default_text, before.options()[i].default_text)
        << section << "." << before.options()[i].name;
  }
  // Every key is there: without a line, a wrong value of it would go unseen.
  std::ifstream file(kExample);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const size_t at = text.find("\n" + section + ":\n");
  ASSERT_NE(at, std::string::npos);
  const std::string body = text.substr(at, text.find("\n\n", at) - at);
  for (const auto& option : before.options()) {
    const std::string key = option.name.substr(option.name.rfind('.') + 1);
    EXPECT_NE(body.find("  " + key + ":"), std::string::npos) << section << "." << option.name;
  }
}

TEST(ExampleConfigTest, Decoder) {
  DecoderConfig config;
  CheckSection("decoder", [&](OptionSet& set) { DeclareDecoderOptions(set, &config); });
}

TEST(ExampleConfigTest, Router) {
  RouterConfig config;
  CheckSection("router", [&](OptionSet& set) { DeclareRouterOptions(set, &config); });
}

TEST(ExampleConfigTest, Modifiers) {
  ModifiersConfig config;
  CheckSection("modifiers", [&](OptionSet& set) { DeclareModifiersOptions(set, &config); });
}

TEST(ExampleConfigTest, Gateway) {
  gateway::GatewayConfig config;
  CheckSection("gateway",
               [&](OptionSet& set) { gateway::DeclareGatewayOptions(set, &config); });
}

}  // namespace
}  // namespace cogumi::services
