#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "compute/coding/coding_model.h"
#include "compute/coding/integer_coder.h"

// What encoders share, wherever they run, besides the words of the segments.
namespace quantd::compute {

// Values of a segment of `count` values of this model: integer_coder.h says why.
int64_t SegmentValues(const CodingModel& model, int64_t count);

// Everything up to the first segment: header, classes and tables. `checksum` is that of the values.
CodedIntegers BeginStream(const CodingModel& model, int64_t count, int64_t segment_values,
                          uint64_t checksum);

// OUT_OF_RANGE where 32 bits do not count the words of all segments.
absl::Status TooManyWords(int64_t values);

}  // namespace quantd::compute
