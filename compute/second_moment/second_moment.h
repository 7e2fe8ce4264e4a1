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

// Which products are summed. x: a layer's inputs in the original model; xhat: its inputs in the
// quantized one; r, rhat: what the residual stream holds beside its outputs, in both.
enum class MomentKind : uint8_t {
  kSecondMoment,  // sum of x x^T, divided by the tokens
  kWeighted,      // sum of p x x^T, p >= 0 a token's weight, divided by the sum of the weights
  kCross,         // sum of x xhat^T (C x C, not symmetric), divided by the tokens
  kResidual,      // sum of (r - rhat) xhat^T (R x C), divided by the tokens
};
absl::string_view NameOf(MomentKind kind);  // "SECOND_MOMENT", ... as in the API

// What is accumulated. Partial sums merge only where these agree.
struct MomentSpec {
  MomentKind kind = MomentKind::kSecondMoment;
  MomentLayout layout = MomentLayout::kFull;  // kFull for kCross and kResidual
  int64_t block_size = 0;     // B, kBlockDiagonal only: 2 .. 256, divides cols; else 0
  int64_t cols = 0;           // C, 1 .. 2^20
  int64_t paired_cols = 0;    // kCross: C; kResidual: R, 1 .. 2^20; else 0
  int64_t sample_rows = 512;  // 0 .. 4096
  uint64_t sample_seed = 0;

  absl::Status Validate() const;
  bool is_paired() const { return kind == MomentKind::kCross || kind == MomentKind::kResidual; }
  // Rows of the matrix: those of the left factor of the products.
  int64_t rows() const { return is_paired() ? paired_cols : cols; }
  int64_t SumElements() const;  // R * C, C * C or C * B
  // Values that a token brings: C, or for the paired kinds those of the left factor and then C.
  int64_t TokenValues() const { return is_paired() ? paired_cols + cols : cols; }
  friend bool operator==(const MomentSpec&, const MomentSpec&) = default;
};

// Sum of products of tokens (MomentKind), x x^T in R^(C x C) in the first place; never
// mean-centred: a commutative monoid under Merge, so partial sums from several streams or machines
// add up. Value type, float64.
// The sum is row-major, R x C, C x C or C/B x B x B. Unless the kind is paired it is symmetric:
// both triangles are filled.
//
// A snapshot of a running accumulator may end inside a slice. Its rows since the last fold are then
// `pending`: counted in tokens() and in the means, not yet in sum(). They travel in the durable
// form, so that an accumulator which continues from it yields the bits of one that never stopped.
class SecondMoment {
 public:
  // The empty sum. INVALID_ARGUMENT for an invalid spec, RESOURCE_EXHAUSTED where memory is short.
  static absl::StatusOr<SecondMoment> Create(const MomentSpec& spec);
  // The same without memory for the sum, for accumulators that keep it elsewhere: SetSum follows.
  static absl::StatusOr<SecondMoment> CreateWithoutSum(const MomentSpec& spec);
  // A sum that was accumulated elsewhere: `matrix` is the sum over `tokens` tokens or, `is_mean`,
  // that divided by divisor(); row-major as sum(). `weight_sum`: of kWeighted alone, > 0; else 0.
  // INVALID_ARGUMENT for tokens < 1, a wrong size, NaN or Inf and, unless the kind is paired, a
  // negative diagonal or an asymmetry above 1e-3 of the entries' scale. The sample is empty; add to
  // mutable_sample().
  static absl::StatusOr<SecondMoment> FromMatrix(const MomentSpec& spec, int64_t tokens,
                                                 bool is_mean, absl::Span<const double> matrix,
                                                 double weight_sum = 0.0);

  const MomentSpec& spec() const { return spec_; }
  int64_t tokens() const { return tokens_; }
  double weight_sum() const { return weight_sum_; }  // kWeighted; else 0
  // What the means divide by: the tokens, or the sum of their weights.
  double divisor() const {
    return spec_.kind == MomentKind::kWeighted ? weight_sum_ : static_cast<double>(tokens_);
  }
  absl::Span<const double> sum() const { return sum_; }
  absl::Span<double> mutable_sum() { return absl::MakeSpan(sum_); }
  // Moves the sum out and back in, for accumulators that keep it in another order meanwhile.
  std::vector<double> ReleaseSum() { return std::exchange(sum_, {}); }
  void SetSum(std::vector<double> sum) { sum_ = std::move(sum); }
  const RowSample& sample() const { return sample_; }
  RowSample& mutable_sample() { return sample_; }
  void AddTokens(int64_t tokens) { tokens_ += tokens; }
  void AddWeight(double weight) { weight_sum_ += weight; }

  // Rows not yet in sum(), row-major, fewer than kSliceTokens, spec().TokenValues() wide: x; for
  // kWeighted sqrt(p) x; for the paired kinds the left factor and then xhat.
  int64_t pending_rows() const {
    return static_cast<int64_t>(pending_.size()) / spec_.TokenValues();
  }
  absl::Span<const double> pending() const { return pending_; }
  void SetPending(std::vector<double> rows) { pending_ = std::move(rows); }  // counts no tokens
  // Adds the pending rows to the sum, in float64. For a statistic that is complete.
  void FoldPending();

  // Digest of the multiset of chunks that went in: the sum modulo 2^128 of the chunks' XXH3-128
  // hashes, so it does not depend on the order or on which stream a chunk came through. `beside`:
  // the chunk's weights or paired data.
  void AddChunkDigest(absl::Span<const std::byte> chunk, absl::Span<const std::byte> beside = {}) {
    AddDigest(DigestOf(chunk, beside));
  }
  // The same in two steps, for those who compute the digest beside something else.
  static unsigned __int128 DigestOf(absl::Span<const std::byte> chunk,
                                    absl::Span<const std::byte> beside);
  void AddDigest(unsigned __int128 digest) { digest_ += digest; }
  std::string DigestHex() const;

  // Folds what is pending on both sides. INVALID_ARGUMENT where the specs differ.
  absl::Status Merge(const SecondMoment& other);

  // Columns that were 0 in every token; in every token with a weight for kWeighted. For a paired
  // kind: the columns of the sum that are 0.
  int64_t DeadInputs() const;

  // Whether there is anything to divide by. FAILED_PRECONDITION without tokens, or where all of
  // their weights are 0.
  absl::Status CheckUsable() const;
  // M = sum / divisor, restricted to the blocks of `block_size` columns on the diagonal: C/B x B x
  // B. FAILED_PRECONDITION as CheckUsable; INVALID_ARGUMENT where a block-diagonal sum has blocks
  // that are no multiple of `block_size`, and for a paired kind.
  absl::StatusOr<Tensor> BlockDiagonalMean(int64_t block_size) const;
  // M = sum / divisor, C x C or R x C. FAILED_PRECONDITION for a block-diagonal sum and as
  // CheckUsable.
  absl::StatusOr<Tensor> FullMean() const;

  // Durable form, little-endian, documented in docs/formats.md: header, lower triangles,
  // pending rows, sample; ends with an XXH3-64 of all before it. Parse checks everything of
  // untrusted bytes before it allocates (DATA_LOSS).
  std::string Serialize() const;
  int64_t SerializedBytes() const;
  static absl::StatusOr<SecondMoment> Parse(absl::string_view bytes);

 private:
  absl::StatusOr<Tensor> PairedMean() const;

  MomentSpec spec_;
  int64_t tokens_ = 0;
  double weight_sum_ = 0.0;
  unsigned __int128 digest_ = 0;
  std::vector<double> sum_;
  std::vector<double> pending_;
  RowSample sample_;
};

}  // namespace quantd::compute
