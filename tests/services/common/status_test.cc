#include "services/common/status.h"

#include <gtest/gtest.h>
#include <grpcpp/support/status.h>

#include <limits>
#include <string>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace cogumi::services {
namespace {

google::rpc::Status DetailsOf(const grpc::Status& status) {
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  return details;
}

TEST(StatusTest, EveryCodeGoesThereAndBack) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    const grpc::Status wire = ToGrpc(status);
    EXPECT_EQ(static_cast<int>(wire.error_code()), code);
    EXPECT_EQ(wire.error_message(), "why");
    EXPECT_EQ(DetailsOf(wire).code(), code);
    const absl::Status back = FromGrpc(wire);
    EXPECT_EQ(static_cast<int>(back.code()), code);
    EXPECT_EQ(back.message(), "why");
  }
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
  EXPECT_TRUE(FromGrpc(grpc::Status::OK).ok());
  EXPECT_EQ(FromGrpc(grpc::Status(grpc::StatusCode::DO_NOT_USE, "x")).code(),
            absl::StatusCode::kUnknown);
}

TEST(StatusTest, FieldErrorsCarryTheField) {
  const absl::Status status = FromGrpc(ToGrpc(FieldError("sampling.top_k", "-1 is below 0")));
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_EQ(FieldOf(status), "sampling.top_k");
  EXPECT_EQ(ReasonOf(status), "INVALID_FIELD");
  EXPECT_EQ(status.message(), "sampling.top_k: -1 is below 0");
}

TEST(StatusTest, ErrorInfoIsAlwaysThere) {
  const google::rpc::Status details = DetailsOf(ToGrpc(absl::InternalError("broken")));
  ASSERT_EQ(details.details_size(), 1);
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(details.details(0).UnpackTo(&info));
  EXPECT_EQ(info.reason(), "INTERNAL");
  EXPECT_EQ(info.domain(), "cogumi");
}

TEST(StatusTest, ExhaustionSaysWhenToRetry) {
  EXPECT_EQ(RetryAfterOf(FromGrpc(ToGrpc(absl::ResourceExhaustedError("full")))), 1.0);
  const absl::Status status = WithRetry(absl::ResourceExhaustedError("full"), 2.5);
  EXPECT_NEAR(*RetryAfterOf(FromGrpc(ToGrpc(status))), 2.5, 1e-6);
  EXPECT_FALSE(RetryAfterOf(FromGrpc(ToGrpc(absl::InternalError("x")))).has_value());
  const double huge = std::numeric_limits<double>::infinity();
  EXPECT_EQ(RetryAfterOf(WithRetry(absl::ResourceExhaustedError("full"), huge)), 86400.0);
  EXPECT_EQ(RetryAfterOf(WithRetry(absl::ResourceExhaustedError("full"), -1)), 0.0);
}

TEST(StatusTest, UnbuiltFeaturesAreNamed) {
  const absl::Status status = NotBuilt("grammar");
  EXPECT_TRUE(absl::IsUnimplemented(status));
  EXPECT_EQ(FieldOf(status), "grammar");
}

TEST(StatusTest, MessagesAreShortAndValid) {
  const grpc::Status wire = ToGrpc(absl::InternalError(std::string(5000, 'x') + "\xFF"));
  EXPECT_EQ(wire.error_message().size(), 1024u);
  EXPECT_EQ(ToGrpc(absl::InternalError("a\xFF")).error_message(), "a\xEF\xBF\xBD");
}

TEST(StatusTest, OkStaysOk) {
  EXPECT_TRUE(WithField(absl::OkStatus(), "x").ok());
  EXPECT_TRUE(WithReason(absl::OkStatus(), "X").ok());
  EXPECT_TRUE(WithRetry(absl::OkStatus(), 1).ok());
}

TEST(StatusTest, GarbageInTheDetailsIsNoHarm) {
  const absl::Status status =
      FromGrpc(grpc::Status(grpc::StatusCode::INTERNAL, "x", "\xFF\xFF\xFFgarbage"));
  EXPECT_TRUE(absl::IsInternal(status));
  EXPECT_EQ(FieldOf(status), "");
}

}  // namespace
}  // namespace cogumi::services
