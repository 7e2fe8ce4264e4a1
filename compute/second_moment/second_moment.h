#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "compute/second_moment/row_sample.h"
#include "compute/tensor/tensor.h"

namespace quantd::compute {

// Tokens of a slice. Products are summed over one slice in the accumulator's precision and folded
// into the float64 sum at fixed positions of the token stream, so that chunk sizes leave no trace.
inline constexpr int64_t kSliceTokens = 1024;

enum class MomentLayout : uint8_t {
  kFull,           // C x C
  kBlockDiagonal,  // C/B blocks of B x B: all that RTN with the marginal solver reads
};

// What is accumulated. Partial sums merge only where these agree.
struct MomentSpec {
  MomentLayout layout = MomentLayout::kFull;
  int64_t block_size = 0;     // B, kBlockDiagonal only: 2 .. 256, divides cols; else 0
  int64_t cols = 0;           // C, 1 .. 2^20
  int64_t sample_rows = 512;  // 0 .. 4096
  uint64_t sample_seed = 0;

  absl::Status Validate() const;
  int64_t SumElements() const;  // C * C or C * B
  friend bool operator==(const MomentSpec&, const MomentSpec&) = default;
};

// Second moment sum of x x^T over tokens x in R^C, never mean-centred: a commutative monoid under
// Merge, so partial sums from several streams or machines add up. Value type, float64.
// The sum is row-major, C x C or C/B x B x B, and symmetric: both triangles are filled.
//
// A snapshot of a running accumulator may end inside a slice. Its rows since the last fold are then
// `pending`: counted in tokens() and in the means, not yet in sum(). They travel in the durable
// form, so that an accumulator which continues from it yields the bits of one that never stopped.
class SecondMoment {
 public:
  // The empty sum. INVALID_ARGUMENT for an invalid spec, RESOURCE_EXHAUSTED where memory is short.
  static absl::StatusOr<SecondMoment> Create(const MomentSpec& spec);
  // A sum that was accumulated elsewhere: `matrix` is the sum over `tokens` tokens or, `is_mean`,
  // that divided by `tokens`; row-major as sum(). INVALID_ARGUMENT for tokens < 1, a wrong size,
  // NaN or Inf, a negative diagonal, or an asymmetry above 1e-3 of the entries' scale. The sample
  // is empty; add to mutable_sample().
  static absl::StatusOr<SecondMoment> FromMatrix(const MomentSpec& spec, int64_t tokens,
                                                 bool is_mean, absl::Span<const double> matrix);

  const MomentSpec& spec() const { return spec_; }
  int64_t tokens() const { return tokens_; }
  absl::Span<const double> sum() const { return sum_; }
  absl::Span<double> mutable_sum() { return absl::MakeSpan(sum_); }
  // Moves the sum out and back in, for accumulators that keep it in another order meanwhile.
  std::vector<double> ReleaseSum() { return std::exchange(sum_, {}); }
  void SetSum(std::vector<double> sum) { sum_ = std::move(sum); }
  const RowSample& sample() const { return sample_; }
  RowSample& mutable_sample() { return sample_; }
  void AddTokens(int64_t tokens) { tokens_ += tokens; }

  // Rows not yet in sum(), row-major, fewer than kSliceTokens.
  int64_t pending_rows() const { return static_cast<int64_t>(pending_.size()) / spec_.cols; }
  absl::Span<const double> pending() const { return pending_; }
  void SetPending(std::vector<double> rows) { pending_ = std::move(rows); }  // counts no tokens
  // Adds the pending rows to the sum, in float64. For a statistic that is complete.
  void FoldPending();

  // Digest of the multiset of chunks that went in: the sum modulo 2^128 of the chunks' XXH3-128
  // hashes, so it does not depend on the order or on which stream a chunk came through.
  void AddChunkDigest(absl::Span<const std::byte> chunk);
  std::string DigestHex() const;

  // Folds what is pending on both sides. INVALID_ARGUMENT where the specs differ.
  absl::Status Merge(const SecondMoment& other);

  // Columns that were 0 in every token.
  int64_t DeadInputs() const;

  // M = sum / tokens, restricted to the blocks of `block_size` columns on the diagonal: C/B x B x
  // B. FAILED_PRECONDITION without tokens; INVALID_ARGUMENT where a block-diagonal sum has blocks
  // that are no multiple of `block_size`.
  absl::StatusOr<Tensor> BlockDiagonalMean(int64_t block_size) const;
  // M = sum / tokens, C x C. FAILED_PRECONDITION for a block-diagonal sum or without tokens.
  absl::StatusOr<Tensor> FullMean() const;

  // Durable form, little-endian, documented in docs/formats.md: header, lower triangles,
  // pending rows, sample; ends with an XXH3-64 of all before it. Parse checks everything of
  // untrusted bytes before it allocates (DATA_LOSS).
  std::string Serialize() const;
  int64_t SerializedBytes() const;
  static absl::StatusOr<SecondMoment> Parse(absl::string_view bytes);

 private:
  MomentSpec spec_;
  int64_t tokens_ = 0;
  unsigned __int128 digest_ = 0;
  std::vector<double> sum_;
  std::vector<double> pending_;
  RowSample sample_;
};

}  // namespace quantd::compute
