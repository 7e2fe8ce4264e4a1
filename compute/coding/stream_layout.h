#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/coding/integer_coder.h"
#include "compute/coding/segment_fault.h"
#include "compute/coding/stream_header.h"

// What decoders share, wherever they run: everything of a stream but the words of its segments.
namespace quantd::compute {

// The tables of all classes, to look up by column and by slot. Tokens of all classes have one
// numbering.
struct DecodingTables {
  struct Token {
    uint16_t start = 0;
    uint16_t frequency = 0;
  };
  struct Meaning {
    uint32_t base = 0;  // zigzag
    uint8_t raw_bits = 0;
    bool is_escape = false;
    bool is_direct = false;
  };
  int precision = 0;
  std::vector<uint8_t> class_of_column;  // and as many again as a round has lanes
  std::vector<uint16_t> token_of_slot;   // of class k: from k << precision on
  std::vector<Token> tokens;
  std::vector<Meaning> meanings;  // of each token
};

struct StreamLayout {
  StreamHeader header;
  DecodingTables tables;  // empty for no values

  // Of the first word in the stream.
  int64_t words_begin() const {
    return static_cast<int64_t>(sizeof(header)) + ClassBytes(header.classes, header.cols);
  }
};

// Checks sizes, offsets and tables of a stream of untrusted origin that must hold rows * cols
// values. DATA_LOSS says which part does not fit. Thread-safe.
absl::StatusOr<StreamLayout> ReadLayout(const CodedIntegersView& coded, int64_t rows, int64_t cols);

absl::Status StatusOf(SegmentFault fault, int64_t index);
// OK where the decoded values have the checksum of the header.
absl::Status CheckSum(const StreamHeader& header, uint64_t checksum);

}  // namespace quantd::compute
