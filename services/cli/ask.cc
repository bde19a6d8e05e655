#include "services/cli/ask.h"

#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "services/cli/paths.h"
#include "services/cli/verb.h"

namespace cogumi::cli {

void SamplingFlags::Declare(services::OptionSet& options) {
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  options
      .Int("max_tokens", &max_tokens_, 0, kMost,
           "tokens of the answer, at most; 0: what is left of the context")
      .Double("temperature", &temperature_, 0, 2, "0 is greedy")
      .Int("top_k", &top_k_, 0, kMost, "only the K most likely tokens; 0: off")
      .Double("top_p", &top_p_, 1e-6, 1, "only the most likely tokens with this mass; 1: off")
      .Double("min_p", &min_p_, 0, 0.999999, "only tokens this likely against the best; 0: off")
      .Double("repetition_penalty", &repetition_penalty_, 1e-6, 10, "1: off")
      .String("seed", &seed_, "the same seed gives the same answer; drawn when absent")
      .List("stop", &stop_, "strings that end the answer, with commas between them")
      .Bool("ignore_eos", &ignore_eos_, "go on past the model's own end");
}

absl::StatusOr<SamplingParams> SamplingFlags::Get() const {
  SamplingParams params;
  params.temperature = static_cast<float>(temperature_);
  params.top_k = top_k_;
  params.top_p = static_cast<float>(top_p_);
  params.min_p = static_cast<float>(min_p_);
  params.repetition_penalty = static_cast<float>(repetition_penalty_);
  if (max_tokens_ > 0) params.max_tokens = max_tokens_;
  if (!seed_.empty()) {
    uint64_t seed = 0;
    if (!absl::SimpleAtoi(seed_, &seed)) {
      return UsageError(absl::StrCat("--seed is a number from 0 to 2^64-1, not '", seed_, "'"));
    }
    params.seed = seed;
  }
  params.stop = stop_;
  params.ignore_eos = ignore_eos_;
  return params;
}

absl::StatusOr<std::unique_ptr<Connection>> Connection::Open(const std::string& model,
                                                             Sessions sessions) {
  std::unique_ptr<Connection> connection(new Connection());
  ASSIGN_OR_RETURN(const ModelFile file, FindModel(model));
  if (auto running = FindServingCluster(file.path, /*this_build=*/true); running.has_value()) {
    connection->record_ = *std::move(running);
  } else {
    RETURN_IF_ERROR(connection->Start(file.path, sessions));
  }
  RETURN_IF_ERROR(connection->Connect());
  return connection;
}

absl::StatusOr<std::unique_ptr<Connection>> Connection::OpenPrivate(const std::string& model) {
  std::unique_ptr<Connection> connection(new Connection());
  ASSIGN_OR_RETURN(const ModelFile file, FindModel(model));
  RETURN_IF_ERROR(connection->Start(file.path, Sessions::kTemporary));
  RETURN_IF_ERROR(connection->Connect());
  return connection;
}

absl::Status Connection::Start(const std::string& model_path, Sessions sessions) {
  ClusterOptions options;
  options.model = model_path;
  options.keep_sessions = sessions == Sessions::kKept;
  ASSIGN_OR_RETURN(own_, Cluster::Start(options));
  return absl::OkStatus();
}

absl::Status Connection::Connect() {
  const services::ReadyLine* gateway = record().Service("gateway");
  if (gateway == nullptr) {
    return WithAdvice(absl::UnavailableError("the running cluster has no gateway"),
                      "`cogumi stop` ends it, then run this again");
  }
  RETURN_IF_ERROR(AwaitHealth(gateway->address, 10));
  gateway_ = std::make_unique<GatewayClient>(gateway->address);
  return absl::OkStatus();
}

JsonObject ToJson(const Answer& answer) {
  const Completion& c = answer.completion;
  JsonObject usage, timings, receipt, all;
  usage.Add("prompt_tokens", c.usage.prompt_tokens)
      .Add("completion_tokens", c.usage.completion_tokens)
      .Add("cached_tokens", c.usage.cached_tokens);
  timings.Add("queue_seconds", c.timings.queue)
      .Add("prefill_seconds", c.timings.prefill)
      .Add("decode_seconds", c.timings.decode)
      .Add("time_to_first_token_seconds", c.timings.time_to_first_token);
  receipt.Add("model_digest", c.receipt.model_digest)
      .Add("template_digest", c.receipt.template_digest)
      .Add("kernel_digest", c.receipt.kernel_digest)
      .Add("kernel_configuration", c.receipt.kernel_configuration)
      .Add("seed", c.receipt.seed);
  all.Add("text", answer.text)
      .Add("token_ids", answer.token_ids)
      .Add("prompt_token_ids", c.prompt_tokens)
      .Add("finish_reason", c.finish_reason == FinishReason::kLength ? "length" : "stop")
      .Add("usage", usage)
      .Add("timings", timings)
      .Add("receipt", receipt)
      .Add("request_id", answer.request_id);
  return all;
}

}  // namespace cogumi::cli
