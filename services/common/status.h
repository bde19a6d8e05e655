// The one mapping between absl::Status and grpc::Status, with google.rpc details.
//
// Details travel as payloads of the absl::Status and are packed into grpc-status-details-bin
// (google.rpc.Status): ErrorInfo {reason, domain "cogumi"} always, BadRequest when a field is to
// blame, RetryInfo when a retry makes sense.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace grpc {
class Status;
}  // namespace grpc

namespace cogumi::services {

inline constexpr char kErrorDomain[] = "cogumi";

// INVALID_ARGUMENT with the field as payload; the message becomes "field: message".
absl::Status FieldError(std::string_view field, std::string_view message);

// UNIMPLEMENTED by name: "field is not built yet".
absl::Status NotBuilt(std::string_view field);

// Adds (or replaces) one detail; an OK status is returned as it is.
absl::Status WithField(absl::Status status, std::string_view field);
// Upper-case reason of ErrorInfo, for example "QUEUE_FULL"; the code's name when none was set.
absl::Status WithReason(absl::Status status, std::string_view reason);
absl::Status WithRetry(absl::Status status, double seconds);

// Empty when there is none.
std::string FieldOf(const absl::Status& status);
// The code's name when none was set.
std::string ReasonOf(const absl::Status& status);
std::optional<double> RetryAfterOf(const absl::Status& status);

// "OK", "INVALID_ARGUMENT", ...
std::string_view CodeName(absl::StatusCode code);

// RESOURCE_EXHAUSTED without a retry payload gets one of a second. The message is cut at 1 KiB and
// made valid UTF-8: HTTP/2 headers have a limit.
grpc::Status ToGrpc(const absl::Status& status);
// The details come back as payloads, whoever sent them; a code outside the range is UNKNOWN.
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace cogumi::services
