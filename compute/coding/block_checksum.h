#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

// XXH3-64, the checksum of a stream, in the two parts that its definition has for long inputs
// (xxHash's specification, "XXH3 - Long input"): sums over blocks of 1,024 bytes, which a device
// can form side by side, and a chain over these sums.
namespace quantd::compute {

inline constexpr int64_t kChecksumBlock = 1024;
inline constexpr int64_t kChecksumStripe = 64;
inline constexpr int kChecksumLanes = 8;
// Lane i of stripe s of a block is multiplied by word s + i.
inline constexpr std::array<uint64_t, 24> kChecksumSecret = {
    0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de, 0x1f67b3b7a4a44072,
    0x78e5c0cc4ee679cb, 0x2172ffcc7dd05a82, 0x8e2443f7744608b8, 0x4c263a81e69035e0,
    0xcb00c391bb52283c, 0xa32e531b8b65d088, 0x4ef90da297486471, 0xd8acdea946ef1938,
    0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a, 0x647378d9c97e9fc8,
    0xc3ebd33483acc5ea, 0xeb6313faffa081c5, 0x49daf0b751dd0d17, 0x9e68d429265516d3,
    0xfca1477d58be162b, 0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af};

// Blocks that are summed of this many bytes (> kChecksumBlock); between 1 and kChecksumBlock bytes
// are left over.
inline constexpr int64_t ChecksumBlocks(int64_t bytes) { return (bytes - 1) / kChecksumBlock; }

// `sums`: kChecksumLanes of each block; lane i is the sum over stripes of low(key) high(key) of the
// lane's 64 bits ^ secret, and of the bits of lane i ^ 1 themselves. `tail`: all bytes from
// kChecksumStripe before the end of the last block.
uint64_t FinishChecksum(int64_t bytes, absl::Span<const uint64_t> sums,
                        absl::Span<const std::byte> tail);

}  // namespace quantd::compute
