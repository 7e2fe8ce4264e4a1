#include "server/store/page_token.h"

#include "gtest/gtest.h"

namespace quantd::server {
namespace {

TEST(PageTokenTest, RoundTrips) {
  const PageEnd end{.time_us = -123456789, .id = "layer.0 \xff/x"};
  const auto parsed = ParsePageToken("jobs/acme", MakePageToken("jobs/acme", end));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->time_us, end.time_us);
  EXPECT_EQ(parsed->id, end.id);
}

TEST(PageTokenTest, IsBoundToItsList) {
  const std::string token = MakePageToken("jobs/acme", {.time_us = 1, .id = "j"});
  for (const char* scope : {"jobs/acm", "jobs/other", "statistics/acme", ""}) {
    EXPECT_EQ(ParsePageToken(scope, token).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(PageTokenTest, EveryChangedCharacterIsNoticed) {
  const std::string token = MakePageToken("jobs/acme", {.time_us = 1'700'000'000, .id = "job-17"});
  for (size_t i = 0; i < token.size(); ++i) {
    std::string changed = token;
    changed[i] = changed[i] == 'A' ? 'B' : 'A';
    EXPECT_FALSE(ParsePageToken("jobs/acme", changed).ok()) << i;
  }
  for (size_t length = 0; length < token.size(); ++length) {
    EXPECT_FALSE(ParsePageToken("jobs/acme", token.substr(0, length)).ok()) << length;
  }
}

}  // namespace
}  // namespace quantd::server
