#include "compute/backend/token_chunk.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"

namespace quantd::compute {
namespace {

absl::Status CheckSize(absl::string_view what, int64_t cols, DType dtype, int64_t tokens,
                       absl::Span<const std::byte> data) {
  const int64_t row_bytes = cols * static_cast<int64_t>(SizeOf(dtype));
  const auto size = static_cast<int64_t>(data.size());
  if (tokens >= 1 && size / row_bytes == tokens && size % row_bytes == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      what, ": expected at least one token and ", row_bytes, " bytes a token (", cols,
      " columns of ", NameOf(dtype), "); got ", tokens, " tokens in ", size, " bytes"));
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

int64_t FindBeyondFloat(const std::byte* data, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    double value;
    std::memcpy(&value, data + i * 8, 8);
    if (std::abs(value) > std::numeric_limits<float>::max()) return i;
  }
  return -1;
}

// Elements that threads look at, a piece at a time, for the first one that cannot be.
class Values {
 public:
  Values(absl::string_view what, int64_t cols, DType dtype, absl::Span<const std::byte> data)
      : what_(what),
        cols_(cols),
        dtype_(dtype),
        data_(data.data()),
        count_(static_cast<int64_t>(data.size() / SizeOf(dtype))),
        first_(count_) {}

  int64_t pieces() const { return (count_ + kPiece - 1) / kPiece; }

  // Thread-safe.
  void LookAt(int64_t piece) {
    const int64_t begin = piece * kPiece;
    const int64_t size = std::min(kPiece, count_ - begin);
    const std::byte* const data = data_ + begin * static_cast<int64_t>(SizeOf(dtype_));
    int64_t bad = FindNonFinite(dtype_, data, size);
    if (dtype_ == DType::kF64) {
      const int64_t beyond = FindBeyondFloat(data, bad < 0 ? size : bad);
      if (beyond >= 0) bad = beyond;
    }
    if (bad < 0) return;
    int64_t first = first_.load();
    while (begin + bad < first && !first_.compare_exchange_weak(first, begin + bad)) {
    }
  }

  // After all pieces were looked at.
  absl::Status Result() const {
    const int64_t bad = first_.load();
    if (bad == count_) return absl::OkStatus();
    const std::byte* const data = data_ + bad * static_cast<int64_t>(SizeOf(dtype_));
    return absl::InvalidArgumentError(absl::StrCat(
        what_, ": expected finite values; got ",
        FindNonFinite(dtype_, data, 1) == 0 ? "NaN or Inf" : "a magnitude beyond float32",
        " in row ", bad / cols_, ", column ", bad % cols_));
  }

 private:
  static constexpr int64_t kPiece = int64_t{1} << 16;

  const absl::string_view what_;
  const int64_t cols_;
  const DType dtype_;
  const std::byte* const data_;
  const int64_t count_;
  std::atomic<int64_t> first_;
};

// What the digest covers beside the data.
absl::Span<const std::byte> Beside(const TokenChunk& chunk) {
  if (chunk.weights.empty()) return chunk.paired;
  return {reinterpret_cast<const std::byte*>(chunk.weights.data()),
          chunk.weights.size() * sizeof(float)};
}

}  // namespace

absl::Status CheckChunkShape(const MomentSpec& spec, const TokenChunk& chunk) {
  if (!IsFloat(chunk.dtype)) {
    return absl::InvalidArgumentError(
        absl::StrCat("activations: expected F64, F32, F16 or BF16; got ", NameOf(chunk.dtype)));
  }
  absl::Status status = CheckSize("activations", spec.cols, chunk.dtype, chunk.tokens, chunk.data);
  if (!status.ok()) return status;
  if (spec.kind == MomentKind::kWeighted) {
    status = CheckWeights(chunk.tokens, chunk.weights);
  } else if (!chunk.weights.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "token weights: expected none for ", NameOf(spec.kind), "; got ", chunk.weights.size()));
  }
  if (!status.ok()) return status;
  if (spec.is_paired()) {
    return CheckSize("paired data", spec.paired_cols, chunk.dtype, chunk.tokens, chunk.paired);
  }
  if (chunk.paired.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("paired data: expected none for ",
                                                 NameOf(spec.kind), "; got ", chunk.paired.size(),
                                                 " bytes"));
}

absl::StatusOr<ChunkDigest> CheckAndDigestChunk(WorkerPool& pool, const MomentSpec& spec,
                                                const TokenChunk& chunk) {
  Values data("activations", spec.cols, chunk.dtype, chunk.data);
  Values paired("paired data", std::max<int64_t>(spec.paired_cols, 1), chunk.dtype, chunk.paired);
  ChunkDigest digest = 0;
  // The digest first: it is one long piece.
  pool.ParallelFor(0, 1 + data.pieces() + paired.pieces(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (i == 0) {
        digest = SecondMoment::DigestOf(chunk.data, Beside(chunk));
      } else if (i <= data.pieces()) {
        data.LookAt(i - 1);
      } else {
        paired.LookAt(i - 1 - data.pieces());
      }
    }
  });
  if (absl::Status status = data.Result(); !status.ok()) return status;
  if (absl::Status status = paired.Result(); !status.ok()) return status;
  return digest;
}

}  // namespace quantd::compute
