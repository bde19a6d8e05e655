#include <grpcpp/support/status.h>

#include <utility>

#include "absl/strings/cord.h"
#include "google/rpc/status.pb.h"
#include "services/common/status.h"
#include "services/common/text.h"

namespace cogumi::services {
namespace {

constexpr char kErrorInfoUrl[] = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr char kRetryInfoUrl[] = "type.googleapis.com/google.rpc.RetryInfo";
constexpr size_t kMaxMessageBytes = 1024;
constexpr double kDefaultRetrySeconds = 1.0;

#define COGUMI_SAME_CODE(absl_name, grpc_name)                                    \
  static_assert(static_cast<int>(absl::StatusCode::absl_name) == grpc::grpc_name, \
                "absl and gRPC codes must be equal")
COGUMI_SAME_CODE(kOk, OK);
COGUMI_SAME_CODE(kCancelled, CANCELLED);
COGUMI_SAME_CODE(kUnknown, UNKNOWN);
COGUMI_SAME_CODE(kInvalidArgument, INVALID_ARGUMENT);
COGUMI_SAME_CODE(kDeadlineExceeded, DEADLINE_EXCEEDED);
COGUMI_SAME_CODE(kNotFound, NOT_FOUND);
COGUMI_SAME_CODE(kAlreadyExists, ALREADY_EXISTS);
COGUMI_SAME_CODE(kPermissionDenied, PERMISSION_DENIED);
COGUMI_SAME_CODE(kResourceExhausted, RESOURCE_EXHAUSTED);
COGUMI_SAME_CODE(kFailedPrecondition, FAILED_PRECONDITION);
COGUMI_SAME_CODE(kAborted, ABORTED);
COGUMI_SAME_CODE(kOutOfRange, OUT_OF_RANGE);
COGUMI_SAME_CODE(kUnimplemented, UNIMPLEMENTED);
COGUMI_SAME_CODE(kInternal, INTERNAL);
COGUMI_SAME_CODE(kUnavailable, UNAVAILABLE);
COGUMI_SAME_CODE(kDataLoss, DATA_LOSS);
COGUMI_SAME_CODE(kUnauthenticated, UNAUTHENTICATED);
#undef COGUMI_SAME_CODE

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  absl::Status full = status;
  if (!full.GetPayload(kErrorInfoUrl)) full = WithReason(full, CodeName(full.code()));
  if (absl::IsResourceExhausted(full) && !full.GetPayload(kRetryInfoUrl)) {
    full = WithRetry(full, kDefaultRetrySeconds);
  }
  std::string message =
      ToValidUtf8(TruncateUtf8({full.message().data(), full.message().size()}, kMaxMessageBytes));
  google::rpc::Status details;
  details.set_code(static_cast<int>(full.code()));
  details.set_message(message);
  full.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) {
    auto* any = details.add_details();
    any->set_type_url(std::string(url));
    any->set_value(std::string(payload));
  });
  return grpc::Status(static_cast<grpc::StatusCode>(full.code()), message,
                      details.SerializeAsString());
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const int code = status.error_code();
  const bool known = code > 0 && code <= static_cast<int>(absl::StatusCode::kUnauthenticated);
  absl::Status result(known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown,
                      status.error_message());
  google::rpc::Status details;
  if (!status.error_details().empty() && details.ParseFromString(status.error_details())) {
    for (const auto& any : details.details()) {
      result.SetPayload(any.type_url(), absl::Cord(any.value()));
    }
  }
  return result;
}

}  // namespace cogumi::services
