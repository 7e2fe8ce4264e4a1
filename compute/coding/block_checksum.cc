#include "compute/coding/block_checksum.h"

#include <bit>
#include <cstring>

namespace quantd::compute {
namespace {

static_assert(std::endian::native == std::endian::little, "the checksum reads little-endian words");

// The names are xxHash's.
constexpr uint64_t kPrime32[] = {0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D};
constexpr uint64_t kPrime64[] = {0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9,
                                 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5};
constexpr size_t kSecretBytes = sizeof(kChecksumSecret);
constexpr size_t kLastStripeSecret = kSecretBytes - kChecksumStripe - 7;
constexpr size_t kMergeSecret = 11;

using Lanes = std::array<uint64_t, kChecksumLanes>;

uint64_t Read(const void* from, size_t offset) {
  uint64_t value = 0;
  std::memcpy(&value, static_cast<const std::byte*>(from) + offset, sizeof(value));
  return value;
}

uint64_t Secret(size_t offset) { return Read(kChecksumSecret.data(), offset); }

void AddStripe(const std::byte* stripe, size_t secret, Lanes& lanes) {
  for (size_t i = 0; i < lanes.size(); ++i) {
    const uint64_t value = Read(stripe, 8 * i);
    const uint64_t key = value ^ Secret(secret + 8 * i);
    lanes[i ^ 1] += value;
    lanes[i] += (key & 0xffffffff) * (key >> 32);
  }
}

void Scramble(Lanes& lanes) {
  for (size_t i = 0; i < lanes.size(); ++i) {
    const uint64_t mixed = lanes[i] ^ (lanes[i] >> 47) ^ Secret(kSecretBytes - 64 + 8 * i);
    lanes[i] = mixed * kPrime32[0];
  }
}

uint64_t MultiplyAndFold(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t Merge(const Lanes& lanes, uint64_t bytes) {
  uint64_t hash = bytes * kPrime64[0];
  for (size_t i = 0; i < lanes.size(); i += 2) {
    hash += MultiplyAndFold(lanes[i] ^ Secret(kMergeSecret + 8 * i),
                            lanes[i + 1] ^ Secret(kMergeSecret + 8 * i + 8));
  }
  hash ^= hash >> 37;
  hash *= 0x165667919E3779F9;
  return hash ^ (hash >> 32);
}

}  // namespace

uint64_t FinishChecksum(int64_t bytes, absl::Span<const uint64_t> sums,
                        absl::Span<const std::byte> tail) {
  Lanes lanes = {kPrime32[2], kPrime64[0], kPrime64[1], kPrime64[2],
                 kPrime64[3], kPrime32[1], kPrime64[4], kPrime32[0]};
  for (size_t begin = 0; begin < sums.size(); begin += lanes.size()) {
    for (size_t i = 0; i < lanes.size(); ++i) lanes[i] += sums[begin + i];
    Scramble(lanes);
  }
  const int64_t left = bytes - ChecksumBlocks(bytes) * kChecksumBlock;
  for (int64_t stripe = 0; stripe < (left - 1) / kChecksumStripe; ++stripe) {
    AddStripe(tail.data() + (stripe + 1) * kChecksumStripe, 8 * static_cast<size_t>(stripe), lanes);
  }
  AddStripe(tail.data() + tail.size() - kChecksumStripe, kLastStripeSecret, lanes);
  return Merge(lanes, static_cast<uint64_t>(bytes));
}

}  // namespace quantd::compute
