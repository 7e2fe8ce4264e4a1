#include "compute/backend/token_accumulator.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/backend/token_chunk.h"

namespace quantd::compute {
namespace {

class TokenAccumulator final : public MomentAccumulator {
 public:
  TokenAccumulator(WorkerPool& pool, SecondMoment moment, std::unique_ptr<TokenSum> sum)
      : pool_(pool), spec_(moment.spec()), moment_(std::move(moment)), sum_(std::move(sum)) {}

  using MomentAccumulator::Add;
  absl::Status Add(absl::string_view key, int64_t first_token, const TokenChunk& chunk) override {
    if (!lost_.ok()) return lost_;
    if (absl::Status status = CheckChunkShape(spec_, chunk); !status.ok()) return status;
    absl::StatusOr<ChunkDigest> digest = CheckAndDigestChunk(pool_, spec_, chunk);
    if (!digest.ok()) return digest.status();
    lost_ = spec_.kind == MomentKind::kWeighted
                ? AppendWeighted(chunk)
                : Append(chunk.dtype, chunk.data.data(), chunk.paired.data(), chunk.tokens);
    if (!lost_.ok()) return lost_;
    Sample(key, first_token, chunk);
    for (const float weight : chunk.weights) moment_.AddWeight(weight);
    moment_.AddDigest(*digest);
    moment_.AddTokens(chunk.tokens);
    return absl::OkStatus();
  }

  absl::StatusOr<SecondMoment> Snapshot() override {
    if (!lost_.ok()) return lost_;
    try {
      SecondMoment snapshot = moment_;
      absl::StatusOr<std::vector<double>> sum = sum_->Sum();
      if (!sum.ok()) return sum.status();
      absl::StatusOr<std::vector<double>> rows = sum_->Rows();
      if (!rows.ok()) return rows.status();
      snapshot.SetSum(*std::move(sum));
      snapshot.SetPending(*std::move(rows));
      return snapshot;
    } catch (const std::bad_alloc&) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory for a snapshot of a second moment of ", spec_.cols, " columns"));
    }
  }

 private:
  absl::Status Append(DType dtype, const std::byte* rows, const std::byte* paired, int64_t count) {
    const int64_t row_bytes = spec_.cols * static_cast<int64_t>(SizeOf(dtype));
    const int64_t paired_bytes = spec_.paired_cols * static_cast<int64_t>(SizeOf(dtype));
    for (int64_t done = 0; done < count;) {
      const int64_t some = std::min(count - done, kSliceTokens - sum_->rows());
      absl::Status status =
          sum_->Append(dtype, rows + done * row_bytes, paired + done * paired_bytes, some);
      if (!status.ok()) return status;
      done += some;
      if (sum_->rows() < kSliceTokens) break;
      if (status = sum_->Fold(); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // p x x^T is the product of sqrt(p) x with itself. Weights of 1 leave the rows as they are, and a
  // slice's precision follows from values: the bits are then those of the unweighted sum.
  absl::Status AppendWeighted(const TokenChunk& chunk) {
    const int64_t row_bytes = spec_.cols * static_cast<int64_t>(SizeOf(chunk.dtype));
    std::vector<double> rows(kSliceTokens * spec_.cols);
    for (int64_t done = 0; done < chunk.tokens; done += kSliceTokens) {
      const int64_t count = std::min(kSliceTokens, chunk.tokens - done);
      pool_.ParallelFor(0, count, 16, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          double* row = rows.data() + t * spec_.cols;
          ConvertToDouble(chunk.dtype, chunk.data.data() + (done + t) * row_bytes, spec_.cols, row);
          const double root = std::sqrt(static_cast<double>(chunk.weights[done + t]));
          for (int64_t c = 0; c < spec_.cols; ++c) row[c] *= root;
        }
      });
      absl::Status status =
          Append(DType::kF64, reinterpret_cast<const std::byte*>(rows.data()), nullptr, count);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  void Sample(absl::string_view key, int64_t first_token, const TokenChunk& chunk) {
    RowSample& sample = moment_.mutable_sample();
    if (sample.capacity() == 0) return;
    const int64_t row_bytes = spec_.cols * static_cast<int64_t>(SizeOf(chunk.dtype));
    for (int64_t t = 0; t < chunk.tokens; ++t) {
      const uint64_t priority = sample.PriorityOf(key, first_token + t);
      if (!sample.Wants(priority)) continue;
      std::vector<float> values(spec_.cols);
      ConvertToFloat(chunk.dtype, chunk.data.data() + t * row_bytes, spec_.cols, values.data());
      sample.Add(priority, std::move(values));
    }
  }

  WorkerPool& pool_;
  const MomentSpec spec_;
  SecondMoment moment_;  // all but the sum and the pending rows
  std::unique_ptr<TokenSum> sum_;
  absl::Status lost_;  // what the device said when it lost the sum
};

}  // namespace

absl::StatusOr<std::unique_ptr<MomentAccumulator>> NewTokenAccumulator(WorkerPool& pool,
                                                                       const MomentSpec& spec,
                                                                       const SecondMoment* start,
                                                                       NewTokenSum new_sum) {
  if (start != nullptr && !(start->spec() == spec)) {
    return absl::InvalidArgumentError("the second moment to continue from has another geometry");
  }
  try {
    absl::StatusOr<SecondMoment> moment = start == nullptr ? SecondMoment::CreateWithoutSum(spec)
                                                           : absl::StatusOr<SecondMoment>(*start);
    if (!moment.ok()) return moment.status();
    absl::StatusOr<std::unique_ptr<TokenSum>> sum = new_sum(moment->ReleaseSum());
    if (!sum.ok()) return sum.status();
    absl::Status status = (*sum)->Resume(moment->pending());
    if (!status.ok()) return status;
    moment->SetPending({});
    return std::make_unique<TokenAccumulator>(pool, *std::move(moment), *std::move(sum));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory to accumulate a second moment of ", spec.cols, " columns"));
  }
}

}  // namespace quantd::compute
