#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

// The entropy code of compute/coding on the device: a warp encodes or decodes a segment, a lane of
// the code is a lane of the warp. All pointers are to the device.
namespace quantd::compute {

// One token's step, as TokenStep has it, in 16 bytes; the frequency follows from `last`.
struct RansStep {
  uint64_t reciprocal;
  uint32_t last;  // the largest state that gives no word away
  uint32_t offset;
};

inline constexpr int kRansClasses = 16;

struct RansModel {
  int precision = 0;
  const RansStep* steps = nullptr;           // of all classes, token by token
  int first_step[kRansClasses] = {};         // of each class
  int split[kRansClasses] = {};              // its alphabet
  const uint8_t* class_of_column = nullptr;  // cols
  int64_t cols = 0;
};

// Encodes `count` values, none of them an escape, in segments of `segment_values`. Segment s ends
// at words[(s + 1) * RansCapacity(segment_values)] and has sizes[s] words.
constexpr int64_t RansCapacity(int64_t segment_values) { return 2 * segment_values + 64; }
cudaError_t LaunchRansEncode(cudaStream_t stream, const RansModel& model, const int32_t* values,
                             int64_t count, int64_t segment_values, uint16_t* words,
                             uint32_t* sizes);

// The words of all segments behind one another: segment s from offsets[s] to offsets[s + 1].
cudaError_t LaunchRansGather(cudaStream_t stream, int64_t segments, int64_t segment_values,
                             const uint16_t* words, const uint32_t* offsets, uint16_t* to);

// A token of DecodingTables, in 16 bytes. The escape has kRansEscape raw bits.
inline constexpr uint32_t kRansEscape = 255;
struct RansToken {
  uint32_t start;
  uint32_t frequency;
  uint32_t base;
  uint32_t raw_bits;
};
struct RansTables {
  int precision = 0;
  int64_t cols = 0;
  const uint8_t* class_of_column = nullptr;  // cols
  const uint16_t* token_of_slot = nullptr;   // of class k: from k << precision on
  const RansToken* tokens = nullptr;
};
// Decodes `count` values: segment s has the words from offsets[2 s] to offsets[2 s + 2], at least
// 64 of them, and no escapes; faults[s] is a SegmentFault.
cudaError_t LaunchRansDecode(cudaStream_t stream, const RansTables& tables, const uint16_t* words,
                             const uint32_t* offsets, int64_t count, int64_t segment_values,
                             int32_t* values, int* faults);

// Sums of blocks as compute/coding/block_checksum.h says: blocks x 8.
struct ChecksumSecret {
  uint64_t words[24];
};
cudaError_t LaunchChecksumBlocks(cudaStream_t stream, const ChecksumSecret& secret, int64_t blocks,
                                 const void* bytes, uint64_t* sums);

}  // namespace quantd::compute
