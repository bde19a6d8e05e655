// The decoder's flags take exactly the numbers that the engine takes.
#include <gtest/gtest.h>

#include <string>

#include "engine/runtime/engine_parts.h"
#include "services/common/config.h"
#include "services/decoder/start.h"

namespace cogumi::services {
namespace {

struct Limit {
  const char* name;
  IntegerRange range;
};

TEST(DecoderOptions, FlagsHaveTheEnginesRanges) {
  for (const Limit& limit : {Limit{"threads", kThreadsRange},
                             {"context_length", kContextLengthRange},
                             {"kv_bytes", kKvBytesRange},
                             {"max_running", kMaxRunningRange},
                             {"max_queued", kMaxQueuedRange},
                             {"prefill_chunk", kPrefillChunkRange}}) {
    for (const int64_t edge : {limit.range.low, limit.range.high}) {
      DecoderConfig config;
      OptionSet set("decoder");
      DeclareDecoderOptions(set, &config);
      EXPECT_TRUE(set.Set(limit.name, std::to_string(edge)).ok()) << limit.name << " " << edge;
      EXPECT_TRUE(ValidateEngineOptions(config.engine).ok()) << limit.name << " " << edge;
    }
    for (const int64_t beyond : {limit.range.low - 1, limit.range.high + 1}) {
      DecoderConfig config;
      OptionSet set("decoder");
      DeclareDecoderOptions(set, &config);
      EXPECT_FALSE(set.Set(limit.name, std::to_string(beyond)).ok()) << limit.name << " " << beyond;
    }
  }
}

}  // namespace
}  // namespace cogumi::services
