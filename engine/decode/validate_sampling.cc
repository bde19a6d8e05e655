#include "engine/decode/validate_sampling.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/decode/utf8.h"

namespace cogumi {
namespace {

template <typename T>
absl::Status Outside(const std::string& field, T value, const std::string& range) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, " is outside ", range));
}

absl::Status CheckId(const std::string& field, size_t index, TokenId id, int32_t vocabulary) {
  if (id >= 0 && id < vocabulary) return absl::OkStatus();
  return Outside(absl::StrCat(field, "[", index, "]"), id,
                 absl::StrCat("[0, ", vocabulary - 1, "]"));
}

// Written as !(inside), so that NaN is outside.
absl::Status CheckNumbers(const SamplingParams& p, int32_t vocabulary, int32_t context) {
  if (!(p.temperature >= 0 && p.temperature <= 2)) {
    return Outside("temperature", p.temperature, "[0, 2]");
  }
  if (p.top_k < 0 || p.top_k > vocabulary) {
    return Outside("top_k", p.top_k, absl::StrCat("[0, ", vocabulary, "]"));
  }
  if (!(p.top_p > 0 && p.top_p <= 1)) return Outside("top_p", p.top_p, "(0, 1]");
  if (!(p.min_p >= 0 && p.min_p < 1)) return Outside("min_p", p.min_p, "[0, 1)");
  if (!(p.presence_penalty >= -2 && p.presence_penalty <= 2)) {
    return Outside("presence_penalty", p.presence_penalty, "[-2, 2]");
  }
  if (!(p.frequency_penalty >= -2 && p.frequency_penalty <= 2)) {
    return Outside("frequency_penalty", p.frequency_penalty, "[-2, 2]");
  }
  if (!(p.repetition_penalty > 0 && p.repetition_penalty <= 10)) {
    return Outside("repetition_penalty", p.repetition_penalty, "(0, 10]");
  }
  if (p.max_tokens.has_value() && (*p.max_tokens < 1 || *p.max_tokens > context)) {
    return Outside("max_tokens", *p.max_tokens, absl::StrCat("[1, ", context, "]"));
  }
  if (p.top_logprobs < 0 || p.top_logprobs > kMaxTopLogprobs) {
    return Outside("top_logprobs", p.top_logprobs, absl::StrCat("[0, ", kMaxTopLogprobs, "]"));
  }
  if (p.top_logprobs > 0 && !p.logprobs) {
    return absl::InvalidArgumentError(
        absl::StrCat("top_logprobs: ", p.top_logprobs, " asked for while logprobs is off"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateSampling(const SamplingParams& params, int32_t vocabulary, int32_t context) {
  RETURN_IF_ERROR(CheckNumbers(params, vocabulary, context));
  if (params.logit_bias.size() > static_cast<size_t>(vocabulary)) {
    return Outside("logit_bias", params.logit_bias.size(),
                   absl::StrCat("[0, ", vocabulary, "] entries"));
  }
  for (const auto& [id, bias] : params.logit_bias) {
    const std::string field = absl::StrCat("logit_bias[", id, "]");
    if (id < 0 || id >= vocabulary) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": the token id is outside [0, ", vocabulary - 1, "]"));
    }
    if (!(bias >= -100 && bias <= 100)) return Outside(field, bias, "[-100, 100]");
  }
  if (params.stop.size() > kMaxStopStrings) {
    return Outside("stop", params.stop.size(), absl::StrCat("[0, ", kMaxStopStrings, "] strings"));
  }
  for (size_t i = 0; i < params.stop.size(); ++i) {
    const std::string& stop = params.stop[i];
    const std::string field = absl::StrCat("stop[", i, "]");
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return Outside(field, stop.size(), absl::StrCat("[1, ", kMaxStopBytes, "] bytes"));
    }
    if (ReplaceInvalidUtf8(stop) != stop) {
      return absl::InvalidArgumentError(absl::StrCat(field, ": is not valid UTF-8"));
    }
  }
  if (params.stop_token_ids.size() > static_cast<size_t>(vocabulary)) {
    return Outside("stop_token_ids", params.stop_token_ids.size(),
                   absl::StrCat("[0, ", vocabulary, "] entries"));
  }
  for (size_t i = 0; i < params.stop_token_ids.size(); ++i) {
    RETURN_IF_ERROR(CheckId("stop_token_ids", i, params.stop_token_ids[i], vocabulary));
  }
  return absl::OkStatus();
}

}  // namespace cogumi
