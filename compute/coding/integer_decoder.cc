#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "compute/coding/integer_coder.h"
#include "compute/coding/stream_layout.h"
#include "compute/coding/token_alphabet.h"

namespace quantd::compute {
namespace {

// A round reads at most one word a lane for its tokens and one for their raw bits.
constexpr int64_t kMaxRoundWords = 2 * kLanes;

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
  explicit SegmentDecoder(const DecodingTables& tables) : tables_(tables) {}

  // The values from `first` of the matrix on.
  SegmentFault Decode(Words words, absl::Span<const int32_t> escapes, int64_t first,
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
    const DecodingTables::Token* entries = tables_.tokens.data();
    for (int64_t i = 0; i < lanes; ++i) {
      const uint32_t slot = states_[i] & mask;
      const uint32_t token = token_of_slot[(uint32_t{classes[i]} << precision) + slot];
      const DecodingTables::Token entry = entries[token];
      const uint32_t state = entry.frequency * (states_[i] >> precision) + slot - entry.start;
      states_[i] = words.Refill<kChecked>(state, state < kLeastState);
      tokens[i] = token;
    }
    bool direct = true;
    for (int64_t i = 0; i < lanes; ++i) {
      const DecodingTables::Meaning& meaning = tables_.meanings[tokens[i]];
      values[i] = TokenAlphabet::Unzigzag(meaning.base);
      direct &= meaning.is_direct;
    }
    for (int64_t i = 0; !direct && i < lanes; ++i) {
      const DecodingTables::Meaning& meaning = tables_.meanings[tokens[i]];
      if (!meaning.is_direct) values[i] = Complete<kChecked>(words, i, meaning);
    }
  }

  template <bool kChecked>
  int32_t Complete(Words& words, int64_t lane, const DecodingTables::Meaning& meaning) {
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

  SegmentFault CheckEnd(const Words& words) const {
    if (words.overrun()) return SegmentFault::kEndsEarly;
    if (words.left() > 0) return SegmentFault::kHasWordsLeft;
    if (escapes_taken_ != escapes_.size()) return SegmentFault::kWrongEscapes;
    for (const uint32_t state : states_) {
      if (state != kLeastState) return SegmentFault::kWrongState;
    }
    return SegmentFault::kNone;
  }

  const DecodingTables& tables_;
  uint32_t states_[kLanes];
  absl::Span<const int32_t> escapes_;
  size_t escapes_taken_ = 0;
};

absl::Status DecodeSegments(const CodedIntegersView& coded, const StreamLayout& layout,
                            absl::Span<int32_t> values) {
  SegmentDecoder decoder(layout.tables);
  const std::byte* words = coded.stream.data() + layout.words_begin();
  const uint32_t* pair = coded.segment_offsets.data();
  const auto segment_values = static_cast<size_t>(layout.header.segment_values);
  for (size_t begin = 0; begin < values.size(); begin += segment_values, pair += 2) {
    const Words segment(words + sizeof(uint16_t) * pair[0], words + sizeof(uint16_t) * pair[2]);
    const SegmentFault fault =
        decoder.Decode(segment, coded.escapes.subspan(pair[1], pair[3] - pair[1]),
                       static_cast<int64_t>(begin), values.subspan(begin, segment_values));
    if (fault != SegmentFault::kNone) {
      return StatusOf(fault, static_cast<int64_t>(begin / segment_values));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> DecodeIntegers(const CodedIntegersView& coded, int64_t rows,
                                                    int64_t cols) {
  const absl::StatusOr<StreamLayout> layout = ReadLayout(coded, rows, cols);
  if (!layout.ok()) return layout.status();
  if (layout->header.count == 0 && coded.frequencies.empty()) return std::vector<int32_t>();
  std::vector<int32_t> values(rows * cols);
  absl::Status status = DecodeSegments(coded, *layout, absl::MakeSpan(values));
  if (status.ok()) {
    status = CheckSum(layout->header, XXH3_64bits(values.data(), values.size() * sizeof(int32_t)));
  }
  if (!status.ok()) return status;
  return values;
}

}  // namespace quantd::compute
