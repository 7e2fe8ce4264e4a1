#include "server/config/address.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quantd::server {
namespace {

using ::testing::HasSubstr;

TEST(AddressTest, ParsesAndPrints) {
  for (const char* text : {"127.0.0.1:7741", "0.0.0.0:0", "[::1]:65535", "[::]:7741",
                           "localhost:7741", "quantd.example.org:443"}) {
    const auto address = ParseAddress(text);
    ASSERT_TRUE(address.ok()) << address.status();
    EXPECT_EQ(address->ToString(), text);
  }
  EXPECT_EQ(ParseAddress("[fe80::1]:80")->host, "fe80::1");
  EXPECT_EQ(ParseAddress("[fe80::1]:80")->port, 80);
}

TEST(AddressTest, RefusesWhatIsNoAddressAndRepeatsIt) {
  for (const char* text :
       {"", ":", "host", "host:", ":80", "host:65536", "host:-1", "host:+1", "host:8 0", "host:80x",
        "::1:80", "[::1]", "[::1:80", "[zz]:80", "[]:80", "ho st:80", "http://host:80", "a/b:80"}) {
    const auto address = ParseAddress(text);
    EXPECT_EQ(address.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(address.status().message()), HasSubstr(text));
  }
}

TEST(AddressTest, KnowsLoopback) {
  for (const char* text :
       {"127.0.0.1:1", "127.255.0.9:1", "[::1]:1", "localhost:1", "LOCALHOST:1"}) {
    EXPECT_TRUE(ParseAddress(text)->IsLoopback()) << text;
  }
  for (const char* text : {"0.0.0.0:1", "128.0.0.1:1", "10.0.0.1:1", "[::]:1", "[::2]:1",
                           "example.org:1", "localhost.example.org:1", "127.example.org:1"}) {
    EXPECT_FALSE(ParseAddress(text)->IsLoopback()) << text;
  }
}

}  // namespace
}  // namespace quantd::server
