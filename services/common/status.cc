#include "services/common/status.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/cord.h"
#include "google/rpc/error_details.pb.h"
#include "services/common/text.h"

namespace cogumi::services {
namespace {

constexpr char kErrorInfoUrl[] = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr char kBadRequestUrl[] = "type.googleapis.com/google.rpc.BadRequest";
constexpr char kRetryInfoUrl[] = "type.googleapis.com/google.rpc.RetryInfo";

constexpr std::array<std::string_view, 17> kCodeNames = {
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED"};

template <typename Proto>
std::optional<Proto> GetDetail(const absl::Status& status, const char* url) {
  const auto payload = status.GetPayload(url);
  if (!payload) return std::nullopt;
  Proto proto;
  if (!proto.ParseFromString(std::string(*payload))) return std::nullopt;
  return proto;
}

template <typename Proto>
void SetDetail(absl::Status& status, const char* url, const Proto& proto) {
  status.SetPayload(url, absl::Cord(proto.SerializeAsString()));
}

}  // namespace

std::string_view CodeName(absl::StatusCode code) {
  const auto index = static_cast<size_t>(code);
  return index < kCodeNames.size() ? kCodeNames[index] : kCodeNames[2];
}

absl::Status WithField(absl::Status status, std::string_view field) {
  if (status.ok()) return status;
  google::rpc::BadRequest bad;
  auto* violation = bad.add_field_violations();
  violation->set_field(ToValidUtf8(TruncateUtf8(field, 256)));
  violation->set_description(
      ToValidUtf8(TruncateUtf8({status.message().data(), status.message().size()}, 512)));
  SetDetail(status, kBadRequestUrl, bad);
  return status;
}

absl::Status WithReason(absl::Status status, std::string_view reason) {
  if (status.ok()) return status;
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(kErrorDomain);
  SetDetail(status, kErrorInfoUrl, info);
  return status;
}

absl::Status WithRetry(absl::Status status, double seconds) {
  if (status.ok()) return status;
  google::rpc::RetryInfo retry;
  const double bounded = std::isfinite(seconds) ? std::clamp(seconds, 0.0, 86400.0) : 86400.0;
  const auto whole = static_cast<int64_t>(bounded);
  retry.mutable_retry_delay()->set_seconds(whole);
  retry.mutable_retry_delay()->set_nanos(
      static_cast<int32_t>((bounded - static_cast<double>(whole)) * 1e9));
  SetDetail(status, kRetryInfoUrl, retry);
  return status;
}

absl::Status FieldError(std::string_view field, std::string_view message) {
  return WithReason(
      WithField(absl::InvalidArgumentError(Cat(field, ": ", message)), field),
      "INVALID_FIELD");
}

absl::Status NotBuilt(std::string_view field) {
  return WithReason(
      WithField(absl::UnimplementedError(Cat(field, " is not built yet")), field),
      "NOT_BUILT");
}

std::string FieldOf(const absl::Status& status) {
  const auto bad = GetDetail<google::rpc::BadRequest>(status, kBadRequestUrl);
  if (!bad || bad->field_violations().empty()) return "";
  return bad->field_violations(0).field();
}

std::string ReasonOf(const absl::Status& status) {
  const auto info = GetDetail<google::rpc::ErrorInfo>(status, kErrorInfoUrl);
  return info ? info->reason() : std::string(CodeName(status.code()));
}

std::optional<double> RetryAfterOf(const absl::Status& status) {
  const auto retry = GetDetail<google::rpc::RetryInfo>(status, kRetryInfoUrl);
  if (!retry) return std::nullopt;
  return static_cast<double>(retry->retry_delay().seconds()) +
         static_cast<double>(retry->retry_delay().nanos()) * 1e-9;
}

}  // namespace cogumi::services
