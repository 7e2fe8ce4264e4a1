#include "client/cpp/shared_region.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace quantd::client {
namespace {

TEST(SharedRegionTest, OnlyThisHostSeesIt) {
  for (const char* address : {"localhost:7741", "127.0.0.1:7741", "127.1.2.3:1", "[::1]:7741",
                              "unix:/run/quantd.sock", "unix-abstract:quantd"}) {
    EXPECT_TRUE(CheckSameHost(address).ok()) << address;
  }
  for (const char* address : {"", "gpu-7:7741", "10.0.0.1:7741", "[::2]:7741", "0.0.0.0:7741",
                              "localhost.example:7741", "127.0.0.1.example:7741"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckSameHost(address))) << address;
  }
}

std::string ContentOf(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(SharedRegionTest, HoldsBytesUnderItsNameUntilItIsUnlinked) {
  std::filesystem::path path;
  {
    const auto region = SharedRegion::Create("acme", 8);
    ASSERT_TRUE(region.ok()) << region.status();
    EXPECT_TRUE(absl::StartsWith((*region)->name(), "quantd.acme.")) << (*region)->name();
    path = std::filesystem::path("/dev/shm") / (*region)->name();
    EXPECT_TRUE((*region)->Write(2, "abc").ok());
    EXPECT_EQ(ContentOf(path), std::string("\0\0abc\0\0\0", 8));
    constexpr auto kOwner =
        std::filesystem::perms::owner_read | std::filesystem::perms::owner_write;
    EXPECT_EQ(std::filesystem::status(path).permissions(), kOwner);
    (*region)->Unlink();
    EXPECT_FALSE(std::filesystem::exists(path));
    EXPECT_TRUE((*region)->Write(0, "still").ok());
    const auto other = SharedRegion::Create("acme", 8);
    ASSERT_TRUE(other.ok()) << other.status();
    path = std::filesystem::path("/dev/shm") / (*other)->name();
    EXPECT_TRUE(std::filesystem::exists(path));
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace quantd::client
