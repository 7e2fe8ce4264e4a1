#include "compute/coding/block_checksum.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <cstring>
#include <random>
#include <vector>

namespace quantd::compute {
namespace {

// As block_checksum.h says a device does it.
std::vector<uint64_t> SumBlocks(const std::vector<std::byte>& bytes) {
  std::vector<uint64_t> sums;
  for (int64_t block = 0; block < ChecksumBlocks(bytes.size()); ++block) {
    uint64_t lanes[kChecksumLanes] = {};
    for (int64_t stripe = 0; stripe < kChecksumBlock / kChecksumStripe; ++stripe) {
      for (int i = 0; i < kChecksumLanes; ++i) {
        uint64_t value = 0;
        std::memcpy(&value,
                    bytes.data() + block * kChecksumBlock + stripe * kChecksumStripe + 8 * i, 8);
        const uint64_t key = value ^ kChecksumSecret[stripe + i];
        lanes[i ^ 1] += value;
        lanes[i] += (key & 0xffffffff) * (key >> 32);
      }
    }
    sums.insert(sums.end(), lanes, lanes + kChecksumLanes);
  }
  return sums;
}

TEST(BlockChecksumTest, IsXxh3) {
  std::mt19937 generator(1);
  for (const int64_t size : {1025, 1028, 1087, 1088, 1089, 2048, 2052, 5000, 65536, 100'004}) {
    std::vector<std::byte> bytes(size);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(generator());
    const int64_t tail = ChecksumBlocks(size) * kChecksumBlock - kChecksumStripe;
    EXPECT_EQ(FinishChecksum(size, SumBlocks(bytes), absl::MakeConstSpan(bytes).subspan(tail)),
              XXH3_64bits(bytes.data(), bytes.size()))
        << size;
  }
}

}  // namespace
}  // namespace quantd::compute
