#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/coding/coding_model.h"
#include "compute/coding/frequency_table.h"
#include "compute/coding/integer_coder.h"
#include "compute/coding/stream_header.h"
#include "compute/coding/stream_start.h"
#include "compute/coding/token_alphabet.h"
#include "compute/coding/token_step.h"

namespace quantd::compute {
namespace {

constexpr double kBitsOfNoValues = 8.0 * (sizeof(StreamHeader) + 2 * sizeof(uint32_t));
constexpr int64_t kMinSegmentValues = int64_t{1} << 12;

class SegmentEncoder {
 public:
  explicit SegmentEncoder(const CodingModel& model) : cols_(model.class_of_column.size()) {
    for (const CodingModel::Table& table : model.tables) {
      classes_.push_back({.alphabet = table.alphabet, .steps = StepsOf(table, model.precision)});
    }
    // A round may begin in any column and go over the end of a row, more than once if it is short.
    for (int64_t i = 0; i < cols_ + kLanes; ++i) {
      class_of_column_.push_back(model.class_of_column[i % cols_]);
    }
  }

  // The words of the segment that begins at `values[first]` of the matrix, valid until the next
  // call. Values go in from the last to the first, words from the end of the buffer to its front,
  // so that a decoder runs forward.
  absl::Span<const uint16_t> Encode(absl::Span<const int32_t> values, int64_t first) {
    buffer_.resize(2 * values.size() + kStateWords * kLanes);
    next_ = buffer_.data() + buffer_.size();
    std::fill_n(states_, kLanes, kLeastState);
    const auto size = static_cast<int64_t>(values.size());
    for (int64_t begin = (size - 1) / kLanes * kLanes; begin >= 0; begin -= kLanes) {
      EncodeRound(values.subspan(begin, kLanes), class_of_column_.data() + (first + begin) % cols_);
    }
    next_ -= kStateWords * kLanes;
    std::memcpy(next_, states_, sizeof(states_));
    return {next_, static_cast<size_t>(buffer_.data() + buffer_.size() - next_)};
  }

 private:
  struct Class {
    TokenAlphabet alphabet;
    std::vector<TokenStep> steps;  // of each token
  };

  void EncodeRound(absl::Span<const int32_t> values, const uint8_t* classes) {
    uint32_t tokens[kLanes];
    bool direct = true;
    const auto lanes = static_cast<int64_t>(values.size());
    for (int64_t i = 0; i < lanes; ++i) {
      const TokenAlphabet& alphabet = classes_[classes[i]].alphabet;
      tokens[i] = alphabet.TokenOf(TokenAlphabet::Zigzag(values[i]));
      direct &= alphabet.IsDirect(tokens[i]);
    }
    for (int64_t i = lanes - 1; !direct && i >= 0; --i) {
      EncodeRawBits(i, values[i], tokens[i], classes_[classes[i]].alphabet);
    }
    for (int64_t i = lanes - 1; i >= 0; --i) {
      const TokenStep& step = classes_[classes[i]].steps[tokens[i]];
      states_[i] = step(Renormalize(states_[i], step.Overflows(states_[i])));
    }
  }

  void EncodeRawBits(int64_t lane, int32_t value, uint32_t token, const TokenAlphabet& alphabet) {
    const int bits = alphabet.RawBits(token);
    if (bits == 0) return;
    const uint32_t raw = TokenAlphabet::Zigzag(value) & ((1u << bits) - 1);
    const bool overflows = states_[lane] >= uint64_t{1} << (2 * kWordBits - bits);
    states_[lane] = Renormalize(states_[lane], overflows) << bits | raw;
  }

  // Branch-free: whether a state gives a word away is close to random.
  uint32_t Renormalize(uint32_t state, bool overflows) {
    next_[-1] = static_cast<uint16_t>(state);
    next_ -= overflows ? 1 : 0;
    return overflows ? state >> kWordBits : state;
  }

  const int64_t cols_;
  std::vector<Class> classes_;
  std::vector<uint8_t> class_of_column_;  // and as many again as a round has lanes
  std::vector<uint16_t> buffer_;
  uint16_t* next_ = nullptr;
  uint32_t states_[kLanes];
};

template <typename T>
void Append(absl::Span<const T> from, std::vector<std::byte>& to) {
  const auto* bytes = reinterpret_cast<const std::byte*>(from.data());
  to.insert(to.end(), bytes, bytes + from.size() * sizeof(T));
}

void AppendClasses(const CodingModel& model, std::vector<std::byte>& to) {
  const auto cols = static_cast<int64_t>(model.class_of_column.size());
  std::vector<std::byte> bytes(ClassBytes(static_cast<int64_t>(model.tables.size()), cols));
  size_t at = 0;
  for (const CodingModel::Table& table : model.tables) {
    bytes[at++] = static_cast<std::byte>(table.alphabet.split());
  }
  for (int64_t c = 0; model.tables.size() > 1 && c < cols; ++c) {
    bytes[at + c / 2] |= static_cast<std::byte>(model.class_of_column[c] << (c % 2 * 4));
  }
  Append<std::byte>(bytes, to);
}

void AppendEscapes(absl::Span<const int32_t> values, std::vector<int32_t>& to) {
  const TokenAlphabet any(TokenAlphabet::kMinSplit);  // all escape the same values
  for (const int32_t value : values) {
    if (any.TokenOf(TokenAlphabet::Zigzag(value)) == TokenAlphabet::kEscape) to.push_back(value);
  }
}

// All segments behind one another. False where 32 bits do not count the words.
bool AppendSegments(absl::Span<const int32_t> values, const CodingModel& model,
                    int64_t segment_values, CodedIntegers& coded) {
  SegmentEncoder encoder(model);
  uint64_t words = 0;
  for (size_t begin = 0; begin < values.size(); begin += segment_values) {
    const absl::Span<const int32_t> segment = values.subspan(begin, segment_values);
    const absl::Span<const uint16_t> segment_words =
        encoder.Encode(segment, static_cast<int64_t>(begin));
    words += segment_words.size();
    if (words > std::numeric_limits<uint32_t>::max()) return false;
    Append(segment_words, coded.stream);
    if (model.has_escapes) AppendEscapes(segment, coded.escapes);
    coded.segment_offsets.push_back(static_cast<uint32_t>(words));
    coded.segment_offsets.push_back(static_cast<uint32_t>(coded.escapes.size()));
  }
  return true;
}

}  // namespace

std::vector<TokenStep> StepsOf(const CodingModel::Table& table, int precision) {
  std::vector<TokenStep> steps;
  uint32_t start = 0;
  for (const uint16_t frequency : table.frequencies) {
    steps.push_back(frequency > 0 ? TokenStep(start, frequency, precision) : TokenStep());
    start += frequency;
  }
  return steps;
}

int64_t SegmentValues(const CodingModel& model, int64_t count) {
  const double bits_a_value = model.bits / static_cast<double>(count);
  int64_t values = kMaxSegmentValues;
  while (values > kMinSegmentValues &&
         static_cast<double>(values) * bits_a_value > 8.0 * kMaxSegmentBytes) {
    values /= 2;
  }
  return values;
}

CodedIntegers BeginStream(const CodingModel& model, int64_t count, int64_t segment_values,
                          uint64_t checksum) {
  StreamHeader header = {};
  std::memcpy(header.magic, kStreamMagic, sizeof(header.magic));
  header.precision = static_cast<uint8_t>(model.precision);
  header.classes = static_cast<uint8_t>(model.tables.size());
  header.lanes = kLanes;
  header.segment_values = static_cast<uint32_t>(segment_values);
  header.cols = static_cast<uint32_t>(model.class_of_column.size());
  header.count = static_cast<uint64_t>(count);
  header.checksum = checksum;
  CodedIntegers coded;
  coded.stream.resize(sizeof(header));
  std::memcpy(coded.stream.data(), &header, sizeof(header));
  coded.segment_offsets = {0, 0};
  if (model.tables.empty()) return coded;
  AppendClasses(model, coded.stream);
  for (const CodingModel::Table& table : model.tables) {
    coded.frequencies.insert(coded.frequencies.end(), table.frequencies.begin(),
                             table.frequencies.end());
  }
  return coded;
}

absl::Status TooManyWords(int64_t values) {
  return absl::OutOfRangeError(
      absl::StrCat("z_stream: ", values, " values need more words than 32 bits count"));
}

absl::StatusOr<CodedIntegers> EncodeIntegers(absl::Span<const int32_t> values,
                                             const CodingModel& model, int64_t segment_values) {
  const auto count = static_cast<int64_t>(values.size());
  if (segment_values == 0) segment_values = SegmentValues(model, count);
  CodedIntegers coded = BeginStream(model, count, segment_values,
                                    XXH3_64bits(values.data(), values.size() * sizeof(int32_t)));
  if (!AppendSegments(values, model, segment_values, coded)) return TooManyWords(count);
  return coded;
}

absl::StatusOr<CodedIntegers> EncodeIntegers(absl::Span<const int32_t> values, int64_t cols,
                                             int64_t segment_values) {
  if (!values.empty()) {
    return EncodeIntegers(values, ChooseModel(CountTokens(values, cols)), segment_values);
  }
  CodingModel none;
  none.precision = kMinPrecision;
  none.class_of_column.resize(cols);
  return BeginStream(none, 0, kMaxSegmentValues, XXH3_64bits(nullptr, 0));
}

double EstimateCodedBits(absl::Span<const int32_t> values, int64_t cols) {
  if (values.empty()) return kBitsOfNoValues;
  return EstimateCodedBits(ChooseModel(CountTokens(values, cols)),
                           static_cast<int64_t>(values.size()));
}

double EstimateCodedBits(const CodingModel& model, int64_t count) {
  const int64_t size = SegmentValues(model, count);
  const int64_t segments = (count + size - 1) / size;
  // Of the 32 bits of a final state, 16 are there from the start and 7 more are unused on average:
  // states are spread as 1 / x over 16 octaves.
  constexpr double kBitsOfAState = 24.0;
  constexpr double kBitsOfAnOffset = 64.0;
  return kBitsOfNoValues + model.bits +
         static_cast<double>(segments) * (kLanes * kBitsOfAState + kBitsOfAnOffset);
}

}  // namespace quantd::compute
