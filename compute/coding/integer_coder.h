#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compute/coding/coding_model.h"

// Entropy coding of a matrix of integers: interleaved rANS (Duda, arXiv 1311.2540) with static
// tables for classes of columns (coding_model.h), in segments that decode independently.
// docs/formats.md has the grammar, byte by byte.
//
// A segment has kLanes states that take turns, value i on lane i mod kLanes, and share one sequence
// of 16-bit words. That is one lane a thread of a GPU's warp (a warp decodes a segment, its lanes
// find their words by a prefix sum over the warp) and hides the latency of each step on a CPU. The
// segment is the unit of parallelism: as many values as fit in 64 KiB of words, because its states
// and offset cost 136 bytes, but at most 2^18, so that also a layer of low rate has several.
namespace quantd::compute {

inline constexpr int64_t kLanes = 32;
inline constexpr int64_t kMaxSegmentValues = int64_t{1} << 18;
inline constexpr int64_t kMaxSegmentBytes = int64_t{1} << 16;  // aimed at, on average

struct CodedIntegers {
  std::vector<std::byte> stream;          // header, classes, then the words of all segments
  std::vector<uint32_t> segment_offsets;  // S + 1 pairs: words and escapes before segment s
  std::vector<uint16_t> frequencies;      // of the tokens, class by class
  std::vector<int32_t> escapes;           // values too large for tokens, in order

  int64_t bytes() const {
    return static_cast<int64_t>(stream.size() + 4 * segment_offsets.size() +
                                2 * frequencies.size() + 4 * escapes.size());
  }
};

// What a reader has of it.
struct CodedIntegersView {
  absl::Span<const std::byte> stream;
  absl::Span<const uint32_t> segment_offsets;
  absl::Span<const uint16_t> frequencies;
  absl::Span<const int32_t> escapes;

  CodedIntegersView(absl::Span<const std::byte> s, absl::Span<const uint32_t> o,
                    absl::Span<const uint16_t> f, absl::Span<const int32_t> e)
      : stream(s), segment_offsets(o), frequencies(f), escapes(e) {}
  CodedIntegersView(const CodedIntegers& coded)  // NOLINT(google-explicit-constructor): as Span
      : CodedIntegersView(coded.stream, coded.segment_offsets, coded.frequencies, coded.escapes) {}
};

// `values` are rows of `cols` each. `segment_values` is a multiple of kLanes up to
// kMaxSegmentValues, or 0: as above. Deterministic. OUT_OF_RANGE where the stream would need more
// than 2^32 - 1 words. Thread-safe.
absl::StatusOr<CodedIntegers> EncodeIntegers(absl::Span<const int32_t> values, int64_t cols,
                                             int64_t segment_values = 0);
// The same with a model chosen by the values' counts; `values` is not empty.
absl::StatusOr<CodedIntegers> EncodeIntegers(absl::Span<const int32_t> values,
                                             const CodingModel& model, int64_t segment_values = 0);

// Bits that EncodeIntegers will store, all tensors together, to a fraction of a percent and without
// coding: for searches. Thread-safe.
double EstimateCodedBits(absl::Span<const int32_t> values, int64_t cols);
// Of `count` values, for which the model was chosen.
double EstimateCodedBits(const CodingModel& model, int64_t count);

// Decodes data of untrusted origin that must hold rows * cols values. Sizes, offsets and tables are
// checked before the result is allocated, and every segment has brought at least 136 bytes for its
// values. DATA_LOSS says which part does not fit; every value is covered by a checksum.
// Thread-safe.
absl::StatusOr<std::vector<int32_t>> DecodeIntegers(const CodedIntegersView& coded, int64_t rows,
                                                    int64_t cols);

}  // namespace quantd::compute
