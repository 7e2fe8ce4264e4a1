#include "client/cpp/errors.h"

#include <gtest/gtest.h>

#include "google/rpc/error_details.pb.h"
#include "tests/client/fake_server.h"

namespace quantd::client {
namespace {

absl::Status Convert(const grpc::Status& status) {
  return StatusFromWire(status.error_code(), status.error_message(), status.error_details());
}

google::rpc::BadRequest Violation(const std::string& field, const std::string& description) {
  google::rpc::BadRequest bad;
  auto* violation = bad.add_field_violations();
  violation->set_field(field);
  violation->set_description(description);
  return bad;
}

TEST(ErrorsTest, OkIsOk) { EXPECT_TRUE(Convert(grpc::Status::OK).ok()); }

TEST(ErrorsTest, PlainErrorsKeepCodeAndMessage) {
  const absl::Status status = Convert(grpc::Status(grpc::StatusCode::NOT_FOUND, "no such job"));
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_EQ(status.message(), "no such job");
  EXPECT_EQ(ErrorReason(status), "");
  EXPECT_FALSE(RetryDelay(status).has_value());
}

TEST(ErrorsTest, NamesTheFieldWhatWasExpectedAndWhatCame) {
  const auto bad = Violation("layers[0].cols", "expected a multiple of 32, got 100");
  google::rpc::ErrorInfo info;
  info.set_reason("DIMENSION_NOT_MULTIPLE");
  const absl::Status status = Convert(StatusWithDetails(
      grpc::StatusCode::INVALID_ARGUMENT, "expected a multiple of 32, got 100", {&bad, &info}));
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_EQ(status.message(), "field layers[0].cols: expected a multiple of 32, got 100");
  EXPECT_EQ(ErrorReason(status), "DIMENSION_NOT_MULTIPLE");
}

TEST(ErrorsTest, KeepsAMessageThatSaysMore) {
  auto bad = Violation("rows", "expected 1 or more, got 0");
  *bad.add_field_violations() = Violation("cols", "expected 1 or more, got -3").field_violations(0);
  const absl::Status status =
      Convert(StatusWithDetails(grpc::StatusCode::INVALID_ARGUMENT, "job j1 refused", {&bad}));
  EXPECT_EQ(status.message(),
            "job j1 refused: field rows: expected 1 or more, got 0; field cols: expected 1 or "
            "more, got -3");
}

TEST(ErrorsTest, QuotaSaysWhatIsUsedUpAndWhenToTryAgain) {
  google::rpc::QuotaFailure quota;
  quota.add_violations()->set_subject("tenants/a");
  quota.mutable_violations(0)->set_description("1000 jobs are stored, the limit is 1000");
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(3);
  retry.mutable_retry_delay()->set_nanos(500000000);
  const absl::Status status = Convert(
      StatusWithDetails(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many jobs", {&quota, &retry}));
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_EQ(status.message(),
            "too many jobs: quota of tenants/a: 1000 jobs are stored, the limit is 1000 (try "
            "again in 3.5s)");
  EXPECT_EQ(RetryDelay(status), absl::Milliseconds(3500));
}

TEST(ErrorsTest, PreconditionsSayWhatIsMissing) {
  google::rpc::PreconditionFailure missing;
  missing.add_violations()->set_type("STATISTIC");
  missing.mutable_violations(0)->set_subject("tenants/a/statistics/s");
  missing.mutable_violations(0)->set_description("it is not sealed");
  const absl::Status status =
      Convert(StatusWithDetails(grpc::StatusCode::FAILED_PRECONDITION, "", {&missing}));
  EXPECT_EQ(status.message(), "tenants/a/statistics/s: it is not sealed");
}

TEST(ErrorsTest, UnreadableDetailsAreIgnored) {
  const absl::Status status =
      Convert(grpc::Status(grpc::StatusCode::ABORTED, "busy", "\xff\xff not a message"));
  EXPECT_TRUE(absl::IsAborted(status));
  EXPECT_EQ(status.message(), "busy");
}

}  // namespace
}  // namespace quantd::client
