#include "server/service/tenant_calls.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/errors/error.h"

namespace quantd::server {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1'700'000'000);

// Messages that are taken at one moment before one is refused.
int TakenAt(TenantCalls& calls, const std::string& tenant, absl::Time now) {
  int taken = 0;
  while (taken < 100'000 && calls.TakeMessage(tenant, now).ok()) ++taken;
  return taken;
}

TEST(TenantCallsTest, TwoSecondsOfMessagesMayComeAtOnceThenTheRate) {
  TenantCalls calls;
  calls.SetLimits({.calls = 1, .messages_per_second = 100}, {});
  EXPECT_EQ(TakenAt(calls, "a", kStart), 200);
  EXPECT_EQ(TakenAt(calls, "a", kStart), 0);
  EXPECT_EQ(TakenAt(calls, "a", kStart + absl::Milliseconds(500)), 50);
  EXPECT_EQ(TakenAt(calls, "a", kStart + absl::Hours(1)), 200);
}

TEST(TenantCallsTest, ARefusalSaysWhenTheNextMessageMayCome) {
  TenantCalls calls;
  calls.SetLimits({.calls = 1, .messages_per_second = 4}, {});
  TakenAt(calls, "a", kStart);
  const absl::Status refused = calls.TakeMessage("a", kStart);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  const ErrorDetails details = DetailsOf(refused);
  EXPECT_EQ(details.reason, "MESSAGE_RATE");
  EXPECT_EQ(details.subject, "tenants/a");
  EXPECT_EQ(details.retry_after, absl::Milliseconds(250));
  EXPECT_FALSE(calls.TakeMessage("a", kStart + absl::Milliseconds(249)).ok());
  EXPECT_TRUE(calls.TakeMessage("a", kStart + absl::Milliseconds(251)).ok());
}

TEST(TenantCallsTest, AClockThatGoesBackGivesNothing) {
  TenantCalls calls;
  calls.SetLimits({.calls = 1, .messages_per_second = 10}, {});
  TakenAt(calls, "a", kStart);
  EXPECT_EQ(TakenAt(calls, "a", kStart - absl::Hours(1)), 0);
  EXPECT_EQ(TakenAt(calls, "a", kStart + absl::Seconds(1)), 10);
}

TEST(TenantCallsTest, TenantsHaveLimitsOfTheirOwn) {
  TenantCalls calls;
  calls.SetLimits({.calls = 2, .messages_per_second = 10},
                  {{"big", {.calls = 3, .messages_per_second = 20}}});
  EXPECT_EQ(TakenAt(calls, "small", kStart), 20);
  EXPECT_EQ(TakenAt(calls, "big", kStart), 40);
  for (const auto& [tenant, most] : {std::pair<std::string, int>{"small", 2}, {"big", 3}}) {
    for (int i = 0; i < most; ++i) EXPECT_TRUE(calls.Open(tenant).ok());
    EXPECT_EQ(DetailsOf(calls.Open(tenant)).reason, "TOO_MANY_CALLS");
    EXPECT_EQ(calls.OpenCalls()[tenant], most);
    calls.Close(tenant);
    EXPECT_TRUE(calls.Open(tenant).ok());
  }
}

TEST(TenantCallsTest, NewLimitsHoldFromThenOn) {
  TenantCalls calls;
  calls.SetLimits({.calls = 2, .messages_per_second = 10}, {});
  EXPECT_TRUE(calls.Open("a").ok());
  EXPECT_TRUE(calls.Open("a").ok());
  calls.SetLimits({.calls = 1, .messages_per_second = 10}, {});
  calls.Close("a");
  EXPECT_FALSE(calls.Open("a").ok());
  calls.Close("a");
  EXPECT_TRUE(calls.Open("a").ok());
}

}  // namespace
}  // namespace quantd::server
