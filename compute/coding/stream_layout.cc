#include "compute/coding/stream_layout.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/coding/coding_model.h"
#include "compute/coding/frequency_table.h"
#include "compute/coding/token_alphabet.h"

namespace quantd::compute {
namespace {

template <typename... Parts>
absl::Status Lost(const Parts&... parts) {
  return absl::DataLossError(absl::StrCat(parts...));
}

absl::StatusOr<StreamHeader> ParseHeader(const CodedIntegersView& coded, int64_t rows,
                                         int64_t cols) {
  StreamHeader header;
  if (coded.stream.size() < sizeof(header)) {
    return Lost("z_stream: expected a header of ", sizeof(header), " bytes; got ",
                coded.stream.size(), " bytes in all");
  }
  std::memcpy(&header, coded.stream.data(), sizeof(header));
  if (std::memcmp(header.magic, kStreamMagic, sizeof(kStreamMagic)) != 0) {
    return Lost("z_stream: expected a header of version QDZ1");
  }
  if (header.precision < kMinPrecision || header.precision > kMaxPrecision) {
    return Lost("z_stream: expected a precision in ", kMinPrecision, "..", kMaxPrecision, "; got ",
                header.precision);
  }
  if (header.lanes != kLanes) {
    return Lost("z_stream: expected ", kLanes, " lanes; got ", header.lanes);
  }
  if (header.segment_values < 1 || header.segment_values > kMaxSegmentValues ||
      header.segment_values % kLanes != 0) {
    return Lost("z_stream: expected a multiple of ", kLanes, " up to ", kMaxSegmentValues,
                " values a segment; got ", header.segment_values);
  }
  if (header.cols != static_cast<uint64_t>(cols) ||
      header.count != static_cast<uint64_t>(rows * cols)) {
    return Lost("z_stream: expected ", rows * cols, " values in ", cols, " columns; got ",
                header.count, " in ", header.cols);
  }
  const bool some = header.count > 0;
  if (header.classes > kMaxClasses || (header.classes > 0) != some) {
    return Lost("z_stream: expected ", some ? 1 : 0, "..", some ? kMaxClasses : 0, " classes; got ",
                header.classes);
  }
  return header;
}

// Offsets rise to what is there, and each segment has at least its states.
absl::Status CheckOffsets(const CodedIntegersView& coded, const StreamHeader& header) {
  const absl::Span<const uint32_t> offsets = coded.segment_offsets;
  const uint64_t segments = (header.count + header.segment_values - 1) / header.segment_values;
  if (offsets.size() != 2 * (segments + 1)) {
    return Lost("z_segment_offset: expected ", segments + 1, " pairs for ", header.count,
                " values; got ", offsets.size(), " numbers");
  }
  if (offsets[0] != 0 || offsets[1] != 0) {
    return Lost("z_segment_offset: expected 0, 0 first; got ", offsets[0], ", ", offsets[1]);
  }
  for (uint64_t s = 0; s < segments; ++s) {
    const uint32_t* pair = offsets.data() + 2 * s;
    const bool rises = pair[2] >= pair[0] && pair[2] - pair[0] >= kStateWords * kLanes &&
                       pair[3] >= pair[1] && pair[3] - pair[1] <= header.segment_values;
    if (!rises) {
      return Lost("z_segment_offset: segment ", s, " cannot reach from ", pair[0], ", ", pair[1],
                  " to ", pair[2], ", ", pair[3]);
    }
  }
  const int64_t bytes = static_cast<int64_t>(sizeof(header)) +
                        ClassBytes(header.classes, header.cols) +
                        int64_t{sizeof(uint16_t)} * offsets[2 * segments];
  if (static_cast<int64_t>(coded.stream.size()) != bytes) {
    return Lost("z_stream: expected ", bytes, " bytes; got ", coded.stream.size());
  }
  if (offsets[2 * segments + 1] != coded.escapes.size()) {
    return Lost("z_escape: expected ", offsets[2 * segments + 1], " values; got ",
                coded.escapes.size());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<uint8_t>> ReadClasses(const StreamHeader& header,
                                                 absl::Span<const std::byte> nibbles) {
  // A round may begin in any column and go over the end of a row, more than once if it is short.
  std::vector<uint8_t> classes(header.cols + kLanes);
  for (uint32_t c = 0; header.classes > 1 && c < header.cols; ++c) {
    classes[c] = static_cast<uint8_t>(nibbles[c / 2]) >> (c % 2 * 4) & 15;
    if (classes[c] >= header.classes) {
      return Lost("z_stream: expected a class below ", header.classes, " for column ", c, "; got ",
                  classes[c]);
    }
  }
  for (size_t c = header.cols; c < classes.size(); ++c) classes[c] = classes[c - header.cols];
  return classes;
}

void Add(const TokenAlphabet& alphabet, absl::Span<const uint16_t> frequencies,
         DecodingTables& tables) {
  uint32_t start = 0;
  for (uint32_t t = 0; t < frequencies.size(); ++t) {
    tables.token_of_slot.insert(tables.token_of_slot.end(), frequencies[t],
                                static_cast<uint16_t>(tables.tokens.size()));
    const bool is_escape = t == TokenAlphabet::kEscape;
    tables.tokens.push_back({.start = static_cast<uint16_t>(start), .frequency = frequencies[t]});
    tables.meanings.push_back({.base = is_escape ? 0 : alphabet.Base(t),
                               .raw_bits = static_cast<uint8_t>(alphabet.RawBits(t)),
                               .is_escape = is_escape,
                               .is_direct = alphabet.IsDirect(t)});
    start += frequencies[t];
  }
}

absl::StatusOr<DecodingTables> ReadTables(const CodedIntegersView& coded,
                                          const StreamHeader& header) {
  const auto frequencies = SplitTables(coded.frequencies, header.classes, header.precision);
  if (!frequencies.ok()) return frequencies.status();
  absl::StatusOr<std::vector<uint8_t>> classes =
      ReadClasses(header, coded.stream.subspan(sizeof(header) + header.classes));
  if (!classes.ok()) return classes.status();
  DecodingTables tables;
  tables.precision = header.precision;
  tables.class_of_column = *std::move(classes);
  for (size_t k = 0; k < frequencies->size(); ++k) {
    const auto split = static_cast<int>(coded.stream[sizeof(header) + k]);
    if (split < TokenAlphabet::kMinSplit || split > TokenAlphabet::kMaxSplit) {
      return Lost("z_stream: expected a split in ", TokenAlphabet::kMinSplit, "..",
                  TokenAlphabet::kMaxSplit, " for class ", k, "; got ", split);
    }
    const TokenAlphabet alphabet(split);
    if ((*frequencies)[k].size() > alphabet.size()) {
      return Lost("z_frequency: expected at most ", alphabet.size(), " tokens for class ", k,
                  "; got ", (*frequencies)[k].size());
    }
    Add(alphabet, (*frequencies)[k], tables);
  }
  return tables;
}

}  // namespace

absl::StatusOr<StreamLayout> ReadLayout(const CodedIntegersView& coded, int64_t rows,
                                        int64_t cols) {
  const absl::StatusOr<StreamHeader> header = ParseHeader(coded, rows, cols);
  if (!header.ok()) return header.status();
  if (absl::Status status = CheckOffsets(coded, *header); !status.ok()) return status;
  StreamLayout layout = {.header = *header, .tables = {}};
  if (header->count == 0 && coded.frequencies.empty()) return layout;
  absl::StatusOr<DecodingTables> tables = ReadTables(coded, *header);
  if (!tables.ok()) return tables.status();
  layout.tables = *std::move(tables);
  return layout;
}

absl::Status StatusOf(SegmentFault fault, int64_t index) {
  switch (fault) {
    case SegmentFault::kNone:
      return absl::OkStatus();
    case SegmentFault::kEndsEarly:
      return Lost("z_stream: segment ", index, " ends early");
    case SegmentFault::kHasWordsLeft:
      return Lost("z_stream: segment ", index, " has words left over");
    case SegmentFault::kWrongEscapes:
      return Lost("z_stream: segment ", index, " does not take the escapes that it has");
    case SegmentFault::kWrongState:
      return Lost("z_stream: segment ", index,
                  " does not end in the state that encoders begin with");
  }
  return absl::InternalError("z_stream: unknown fault");
}

absl::Status CheckSum(const StreamHeader& header, uint64_t checksum) {
  if (checksum == header.checksum) return absl::OkStatus();
  return Lost("z_stream: the checksum of the decoded values does not fit");
}

}  // namespace quantd::compute
