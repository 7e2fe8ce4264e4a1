#include "server/errors/error.h"

#include "gtest/gtest.h"

namespace quantd::server {
namespace {

TEST(ErrorTest, FieldErrorsCarryFieldAndReason) {
  const absl::Status status = InvalidField("layers[0].cols", "expected 32, got 7", "BAD_COLS");
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_EQ(status.message(), "layers[0].cols: expected 32, got 7");
  const ErrorDetails details = DetailsOf(status);
  EXPECT_EQ(details.reason, "BAD_COLS");
  EXPECT_EQ(details.field, "layers[0].cols");
  EXPECT_FALSE(details.retry_after.has_value());
}

TEST(ErrorTest, ReasonFallsBackToTheCode) {
  EXPECT_EQ(DetailsOf(absl::NotFoundError("x")).reason, "NOT_FOUND");
  EXPECT_FALSE(DetailsOf(absl::NotFoundError("x")).field.has_value());
}

TEST(ErrorTest, QuotaSaysWhoAndWhen) {
  const ErrorDetails details =
      DetailsOf(QuotaExceeded("TOO_MANY", "tenants/a", "4 of 4", absl::Milliseconds(1500)));
  EXPECT_EQ(details.reason, "TOO_MANY");
  EXPECT_EQ(details.subject, "tenants/a");
  EXPECT_EQ(details.retry_after, absl::Milliseconds(1500));
}

TEST(ErrorTest, AnnotateKeepsCodeAndPayloads) {
  const absl::Status status =
      Annotate(FailedPrecondition("NOT_SEALED", "statistics/s", "still open"), "job j");
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_EQ(status.message(), "job j: statistics/s: still open");
  EXPECT_EQ(DetailsOf(status).precondition_type, "NOT_SEALED");
  EXPECT_TRUE(Annotate(absl::OkStatus(), "x").ok());
}

}  // namespace
}  // namespace quantd::server
