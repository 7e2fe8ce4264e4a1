#include "compute/backend/token_accumulator.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace quantd::compute {
namespace {

constexpr int64_t kCheckGrain = int64_t{1} << 16;  // elements a thread looks at at a time

int64_t FindBeyondFloat(const std::byte* data, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    double value;
    std::memcpy(&value, data + i * 8, 8);
    if (std::abs(value) > std::numeric_limits<float>::max()) return i;
  }
  return -1;
}

// The first element of `count` that `find` (of a piece; -1 for none) finds, or -1.
int64_t FindFirst(WorkerPool& pool, DType dtype, const std::byte* data, int64_t count,
                  absl::FunctionRef<int64_t(const std::byte* data, int64_t count)> find) {
  std::atomic<int64_t> first{count};
  pool.ParallelFor(0, count, kCheckGrain, [&](int64_t begin, int64_t end) {
    const int64_t at = find(data + begin * static_cast<int64_t>(SizeOf(dtype)), end - begin);
    if (at < 0) return;
    int64_t least = first.load();
    while (begin + at < least && !first.compare_exchange_weak(least, begin + at)) {
    }
  });
  return first < count ? first.load() : -1;
}

// tokens x cols finite elements of `dtype`, whose magnitudes float32 can hold.
absl::Status CheckRows(WorkerPool& pool, absl::string_view what, int64_t cols, DType dtype,
                       int64_t tokens, absl::Span<const std::byte> data) {
  const int64_t row_bytes = cols * static_cast<int64_t>(SizeOf(dtype));
  const auto size = static_cast<int64_t>(data.size());
  if (tokens < 1 || size / row_bytes != tokens || size % row_bytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        what, ": expected at least one token and ", row_bytes, " bytes a token (", cols,
        " columns of ", NameOf(dtype), "); got ", tokens, " tokens in ", size, " bytes"));
  }
  int64_t bad = FindFirst(
      pool, dtype, data.data(), tokens * cols,
      [&](const std::byte* piece, int64_t count) { return FindNonFinite(dtype, piece, count); });
  absl::string_view found = "NaN or Inf";
  if (bad < 0 && dtype == DType::kF64) {
    bad = FindFirst(pool, dtype, data.data(), tokens * cols, FindBeyondFloat);
    found = "a magnitude beyond float32";
  }
  if (bad < 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, ": expected finite values; got ", found,
                                                 " in row ", bad / cols, ", column ", bad % cols));
}

absl::Status CheckWeights(int64_t tokens, absl::Span<const float> weights) {
  if (static_cast<int64_t>(weights.size()) != tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("token weights: expected ", tokens, ", one a token; got ", weights.size()));
  }
  for (size_t i = 0; i < weights.size(); ++i) {
    if (std::isfinite(weights[i]) && weights[i] >= 0) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "token weights: expected finite values >= 0; got ", weights[i], " for row ", i));
  }
  return absl::OkStatus();
}

absl::Status CheckChunk(WorkerPool& pool, const MomentSpec& spec, const TokenChunk& chunk) {
  if (!IsFloat(chunk.dtype)) {
    return absl::InvalidArgumentError(
        absl::StrCat("activations: expected F64, F32, F16 or BF16; got ", NameOf(chunk.dtype)));
  }
  absl::Status status =
      CheckRows(pool, "activations", spec.cols, chunk.dtype, chunk.tokens, chunk.data);
  if (!status.ok()) return status;
  if (spec.kind == MomentKind::kWeighted) {
    status = CheckWeights(chunk.tokens, chunk.weights);
  } else if (!chunk.weights.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "token weights: expected none for ", NameOf(spec.kind), "; got ", chunk.weights.size()));
  }
  if (!status.ok()) return status;
  if (spec.is_paired()) {
    return CheckRows(pool, "paired data", spec.paired_cols, chunk.dtype, chunk.tokens,
                     chunk.paired);
  }
  if (chunk.paired.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("paired data: expected none for ",
                                                 NameOf(spec.kind), "; got ", chunk.paired.size(),
                                                 " bytes"));
}

class TokenAccumulator final : public MomentAccumulator {
 public:
  TokenAccumulator(WorkerPool& pool, SecondMoment moment, std::unique_ptr<TokenSum> sum)
      : pool_(pool), spec_(moment.spec()), moment_(std::move(moment)), sum_(std::move(sum)) {}

  using MomentAccumulator::Add;
  absl::Status Add(absl::string_view key, int64_t first_token, const TokenChunk& chunk) override {
    if (!lost_.ok()) return lost_;
    if (absl::Status status = CheckChunk(pool_, spec_, chunk); !status.ok()) return status;
    const bool weighted = spec_.kind == MomentKind::kWeighted;
    lost_ = weighted ? AppendWeighted(chunk)
                     : Append(chunk.dtype, chunk.data.data(), chunk.paired.data(), chunk.tokens);
    if (!lost_.ok()) return lost_;
    Sample(key, first_token, chunk);
    for (const float weight : chunk.weights) moment_.AddWeight(weight);
    moment_.AddChunkDigest(chunk.data, weighted ? BytesOf(chunk.weights) : chunk.paired);
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
  static absl::Span<const std::byte> BytesOf(absl::Span<const float> values) {
    return {reinterpret_cast<const std::byte*>(values.data()), values.size() * sizeof(float)};
  }

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
    absl::StatusOr<SecondMoment> moment =
        start == nullptr ? SecondMoment::Create(spec) : absl::StatusOr<SecondMoment>(*start);
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
