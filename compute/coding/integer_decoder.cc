#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/coding/coding_model.h"
#include "compute/coding/frequency_table.h"
#include "compute/coding/integer_coder.h"
#include "compute/coding/stream_header.h"
#include "compute/coding/token_alphabet.h"

namespace quantd::compute {
namespace {

// A round reads at most one word a lane for its tokens and one for their raw bits.
constexpr int64_t kMaxRoundWords = 2 * kLanes;

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

int64_t WordsBegin(const StreamHeader& header) {
  return static_cast<int64_t>(sizeof(header)) + ClassBytes(header.classes, header.cols);
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
  const int64_t bytes = int64_t{sizeof(uint16_t)} * offsets[2 * segments];
  if (static_cast<int64_t>(coded.stream.size()) != WordsBegin(header) + bytes) {
    return Lost("z_stream: expected ", WordsBegin(header) + bytes, " bytes; got ",
                coded.stream.size());
  }
  if (offsets[2 * segments + 1] != coded.escapes.size()) {
    return Lost("z_escape: expected ", offsets[2 * segments + 1], " values; got ",
                coded.escapes.size());
  }
  return absl::OkStatus();
}

// The tables of all classes, to look up by column and by slot.
struct Tables {
  // A token of a class. Those of all classes have one numbering.
  struct Entry {
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
  std::vector<Entry> entries;
  std::vector<Meaning> meanings;

  void Add(const TokenAlphabet& alphabet, absl::Span<const uint16_t> frequencies) {
    uint32_t start = 0;
    for (uint32_t t = 0; t < frequencies.size(); ++t) {
      token_of_slot.insert(token_of_slot.end(), frequencies[t],
                           static_cast<uint16_t>(entries.size()));
      entries.push_back({.start = static_cast<uint16_t>(start), .frequency = frequencies[t]});
      const bool is_escape = t == TokenAlphabet::kEscape;
      meanings.push_back({.base = is_escape ? 0 : alphabet.Base(t),
                          .raw_bits = static_cast<uint8_t>(alphabet.RawBits(t)),
                          .is_escape = is_escape,
                          .is_direct = alphabet.IsDirect(t)});
      start += frequencies[t];
    }
  }
};

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

absl::StatusOr<Tables> ReadTables(const CodedIntegersView& coded, const StreamHeader& header) {
  const auto frequencies = SplitTables(coded.frequencies, header.classes, header.precision);
  if (!frequencies.ok()) return frequencies.status();
  absl::StatusOr<std::vector<uint8_t>> classes =
      ReadClasses(header, coded.stream.subspan(sizeof(header) + header.classes));
  if (!classes.ok()) return classes.status();
  Tables tables;
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
    tables.Add(alphabet, (*frequencies)[k]);
  }
  return tables;
}

// Words of one segment. Reading beyond them gives zeros and is remembered.
class Words {
 public:
  Words(const std::byte* begin, const std::byte* end) : at_(begin), end_(end) {}

  int64_t left() const { return (end_ - at_) / static_cast<int64_t>(kWordBytes); }
  bool overrun() const { return overrun_; }

  // Branch-free without the check: whether a state needs a word is close to random. The caller
  // knows that one is left.
  template <bool kChecked>
  uint32_t Refill(uint32_t state, bool needed) {
    if (kChecked && needed && at_ == end_) overrun_ = true;
    uint16_t word = 0;
    if (!kChecked || at_ != end_) std::memcpy(&word, at_, kWordBytes);
    at_ += needed && (!kChecked || at_ != end_) ? kWordBytes : 0;
    return needed ? (state << kWordBits) | word : state;
  }

 private:
  static constexpr size_t kWordBytes = sizeof(uint16_t);

  const std::byte* at_;
  const std::byte* end_;
  bool overrun_ = false;
};

class SegmentDecoder {
 public:
  explicit SegmentDecoder(const Tables& tables) : tables_(tables) {}

  // The values from `first` of the matrix on.
  absl::Status Decode(Words words, absl::Span<const int32_t> escapes, int64_t first,
                      absl::Span<int32_t> values) {
    for (uint32_t& state : states_) {
      const uint32_t low = words.Refill<true>(0, true);
      state = words.Refill<true>(0, true) << kWordBits | low;
    }
    escapes_ = escapes;
    escapes_taken_ = 0;
    const auto cols = static_cast<int64_t>(tables_.class_of_column.size()) - kLanes;
    const auto size = static_cast<int64_t>(values.size());
    int64_t column = first % cols;
    for (int64_t begin = 0; begin < size; begin += kLanes) {
      const uint8_t* classes = tables_.class_of_column.data() + column;
      if (begin + kLanes <= size && words.left() >= kMaxRoundWords) {
        DecodeRound<false>(words, classes, values.data() + begin, kLanes);
      } else {
        DecodeRound<true>(words, classes, values.data() + begin, std::min(kLanes, size - begin));
      }
      column = (column + kLanes) % cols;
    }
    return CheckEnd(words);
  }

 private:
  template <bool kChecked>
  void DecodeRound(Words& words, const uint8_t* classes, int32_t* values, int64_t lanes) {
    uint32_t tokens[kLanes];
    const int precision = tables_.precision;
    const uint32_t mask = (1u << precision) - 1;
    const uint16_t* token_of_slot = tables_.token_of_slot.data();
    const Tables::Entry* entries = tables_.entries.data();
    for (int64_t i = 0; i < lanes; ++i) {
      const uint32_t slot = states_[i] & mask;
      const uint32_t token = token_of_slot[(uint32_t{classes[i]} << precision) + slot];
      const Tables::Entry entry = entries[token];
      const uint32_t state = entry.frequency * (states_[i] >> precision) + slot - entry.start;
      states_[i] = words.Refill<kChecked>(state, state < kLeastState);
      tokens[i] = token;
    }
    bool direct = true;
    for (int64_t i = 0; i < lanes; ++i) {
      const Tables::Meaning& meaning = tables_.meanings[tokens[i]];
      values[i] = TokenAlphabet::Unzigzag(meaning.base);
      direct &= meaning.is_direct;
    }
    for (int64_t i = 0; !direct && i < lanes; ++i) {
      const Tables::Meaning& meaning = tables_.meanings[tokens[i]];
      if (!meaning.is_direct) values[i] = Complete<kChecked>(words, i, meaning);
    }
  }

  template <bool kChecked>
  int32_t Complete(Words& words, int64_t lane, const Tables::Meaning& meaning) {
    if (meaning.is_escape) return NextEscape();
    const uint32_t raw = states_[lane] & ((1u << meaning.raw_bits) - 1);
    const uint32_t state = states_[lane] >> meaning.raw_bits;
    states_[lane] = words.Refill<kChecked>(state, state < kLeastState);
    return TokenAlphabet::Unzigzag(meaning.base | raw);
  }

  int32_t NextEscape() {
    const size_t index = escapes_taken_++;
    return index < escapes_.size() ? escapes_[index] : 0;
  }

  absl::Status CheckEnd(const Words& words) const {
    if (words.overrun()) return Lost("ends early");
    if (words.left() > 0) return Lost("has ", words.left(), " words left over");
    if (escapes_taken_ != escapes_.size()) {
      return Lost("has ", escapes_taken_, " escapes for ", escapes_.size(), " values");
    }
    for (const uint32_t state : states_) {
      if (state != kLeastState) return Lost("does not end in the state that encoders begin with");
    }
    return absl::OkStatus();
  }

  const Tables& tables_;
  uint32_t states_[kLanes];
  absl::Span<const int32_t> escapes_;
  size_t escapes_taken_ = 0;
};

absl::Status DecodeSegments(const CodedIntegersView& coded, const StreamHeader& header,
                            const Tables& tables, absl::Span<int32_t> values) {
  SegmentDecoder decoder(tables);
  const std::byte* words = coded.stream.data() + WordsBegin(header);
  const uint32_t* pair = coded.segment_offsets.data();
  for (size_t begin = 0; begin < values.size(); begin += header.segment_values, pair += 2) {
    const Words segment(words + sizeof(uint16_t) * pair[0], words + sizeof(uint16_t) * pair[2]);
    const absl::Status status =
        decoder.Decode(segment, coded.escapes.subspan(pair[1], pair[3] - pair[1]),
                       static_cast<int64_t>(begin), values.subspan(begin, header.segment_values));
    if (!status.ok()) {
      return Lost("z_stream: segment ", begin / header.segment_values, " ", status.message());
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> DecodeIntegers(const CodedIntegersView& coded, int64_t rows,
                                                    int64_t cols) {
  const absl::StatusOr<StreamHeader> header = ParseHeader(coded, rows, cols);
  if (!header.ok()) return header.status();
  if (absl::Status status = CheckOffsets(coded, *header); !status.ok()) return status;
  if (header->count == 0 && coded.frequencies.empty()) return std::vector<int32_t>();
  const absl::StatusOr<Tables> tables = ReadTables(coded, *header);
  if (!tables.ok()) return tables.status();

  std::vector<int32_t> values(rows * cols);
  absl::Status status = DecodeSegments(coded, *header, *tables, absl::MakeSpan(values));
  if (!status.ok()) return status;
  if (XXH3_64bits(values.data(), values.size() * sizeof(int32_t)) != header->checksum) {
    return Lost("z_stream: the checksum of the decoded values does not fit");
  }
  return values;
}

}  // namespace quantd::compute
