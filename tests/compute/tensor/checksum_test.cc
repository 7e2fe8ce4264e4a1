#include "compute/tensor/checksum.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace quantd::compute {
namespace {

// The definition, bit by bit: reflected polynomial 0x82f63b78.
uint32_t BitwiseCrc32c(absl::string_view data) {
  uint32_t crc = ~uint32_t{0};
  for (const char c : data) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82f63b78u : 0u);
  }
  return ~crc;
}

std::string RandomBytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  return bytes;
}

TEST(Crc32cTest, MatchesPublishedValues) {
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(Crc32c(""), 0u);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aau);  // RFC 3720, B.4
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43u);
}

TEST(Crc32cTest, MatchesTheDefinitionAtEverySizeAndAlignment) {
  const std::string bytes = RandomBytes(600, 1);
  for (size_t start = 0; start < 16; ++start) {
    for (size_t size = 0; start + size <= bytes.size(); size += 7) {
      const absl::string_view piece = absl::string_view(bytes).substr(start, size);
      ASSERT_EQ(Crc32c(piece), BitwiseCrc32c(piece)) << start << " " << size;
    }
  }
}

TEST(Crc32cTest, ContinuesWhereThePreviousPieceEnded) {
  const std::string bytes = RandomBytes(1000, 2);
  const absl::string_view all = bytes;
  for (size_t cut = 0; cut <= bytes.size(); cut += 100) {
    EXPECT_EQ(Crc32c(all.substr(cut), Crc32c(all.substr(0, cut))), Crc32c(all));
  }
}

TEST(Sha256Test, MatchesPublishedValues) {
  EXPECT_EQ(ToHex(Sha256::Of("")),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(ToHex(Sha256::Of("abc")),  // FIPS 180-4 example
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Sha256Test, PiecesMakeTheWhole) {
  const std::string bytes = RandomBytes(1000, 3);
  const absl::string_view all = bytes;
  Sha256 sha;
  for (size_t start = 0; start < bytes.size(); start += 130) sha.Update(all.substr(start, 130));
  EXPECT_EQ(sha.Digest(), Sha256::Of(bytes));
  EXPECT_EQ(ToBytes(sha.Digest()).size(), 32u);
}

TEST(Sha256Test, DigestDoesNotEndTheSum) {
  Sha256 sha;
  sha.Update("ab");
  EXPECT_EQ(sha.Digest(), Sha256::Of("ab"));
  sha.Update("c");
  EXPECT_EQ(sha.Digest(), Sha256::Of("abc"));
  sha.Reset();
  EXPECT_EQ(sha.Digest(), Sha256::Of(""));
}

TEST(Sha256Test, CopiesGoTheirOwnWay) {
  Sha256 first;
  first.Update("a");
  Sha256 second = first;
  first.Update("b");
  second.Update("c");
  EXPECT_EQ(first.Digest(), Sha256::Of("ab"));
  EXPECT_EQ(second.Digest(), Sha256::Of("ac"));
  second = first;
  EXPECT_EQ(second.Digest(), Sha256::Of("ab"));
}

}  // namespace
}  // namespace quantd::compute
