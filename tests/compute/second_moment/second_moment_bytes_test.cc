#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "compute/second_moment/second_moment.h"

namespace quantd::compute {
namespace {

using testing::HasSubstr;

SecondMoment Example(MomentLayout layout, bool pending_needs_f64) {
  const MomentSpec spec = {.layout = layout,
                           .block_size = layout == MomentLayout::kFull ? 0 : 4,
                           .cols = 8,
                           .sample_rows = 3,
                           .sample_seed = 11};
  SecondMoment moment = SecondMoment::Create(spec).value();
  std::mt19937 generator(1);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<double> rows(5 * 8);
  for (double& value : rows) value = uniform(generator);
  moment.SetPending(rows);
  moment.FoldPending();
  rows.resize(2 * 8);
  if (pending_needs_f64) rows[3] = 0.1;  // no float
  moment.SetPending(rows);
  moment.AddTokens(7);
  moment.AddChunkDigest(
      absl::MakeConstSpan(reinterpret_cast<const std::byte*>(rows.data()), rows.size() * 8));
  for (int64_t i = 0; i < 5; ++i) {
    std::vector<float> values(8, static_cast<float>(i));
    moment.mutable_sample().Add(moment.sample().PriorityOf("s", i), std::move(values));
  }
  return moment;
}

// The kinds that hold more than x x^T: weighted, cross and residual.
SecondMoment ExampleOf(MomentKind kind) {
  const int64_t left = kind == MomentKind::kResidual ? 5 : kind == MomentKind::kCross ? 8 : 0;
  const MomentSpec spec = {.kind = kind, .cols = 8, .paired_cols = left, .sample_rows = 3};
  SecondMoment moment = SecondMoment::Create(spec).value();
  std::mt19937 generator(2);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<double> rows(4 * spec.TokenValues());
  for (double& value : rows) value = uniform(generator);
  moment.SetPending(rows);
  moment.FoldPending();
  rows.resize(3 * spec.TokenValues());
  moment.SetPending(rows);
  moment.AddTokens(7);
  if (kind == MomentKind::kWeighted) moment.AddWeight(2.75);
  moment.mutable_sample().Add(17, std::vector<float>(8, 0.5f));
  return moment;
}

void ExpectEqual(const SecondMoment& a, const SecondMoment& b) {
  EXPECT_EQ(a.spec(), b.spec());
  EXPECT_EQ(a.tokens(), b.tokens());
  EXPECT_EQ(a.weight_sum(), b.weight_sum());
  EXPECT_EQ(a.DigestHex(), b.DigestHex());
  EXPECT_EQ(a.sum(), b.sum());
  EXPECT_EQ(a.pending(), b.pending());
  ASSERT_EQ(a.sample().size(), b.sample().size());
  for (int64_t i = 0; i < a.sample().size(); ++i) {
    EXPECT_EQ(a.sample().rows()[i].priority, b.sample().rows()[i].priority);
    EXPECT_EQ(a.sample().rows()[i].values, b.sample().rows()[i].values);
  }
}

// Makes a changed copy pass the checksum, so that only the checks behind it can refuse it.
std::string Resealed(std::string bytes) {
  const uint64_t checksum = XXH3_64bits(bytes.data(), bytes.size() - 8);
  std::memcpy(bytes.data() + bytes.size() - 8, &checksum, 8);
  return bytes;
}

template <typename T>
std::string With(std::string bytes, size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof(value));
  return Resealed(std::move(bytes));
}

void ExpectLost(const std::string& bytes, const std::string& why) {
  const absl::Status status = SecondMoment::Parse(bytes).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << why;
  EXPECT_THAT(status.message(), HasSubstr(why));
}

TEST(SecondMomentBytesTest, ComesBackWhole) {
  for (const MomentLayout layout : {MomentLayout::kFull, MomentLayout::kBlockDiagonal}) {
    for (const bool needs_f64 : {false, true}) {
      const SecondMoment moment = Example(layout, needs_f64);
      const std::string bytes = moment.Serialize();
      EXPECT_EQ(static_cast<int64_t>(bytes.size()), moment.SerializedBytes());
      const absl::StatusOr<SecondMoment> parsed = SecondMoment::Parse(bytes);
      ASSERT_TRUE(parsed.ok()) << parsed.status();
      ExpectEqual(*parsed, moment);
    }
  }
}

TEST(SecondMomentBytesTest, EveryKindComesBackWhole) {
  for (const MomentKind kind : {MomentKind::kWeighted, MomentKind::kCross, MomentKind::kResidual}) {
    const SecondMoment moment = ExampleOf(kind);
    const std::string bytes = moment.Serialize();
    EXPECT_EQ(static_cast<int64_t>(bytes.size()), moment.SerializedBytes());
    const absl::StatusOr<SecondMoment> parsed = SecondMoment::Parse(bytes);
    ASSERT_TRUE(parsed.ok()) << NameOf(kind) << ": " << parsed.status();
    ExpectEqual(*parsed, moment);
  }
}

// What earlier versions wrote: version 1 had neither kinds nor the 16 bytes that belong to them.
TEST(SecondMomentBytesTest, ReadsVersion1) {
  for (const MomentLayout layout : {MomentLayout::kFull, MomentLayout::kBlockDiagonal}) {
    const SecondMoment moment = Example(layout, false);
    std::string bytes = moment.Serialize();
    bytes.erase(88, 16);
    bytes = With<uint32_t>(std::move(bytes), 8, 1);
    const absl::StatusOr<SecondMoment> parsed = SecondMoment::Parse(bytes);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    ExpectEqual(*parsed, moment);
    ExpectLost(With<uint8_t>(bytes, 14, 1), "malformed");  // a kind that it did not know
  }
}

TEST(SecondMomentBytesTest, EveryBitFlipIsFound) {
  const std::string bytes = Example(MomentLayout::kBlockDiagonal, false).Serialize();
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = bytes;
      flipped[i] = static_cast<char>(flipped[i] ^ (1 << bit));
      EXPECT_FALSE(SecondMoment::Parse(flipped).ok()) << i << "." << bit;
    }
  }
}

TEST(SecondMomentBytesTest, EveryTruncationIsFound) {
  const std::string residual = ExampleOf(MomentKind::kResidual).Serialize();
  for (size_t size = 0; size < residual.size(); ++size) {
    EXPECT_FALSE(SecondMoment::Parse(residual.substr(0, size)).ok()) << size;
  }
  const std::string bytes = Example(MomentLayout::kFull, true).Serialize();
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(SecondMoment::Parse(bytes.substr(0, size)).ok()) << size;
  }
  EXPECT_FALSE(SecondMoment::Parse(bytes + '\0').ok());
}

// Offsets of header fields, docs/formats.md.
TEST(SecondMomentBytesTest, RefusesHostileHeaders) {
  const std::string bytes = Example(MomentLayout::kFull, false).Serialize();
  ExpectLost(With<char>(bytes, 0, 'X'), "not a second moment");
  ExpectLost(With<uint32_t>(bytes, 8, 9), "version");
  ExpectLost(With<uint8_t>(bytes, 12, 2), "malformed");
  ExpectLost(With<int64_t>(bytes, 24, int64_t{1} << 60), "cols");
  ExpectLost(With<int64_t>(bytes, 24, 1 << 20), "expected");  // 8 TiB that are not there
  ExpectLost(With<int64_t>(bytes, 24, -8), "cols");
  ExpectLost(With<int64_t>(bytes, 32, 1 << 30), "sample_rows");
  ExpectLost(With<int64_t>(bytes, 48, -1), "counts");
  ExpectLost(With<int64_t>(bytes, 72, kSliceTokens), "counts");
  ExpectLost(With<int64_t>(bytes, 80, -1), "counts");
  ExpectLost(With<uint8_t>(bytes, 14, 4), "malformed");
  ExpectLost(With<uint8_t>(bytes, 14, 2), "paired_cols");  // a cross moment
  ExpectLost(With<int64_t>(bytes, 88, 8), "paired_cols");
  ExpectLost(With<double>(bytes, 96, 1.0), "token weights");
  ExpectLost(With<double>(bytes, 104, std::numeric_limits<double>::infinity()), "not finite");
  const std::string residual = ExampleOf(MomentKind::kResidual).Serialize();
  ExpectLost(With<uint8_t>(With<int64_t>(residual, 16, 4), 12, 1), "layout");
  ExpectLost(With<int64_t>(residual, 88, int64_t{1} << 60), "paired_cols");
  ExpectLost(With<int64_t>(residual, 88, 1 << 20), "expected");
  const std::string weighted = ExampleOf(MomentKind::kWeighted).Serialize();
  ExpectLost(With<double>(weighted, 96, -1.0), "token weights");
  ExpectLost(With<double>(weighted, 96, std::numeric_limits<double>::quiet_NaN()), "weights");
}

}  // namespace
}  // namespace quantd::compute
