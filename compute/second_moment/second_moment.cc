#include "compute/second_moment/second_moment.h"

// The library as distributed does without the vector instructions that this build may use.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace quantd::compute {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr double kMaxAsymmetry = 1e-3;

// The diagonal blocks that a sum consists of: one of C columns, or C/B of B.
int64_t BlockWidth(const MomentSpec& spec) {
  return spec.layout == MomentLayout::kFull ? spec.cols : spec.block_size;
}

std::string Describe(const MomentSpec& spec) {
  return absl::StrCat("{", NameOf(spec.kind), ", ",
                      spec.is_paired() ? absl::StrCat("rows ", spec.rows(), ", ") : std::string(),
                      "cols ", spec.cols,
                      spec.layout == MomentLayout::kFull
                          ? std::string(", full")
                          : absl::StrCat(", block-diagonal of ", spec.block_size),
                      ", sample_rows ", spec.sample_rows, ", sample_seed ", spec.sample_seed, "}");
}

// sum += rows^T rows by blocks, both triangles; or left^T right for the two parts of paired rows.
void AddProduct(const MomentSpec& spec, absl::Span<const double> rows, absl::Span<double> sum) {
  if (rows.empty()) return;
  const int64_t values = spec.TokenValues();
  const Eigen::Map<const RowMajor> x(rows.data(), static_cast<int64_t>(rows.size()) / values,
                                     values);
  if (spec.is_paired()) {
    Eigen::Map<RowMajor>(sum.data(), spec.rows(), spec.cols).noalias() +=
        x.leftCols(spec.rows()).transpose() * x.rightCols(spec.cols);
    return;
  }
  const int64_t width = BlockWidth(spec);
  for (int64_t b = 0; b < spec.cols / width; ++b) {
    Eigen::Map<RowMajor> block(sum.data() + b * width * width, width, width);
    block.selfadjointView<Eigen::Lower>().rankUpdate(x.middleCols(b * width, width).transpose());
    block.triangularView<Eigen::StrictlyUpper>() = block.transpose();
  }
}

// Averages the two triangles of one block. INVALID_ARGUMENT names the entry that cannot be.
absl::Status Symmetrize(int64_t block, Eigen::Map<RowMajor> m) {
  const double scale = m.diagonal().cwiseAbs().maxCoeff();
  for (int64_t i = 0; i < m.rows(); ++i) {
    if (m(i, i) < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("second_moment: expected a diagonal >= 0; got ", m(i, i), " at column ",
                       block * m.rows() + i));
    }
    for (int64_t j = 0; j < i; ++j) {
      if (std::abs(m(i, j) - m(j, i)) > kMaxAsymmetry * scale) {
        return absl::InvalidArgumentError(absl::StrCat(
            "second_moment: expected a symmetric matrix; got ", m(i, j), " at (", i, ", ", j,
            ") and ", m(j, i), " across", block == 0 ? "" : absl::StrCat(" in block ", block)));
      }
      m(i, j) = m(j, i) = m(i, j) + (m(j, i) - m(i, j)) / 2;
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPairing(const MomentSpec& spec) {
  if (spec.is_paired() && spec.layout != MomentLayout::kFull) {
    return absl::InvalidArgumentError(
        absl::StrCat("layout: expected full for ", NameOf(spec.kind), "; got block-diagonal"));
  }
  const auto expected = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat("paired_cols: expected ", parts..., " for ",
                                                   NameOf(spec.kind), "; got ", spec.paired_cols));
  };
  if (spec.kind == MomentKind::kCross && spec.paired_cols != spec.cols) {
    return expected(spec.cols, ", as cols,");
  }
  if (spec.kind == MomentKind::kResidual &&
      (spec.paired_cols < 1 || spec.paired_cols > kMaxDimension)) {
    return expected("1..", kMaxDimension);
  }
  if (!spec.is_paired() && spec.paired_cols != 0) return expected("0");
  return absl::OkStatus();
}

absl::Status CheckWeightSum(const MomentSpec& spec, double weight_sum) {
  if (spec.kind != MomentKind::kWeighted) {
    if (weight_sum == 0.0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("weight_sum: expected 0 for ", NameOf(spec.kind), "; got ", weight_sum));
  }
  if (std::isfinite(weight_sum) && weight_sum > 0.0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("weight_sum: expected a finite sum above 0; got ", weight_sum));
}

}  // namespace

absl::string_view NameOf(MomentKind kind) {
  switch (kind) {
    case MomentKind::kSecondMoment:
      return "SECOND_MOMENT";
    case MomentKind::kWeighted:
      return "WEIGHTED";
    case MomentKind::kCross:
      return "CROSS_MOMENT";
    case MomentKind::kResidual:
      return "RESIDUAL_MOMENT";
  }
  return "unknown";
}

absl::Status MomentSpec::Validate() const {
  if (cols < 1 || cols > kMaxDimension) {
    return absl::InvalidArgumentError(
        absl::StrCat("cols: expected 1..", kMaxDimension, "; got ", cols));
  }
  if (layout == MomentLayout::kFull && block_size != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("block_size: expected none for a full second moment; got ", block_size));
  }
  if (layout == MomentLayout::kBlockDiagonal &&
      (block_size < 2 || block_size > 256 || cols % block_size != 0)) {
    return absl::InvalidArgumentError(absl::StrCat("block_size: expected 2..256 and a divisor of ",
                                                   cols, " columns; got ", block_size));
  }
  if (sample_rows < 0 || sample_rows > 4096) {
    return absl::InvalidArgumentError(
        absl::StrCat("sample_rows: expected 0..4096; got ", sample_rows));
  }
  return CheckPairing(*this);
}

int64_t MomentSpec::SumElements() const {
  return layout == MomentLayout::kFull ? rows() * cols : cols * block_size;
}

absl::StatusOr<SecondMoment> SecondMoment::CreateWithoutSum(const MomentSpec& spec) {
  if (absl::Status status = spec.Validate(); !status.ok()) return status;
  SecondMoment moment;
  moment.spec_ = spec;
  moment.sample_ = RowSample(spec.sample_rows, spec.cols, spec.sample_seed);
  return moment;
}

absl::StatusOr<SecondMoment> SecondMoment::Create(const MomentSpec& spec) {
  absl::StatusOr<SecondMoment> moment = CreateWithoutSum(spec);
  if (!moment.ok()) return moment.status();
  try {
    moment->sum_.resize(spec.SumElements());
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for a second moment ", Describe(spec)));
  }
  return moment;
}

absl::StatusOr<SecondMoment> SecondMoment::FromMatrix(const MomentSpec& spec, int64_t tokens,
                                                      bool is_mean, absl::Span<const double> matrix,
                                                      double weight_sum) {
  if (absl::Status status = spec.Validate(); !status.ok()) return status;
  if (absl::Status status = CheckWeightSum(spec, weight_sum); !status.ok()) return status;
  if (tokens < 1) {
    return absl::InvalidArgumentError(absl::StrCat("tokens: expected at least 1; got ", tokens));
  }
  if (static_cast<int64_t>(matrix.size()) != spec.SumElements()) {
    return absl::InvalidArgumentError(absl::StrCat("second_moment: expected ", spec.SumElements(),
                                                   " elements for ", Describe(spec), "; got ",
                                                   matrix.size()));
  }
  const int64_t bad = FindNonFinite(DType::kF64, reinterpret_cast<const std::byte*>(matrix.data()),
                                    static_cast<int64_t>(matrix.size()));
  if (bad >= 0) {
    return absl::InvalidArgumentError(absl::StrCat("second_moment: expected finite values; got ",
                                                   matrix[bad], " at element ", bad));
  }
  absl::StatusOr<SecondMoment> moment = Create(spec);
  if (!moment.ok()) return moment.status();
  std::copy(matrix.begin(), matrix.end(), moment->sum_.begin());
  const int64_t width = BlockWidth(spec);
  for (int64_t b = 0; !spec.is_paired() && b < spec.cols / width; ++b) {
    absl::Status status =
        Symmetrize(b, Eigen::Map<RowMajor>(moment->sum_.data() + b * width * width, width, width));
    if (!status.ok()) return status;
  }
  moment->tokens_ = tokens;
  moment->weight_sum_ = weight_sum;
  if (is_mean) {
    for (double& value : moment->sum_) value *= moment->divisor();
  }
  return moment;
}

void SecondMoment::FoldPending() {
  AddProduct(spec_, pending_, absl::MakeSpan(sum_));
  pending_.clear();
}

unsigned __int128 SecondMoment::DigestOf(absl::Span<const std::byte> chunk,
                                         absl::Span<const std::byte> beside) {
  XXH128_hash_t hash = XXH3_128bits(chunk.data(), chunk.size());
  if (!beside.empty()) {
    // Of both hashes, so that the boundary between the parts counts.
    const XXH128_hash_t both[2] = {hash, XXH3_128bits(beside.data(), beside.size())};
    hash = XXH3_128bits(both, sizeof(both));
  }
  return (static_cast<unsigned __int128>(hash.high64) << 64) | hash.low64;
}

std::string SecondMoment::DigestHex() const {
  return absl::StrFormat("%016x%016x", static_cast<uint64_t>(digest_ >> 64),
                         static_cast<uint64_t>(digest_));
}

absl::Status SecondMoment::Merge(const SecondMoment& other) {
  if (!(spec_ == other.spec_)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "second moments do not fit each other: ", Describe(spec_), " and ", Describe(other.spec_)));
  }
  FoldPending();
  for (size_t i = 0; i < sum_.size(); ++i) sum_[i] += other.sum_[i];
  AddProduct(spec_, other.pending_, absl::MakeSpan(sum_));
  tokens_ += other.tokens_;
  weight_sum_ += other.weight_sum_;
  digest_ += other.digest_;
  sample_.Merge(other.sample_);
  return absl::OkStatus();
}

int64_t SecondMoment::DeadInputs() const {
  if (spec_.is_paired()) {
    SecondMoment folded = *this;
    folded.FoldPending();
    const Eigen::Map<const RowMajor> sum(folded.sum_.data(), spec_.rows(), spec_.cols);
    return (sum.array() == 0.0).colwise().all().count();
  }
  const int64_t width = BlockWidth(spec_);
  int64_t dead = 0;
  for (int64_t c = 0; c < spec_.cols; ++c) {
    bool is_dead = sum_[c * width + c % width] == 0.0;
    for (int64_t t = 0; is_dead && t < pending_rows(); ++t) {
      is_dead = pending_[t * spec_.cols + c] == 0.0;
    }
    dead += is_dead;
  }
  return dead;
}

absl::Status SecondMoment::CheckUsable() const {
  if (tokens_ == 0) return absl::FailedPreconditionError("the second moment has no tokens");
  if (divisor() > 0.0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "expected token weights with a sum above 0; all of the ", tokens_, " tokens have weight 0"));
}

absl::StatusOr<Tensor> SecondMoment::BlockDiagonalMean(int64_t block_size) const {
  if (absl::Status status = CheckUsable(); !status.ok()) return status;
  if (spec_.is_paired()) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected a SECOND_MOMENT or WEIGHTED; got a ", NameOf(spec_.kind)));
  }
  const int64_t width = BlockWidth(spec_);
  if (block_size < 1 || width % block_size != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "second_moment: expected blocks of a multiple of ", block_size, " columns; got ", width));
  }
  absl::StatusOr<Tensor> mean =
      Tensor::Create(DType::kF64, {spec_.cols / block_size, block_size, block_size});
  if (!mean.ok()) return mean.status();
  const Eigen::Map<const RowMajor> pending(pending_.data(), pending_rows(), spec_.cols);
  for (int64_t k = 0; k < spec_.cols / block_size; ++k) {
    const int64_t column = k * block_size;
    const Eigen::Map<const RowMajor> source(sum_.data() + column / width * width * width, width,
                                            width);
    Eigen::Map<RowMajor> block(mean->as<double>().data() + k * block_size * block_size, block_size,
                               block_size);
    block = source.block(column % width, column % width, block_size, block_size);
    if (pending.rows() > 0) {
      const auto x = pending.middleCols(column, block_size);
      block.selfadjointView<Eigen::Lower>().rankUpdate(x.transpose());
      block.triangularView<Eigen::StrictlyUpper>() = block.transpose();
    }
    block /= divisor();
  }
  return mean;
}

absl::StatusOr<Tensor> SecondMoment::PairedMean() const {
  if (absl::Status status = CheckUsable(); !status.ok()) return status;
  absl::StatusOr<Tensor> mean = Tensor::Create(DType::kF64, {spec_.rows(), spec_.cols});
  if (!mean.ok()) return mean.status();
  const absl::Span<double> values = mean->as<double>();
  std::copy(sum_.begin(), sum_.end(), values.begin());
  AddProduct(spec_, pending_, values);
  for (double& value : values) value /= divisor();
  return mean;
}

absl::StatusOr<Tensor> SecondMoment::FullMean() const {
  if (spec_.layout != MomentLayout::kFull) {
    return absl::FailedPreconditionError(absl::StrCat(
        "expected a full second moment; got blocks of ", spec_.block_size, " columns"));
  }
  if (spec_.is_paired()) return PairedMean();
  absl::StatusOr<Tensor> mean = BlockDiagonalMean(spec_.cols);
  if (!mean.ok()) return mean.status();
  return Tensor::FromBytes(DType::kF64, {spec_.cols, spec_.cols}, mean->bytes());
}

}  // namespace quantd::compute
