#include "compute/coding/integer_coder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/coding/entropy.h"
#include "compute/coding/stream_header.h"

namespace quantd::compute {
namespace {

using ::testing::HasSubstr;

std::vector<int32_t> Gaussian(int64_t count, double deviation, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0.0, deviation);
  std::vector<int32_t> values(count);
  for (int32_t& value : values) value = static_cast<int32_t>(std::lround(normal(random)));
  return values;
}

// Columns whose spread varies over `octaves` octaves, as with outlier inputs.
std::vector<int32_t> Outliers(int64_t rows, int64_t cols, double deviation, double octaves,
                              uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> spread(cols);
  for (double& each : spread) each = deviation * std::exp2(octaves / 4.0 * normal(random));
  std::vector<int32_t> values(rows * cols);
  for (int64_t i = 0; i < rows * cols; ++i) {
    values[i] = static_cast<int32_t>(std::lround(spread[i % cols] * normal(random)));
  }
  return values;
}

// The deviation at which the entropy of rounded Gaussian values is `bits`.
double DeviationFor(double bits) {
  double low = 0.05;
  double high = 1e6;
  for (int i = 0; i < 60; ++i) {
    const double middle = std::sqrt(low * high);
    const double entropy = EmpiricalEntropy(Gaussian(20'000, middle, 9));
    (entropy < bits ? low : high) = middle;
  }
  return low;
}

// Mean of the columns' own entropies: what no static tables can beat.
double EntropyByColumn(const std::vector<int32_t>& values, int64_t cols) {
  double sum = 0.0;
  for (int64_t c = 0; c < cols; ++c) {
    std::vector<int32_t> column;
    for (size_t i = c; i < values.size(); i += cols) column.push_back(values[i]);
    sum += EmpiricalEntropy(column);
  }
  return sum / static_cast<double>(cols);
}

void ExpectRoundTrip(const std::vector<int32_t>& values, int64_t cols) {
  const absl::StatusOr<CodedIntegers> coded = EncodeIntegers(values, cols);
  ASSERT_TRUE(coded.ok()) << coded.status();
  const auto decoded = DecodeIntegers(*coded, static_cast<int64_t>(values.size()) / cols, cols);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_TRUE(*decoded == values);
}

TEST(IntegerCoder, EveryLengthAroundARoundAndASegment) {
  const std::vector<int32_t> values = Gaussian(3 * kMaxSegmentValues, 1.0, 1);
  for (const int64_t around : {int64_t{1}, kLanes, 2 * kLanes, kMaxSegmentValues / 2,
                               kMaxSegmentValues, 2 * kMaxSegmentValues}) {
    for (int64_t count = around - 1; count <= around + 1; ++count) {
      SCOPED_TRACE(count);
      ExpectRoundTrip({values.begin(), values.begin() + count}, 1);
      if (count > 0) ExpectRoundTrip({values.begin(), values.begin() + count}, count);
    }
  }
}

TEST(IntegerCoder, EveryWidthWithColumnsThatDiffer) {
  for (int64_t cols = 1; cols < 100; cols += 1 + cols / 7) {
    SCOPED_TRACE(cols);
    ExpectRoundTrip(Outliers(30'000 / cols, cols, 2.0, 12.0, 7), cols);
  }
}

TEST(IntegerCoder, EverySizeOfASegment) {
  const std::vector<int32_t> values = Outliers(300, 37, 3.0, 8.0, 12);
  for (int64_t size = kLanes; size <= kMaxSegmentValues; size *= 2) {
    const CodedIntegers coded = *EncodeIntegers(values, 37, size);
    EXPECT_EQ(coded.segment_offsets.size(), 2 * ((values.size() + size - 1) / size + 1));
    EXPECT_TRUE(*DecodeIntegers(coded, 300, 37) == values) << size;
  }
}

TEST(IntegerCoder, EverySpreadFromConstantToFullRange) {
  ExpectRoundTrip({}, 5);
  ExpectRoundTrip(std::vector<int32_t>(100'000, 0), 100);
  ExpectRoundTrip(std::vector<int32_t>(1000, -123'456), 10);
  ExpectRoundTrip(std::vector<int32_t>(1000, std::numeric_limits<int32_t>::min()), 10);
  for (double deviation = 0.05; deviation < 1e8; deviation *= 5.0) {
    SCOPED_TRACE(deviation);
    ExpectRoundTrip(Gaussian(50'001, deviation, 2), 3);
  }
  std::mt19937 random(3);
  std::vector<int32_t> any(30'000);
  for (int32_t& value : any) value = static_cast<int32_t>(random());
  ExpectRoundTrip(any, 300);
}

TEST(IntegerCoder, RareHugeValuesAreEscaped) {
  std::vector<int32_t> values = Gaussian(3 * kMaxSegmentValues, 1.0, 4);
  for (size_t i = 5; i < values.size(); i += 99'991) {
    values[i] = static_cast<int32_t>(i % 2 == 0 ? 1'000'000'000 + i : -1'000'000'000 - i);
  }
  ExpectRoundTrip(values, 1024);
  EXPECT_EQ(EncodeIntegers(values, 1024)->escapes.size(), (values.size() - 6) / 99'991 + 1);
}

TEST(IntegerCoder, IsDeterministic) {
  const std::vector<int32_t> values = Outliers(300, 200, 2.0, 4.0, 5);
  const CodedIntegers a = *EncodeIntegers(values, 200);
  const CodedIntegers b = *EncodeIntegers(values, 200);
  EXPECT_EQ(a.stream, b.stream);
  EXPECT_EQ(a.segment_offsets, b.segment_offsets);
  EXPECT_EQ(a.frequencies, b.frequencies);
  EXPECT_EQ(a.escapes, b.escapes);
}

// The bar: all that is stored for the integers within 1 % of their empirical entropy; where columns
// differ, within 2 % of the entropies of the columns, which the joint one exceeds by far.
TEST(IntegerCoder, StaysWithinOnePercentOfTheEntropy) {
  for (const double bits : {1.0, 2.0, 3.0, 4.0}) {
    const double deviation = DeviationFor(bits);
    for (const int64_t size : {768, 1024}) {
      for (const double octaves : {0.0, 2.0, 6.0}) {
        const std::vector<int32_t> values = Outliers(size, size, deviation, octaves, 6);
        const double entropy = EmpiricalEntropy(values);
        const double by_column = EntropyByColumn(values, size);
        const auto coded = 8.0 * static_cast<double>(EncodeIntegers(values, size)->bytes()) /
                           static_cast<double>(values.size());
        RecordProperty(absl::StrCat("coded_", bits, "_", size, "_", octaves),
                       absl::StrCat(coded, " of ", entropy));
        EXPECT_LT(coded, 1.01 * entropy) << bits << " bits, " << size << ", " << octaves;
        EXPECT_GT(coded, by_column);
      }
    }
  }
}

TEST(IntegerCoder, HighRatesStayWithinOnePercentToo) {
  for (const double deviation : {20.0, 300.0, 10'000.0}) {
    const std::vector<int32_t> values = Gaussian(768 * 768, deviation, 7);
    const double differential = std::log2(deviation) + 2.0471;  // 0.5 log2(2 pi e)
    EXPECT_LT(8.0 * EncodeIntegers(values, 768)->bytes(), 1.01 * differential * values.size());
  }
}

TEST(EstimateCodedBits, IsWhatTheEncoderStores) {
  for (const double deviation : {0.3, 2.0, 1000.0, 1e6}) {
    for (const int64_t cols : {100, 1000}) {
      const std::vector<int32_t> values = Outliers(1000, cols, deviation, 4.0, 11);
      const double stored = 8.0 * static_cast<double>(EncodeIntegers(values, cols)->bytes());
      EXPECT_NEAR(EstimateCodedBits(values, cols), stored, 1e-3 * stored + 1000.0);
    }
  }
}

// ---- Untrusted data ---------------------------------------------------------------------------

class HostileIntegers : public ::testing::Test {
 protected:
  static constexpr int64_t kRows = 1025;
  static constexpr int64_t kCols = 513;

  HostileIntegers() : values_(Outliers(kRows, kCols, 1.5, 1.5, 8)) {
    for (int64_t i = 0; i < kRows * kCols; i += 50'000) values_[i] = 1 << 30;
    coded_ = *EncodeIntegers(values_, kCols);
  }

  void ExpectLost(const std::string& what) const {
    const auto decoded = DecodeIntegers(coded_, kRows, kCols);
    ASSERT_FALSE(decoded.ok());
    EXPECT_EQ(decoded.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(decoded.status().message()), HasSubstr(what));
  }
  StreamHeader header() const {
    StreamHeader header;
    std::memcpy(&header, coded_.stream.data(), sizeof(header));
    return header;
  }
  template <typename Change>
  void ChangeHeader(Change change) {
    StreamHeader changed = header();
    change(changed);
    std::memcpy(coded_.stream.data(), &changed, sizeof(changed));
  }

  std::vector<int32_t> values_;
  CodedIntegers coded_;
};

TEST_F(HostileIntegers, AnotherCountThanExpected) {
  EXPECT_FALSE(DecodeIntegers(coded_, kRows - 1, kCols).ok());
  EXPECT_FALSE(DecodeIntegers(coded_, kCols, kRows).ok());
  EXPECT_FALSE(DecodeIntegers(coded_, 0, kCols).ok());
  EXPECT_FALSE(DecodeIntegers(coded_, 0, 0).ok());
  ChangeHeader([](StreamHeader& h) { h.count = (uint64_t{1} << 50) * kCols; });
  EXPECT_FALSE(DecodeIntegers(coded_, int64_t{1} << 50, kCols).ok());  // nothing was allocated
}

TEST_F(HostileIntegers, EveryHeaderField) {
  const CodedIntegers good = coded_;
  const auto expect = [&](auto change, const std::string& what) {
    coded_ = good;
    ChangeHeader(change);
    ExpectLost(what);
  };
  expect([](StreamHeader& h) { h.magic[0] = 'q'; }, "version");
  expect([](StreamHeader& h) { h.precision = 7; }, "precision");
  expect([](StreamHeader& h) { h.precision = 16; }, "precision");
  expect([](StreamHeader& h) { h.precision ^= 1; }, "z_frequency");
  expect([](StreamHeader& h) { h.classes = 0; }, "classes");
  expect([](StreamHeader& h) { h.classes = 17; }, "classes");
  expect([](StreamHeader& h) { h.classes -= 1; }, "z_");
  expect([](StreamHeader& h) { h.lanes = 16; }, "lanes");
  expect([](StreamHeader& h) { h.cols += 1; }, "columns");
  expect([](StreamHeader& h) { h.segment_values = 0; }, "values a segment");
  expect([](StreamHeader& h) { h.segment_values += 1; }, "values a segment");
  expect([](StreamHeader& h) { h.segment_values *= 2; }, "z_");
  expect([](StreamHeader& h) { h.segment_values = 2 * kMaxSegmentValues; }, "values a segment");
  expect([](StreamHeader& h) { h.segment_values /= 2; }, "z_segment_offset");
  expect([](StreamHeader& h) { h.checksum ^= 1; }, "checksum");
}

TEST_F(HostileIntegers, SplitsAndClasses) {
  const CodedIntegers good = coded_;
  const int classes = header().classes;
  ASSERT_GT(classes, 1);
  ASSERT_LT(classes, 16);
  coded_.stream[sizeof(StreamHeader)] = std::byte{1};
  ExpectLost("split");
  coded_.stream[sizeof(StreamHeader)] = std::byte{11};
  ExpectLost("split");
  coded_ = good;
  coded_.stream[sizeof(StreamHeader) + classes + 1] = static_cast<std::byte>(classes << 4);
  ExpectLost("column 3");
}

TEST_F(HostileIntegers, TruncatedAnywhere) {
  const CodedIntegers good = coded_;
  for (const size_t size : {size_t{0}, size_t{31}, size_t{32}, size_t{33}, good.stream.size() - 2,
                            good.stream.size() - 1}) {
    coded_.stream.resize(size);
    ExpectLost("z_stream");
    coded_ = good;
  }
  coded_.stream.push_back({});
  ExpectLost("z_stream");
  coded_ = good;
  coded_.escapes.pop_back();
  ExpectLost("z_escape");
  coded_ = good;
  coded_.frequencies.pop_back();
  ExpectLost("z_frequency");
  coded_ = good;
  coded_.segment_offsets.pop_back();
  ExpectLost("z_segment_offset");
  coded_.segment_offsets.clear();
  ExpectLost("z_segment_offset");
}

TEST_F(HostileIntegers, OffsetsThatDoNotRise) {
  const CodedIntegers good = coded_;
  for (size_t i = 0; i < good.segment_offsets.size(); ++i) {
    for (const uint32_t value : {good.segment_offsets[i] + 1, good.segment_offsets[i] - 1, 0u,
                                 std::numeric_limits<uint32_t>::max()}) {
      if (value == good.segment_offsets[i]) continue;
      coded_.segment_offsets[i] = value;
      ExpectLost("z_");
      coded_ = good;
    }
  }
}

TEST_F(HostileIntegers, AFlippedBitAnywhereIsNoticed) {
  const CodedIntegers good = coded_;
  std::mt19937_64 random(10);
  for (int i = 0; i < 200; ++i) {
    const size_t bit = random() % (8 * good.stream.size());
    coded_.stream[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    EXPECT_FALSE(DecodeIntegers(coded_, kRows, kCols).ok()) << bit;
    coded_.stream[bit / 8] = good.stream[bit / 8];
  }
  coded_.escapes[3] ^= 1;
  ExpectLost("checksum");
  coded_ = good;
  for (size_t t = 1; t < good.frequencies.size(); ++t) {
    std::swap(coded_.frequencies[t - 1], coded_.frequencies[t]);
    if (coded_.frequencies != good.frequencies) ExpectLost("z_");
    coded_ = good;
  }
}

}  // namespace
}  // namespace quantd::compute
