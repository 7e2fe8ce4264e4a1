#include "compute/backend/cpu/moment_accumulator.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/backend/cpu/matrix_product.h"

namespace quantd::compute {
namespace {

constexpr int64_t kRowGrain = 16;  // rows a thread converts at a time
constexpr int64_t kMaxTile = 384;  // columns of a tile; its float32 product stays in the L2 cache
constexpr int64_t kMinTile = 128;

// Squares summed over a slice stay normal float32 numbers within these bounds of the exponent.
constexpr uint32_t kLowestExponent = 127 - 50;
constexpr uint32_t kHighestExponent = 127 + 50;

// Whether every value is zero or a bfloat16 value of moderate exponent. No early exit: vectorizes.
bool AreModerateBf16(const float* values, int64_t count) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(values[i]);
    const uint32_t exponent = (bits >> 23) & 0xff;
    const bool zero = (bits << 1) == 0;
    const bool moderate = exponent - kLowestExponent <= kHighestExponent - kLowestExponent;
    bad |= (bits & 0xffff) | static_cast<uint32_t>(!(zero | moderate));
  }
  return bad == 0;
}

int64_t FindBeyondFloat(const std::byte* data, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    double value;
    std::memcpy(&value, data + i * 8, 8);
    if (std::abs(value) > std::numeric_limits<float>::max()) return i;
  }
  return -1;
}

// Enough tiles to keep the pool busy, large enough to be products and not copies. Depends on the
// columns alone, lest the number of threads show in the bits.
int64_t TileColumns(int64_t cols) {
  const int64_t eighth = (cols / 8 + 31) / 32 * 32;
  return std::clamp(eighth, kMinTile, kMaxTile);
}

struct Tile {
  int64_t row;
  int64_t col;
};

// Tiles of the lower triangle, the costly ones (off the diagonal) first.
std::vector<Tile> LowerTiles(int64_t cols, int64_t tile) {
  std::vector<Tile> tiles;
  for (int64_t i = 0; i < cols; i += tile) {
    for (int64_t j = 0; j < i; j += tile) tiles.push_back({i, j});
  }
  for (int64_t i = 0; i < cols; i += tile) tiles.push_back({i, i});
  return tiles;
}

class CpuMomentAccumulator final : public MomentAccumulator {
 public:
  CpuMomentAccumulator(WorkerPool& pool, SecondMoment moment)
      : pool_(pool), cols_(moment.spec().cols), moment_(std::move(moment)) {
    narrow_.resize(kSliceTokens * cols_);
    if (moment_.pending_rows() > 0) {
      const absl::Span<const double> rows = moment_.pending();
      Append(DType::kF64, reinterpret_cast<const std::byte*>(rows.data()), moment_.pending_rows());
      moment_.SetPending({});
    }
  }

  absl::Status Add(absl::string_view key, int64_t first_token, DType dtype, int64_t tokens,
                   absl::Span<const std::byte> data) override {
    if (absl::Status status = Check(dtype, tokens, data); !status.ok()) return status;
    Sample(key, first_token, dtype, tokens, data);
    const int64_t row_bytes = cols_ * static_cast<int64_t>(SizeOf(dtype));
    for (int64_t done = 0; done < tokens;) {
      const int64_t rows = std::min(tokens - done, kSliceTokens - filled_);
      Append(dtype, data.data() + done * row_bytes, rows);
      done += rows;
      if (filled_ == kSliceTokens) Fold();
    }
    moment_.AddTokens(tokens);
    moment_.AddChunkDigest(data);
    return absl::OkStatus();
  }

  absl::StatusOr<SecondMoment> Snapshot() override {
    SecondMoment snapshot = moment_;
    Mirror(snapshot);
    std::vector<double> pending(filled_ * cols_);
    if (is_wide_) {
      std::copy_n(wide_.begin(), pending.size(), pending.begin());
    } else {
      std::copy_n(narrow_.begin(), pending.size(), pending.begin());
    }
    snapshot.SetPending(std::move(pending));
    return snapshot;
  }

 private:
  absl::Status Check(DType dtype, int64_t tokens, absl::Span<const std::byte> data) const {
    if (!IsFloat(dtype)) {
      return absl::InvalidArgumentError(
          absl::StrCat("activations: expected F64, F32, F16 or BF16; got ", NameOf(dtype)));
    }
    const int64_t row_bytes = cols_ * static_cast<int64_t>(SizeOf(dtype));
    if (tokens < 1 || static_cast<int64_t>(data.size()) / row_bytes != tokens ||
        static_cast<int64_t>(data.size()) % row_bytes != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "activations: expected at least one token and ", row_bytes, " bytes a token (", cols_,
          " columns of ", NameOf(dtype), "); got ", tokens, " tokens in ", data.size(), " bytes"));
    }
    const int64_t count = tokens * cols_;
    int64_t bad = FindNonFinite(dtype, data.data(), count);
    absl::string_view what = "NaN or Inf";
    if (bad < 0 && dtype == DType::kF64) {
      bad = FindBeyondFloat(data.data(), count);
      what = "a magnitude beyond float32";
    }
    if (bad < 0) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("activations: expected finite values; got ",
                                                   what, " in row ", bad / cols_, ", column ",
                                                   bad % cols_));
  }

  void Sample(absl::string_view key, int64_t first_token, DType dtype, int64_t tokens,
              absl::Span<const std::byte> data) {
    RowSample& sample = moment_.mutable_sample();
    if (sample.capacity() == 0) return;
    const int64_t row_bytes = cols_ * static_cast<int64_t>(SizeOf(dtype));
    for (int64_t t = 0; t < tokens; ++t) {
      const uint64_t priority = sample.PriorityOf(key, first_token + t);
      if (!sample.Wants(priority)) continue;
      std::vector<float> values(cols_);
      ConvertToFloat(dtype, data.data() + t * row_bytes, cols_, values.data());
      sample.Add(priority, std::move(values));
    }
  }

  // Puts rows behind those of the open slice. They fit.
  void Append(DType dtype, const std::byte* rows, int64_t count) {
    if (!is_wide_ && !AppendNarrow(dtype, rows, count)) Widen();
    if (is_wide_) {
      const int64_t row_bytes = cols_ * static_cast<int64_t>(SizeOf(dtype));
      pool_.ParallelFor(0, count, kRowGrain, [&](int64_t b, int64_t e) {
        ConvertToDouble(dtype, rows + b * row_bytes, (e - b) * cols_,
                        wide_.data() + (filled_ + b) * cols_);
      });
    }
    filled_ += count;
  }

  // False where a value needs more than bfloat16.
  bool AppendNarrow(DType dtype, const std::byte* rows, int64_t count) {
    std::atomic<bool> narrow{true};
    const int64_t row_bytes = cols_ * static_cast<int64_t>(SizeOf(dtype));
    pool_.ParallelFor(0, count, kRowGrain, [&](int64_t b, int64_t e) {
      if (!narrow.load(std::memory_order_relaxed)) return;
      float* to = narrow_.data() + (filled_ + b) * cols_;
      const int64_t values = (e - b) * cols_;
      ConvertToFloat(dtype, rows + b * row_bytes, values, to);
      bool fits = AreModerateBf16(to, values);
      if (fits && dtype == DType::kF64) {
        std::vector<double> exact(values);
        ConvertToDouble(dtype, rows + b * row_bytes, values, exact.data());
        fits = std::equal(exact.begin(), exact.end(), to);
      }
      if (!fits) narrow.store(false, std::memory_order_relaxed);
    });
    return narrow.load(std::memory_order_relaxed);
  }

  void Widen() {
    wide_.resize(kSliceTokens * cols_);
    std::copy_n(narrow_.begin(), filled_ * cols_, wide_.begin());
    is_wide_ = true;
  }

  void Fold() {
    if (moment_.spec().layout == MomentLayout::kBlockDiagonal) {
      FoldBlocks();
    } else if (is_wide_) {
      FoldWide();
    } else {
      FoldNarrow();
    }
    filled_ = 0;
    is_wide_ = false;
  }

  void FoldBlocks() {
    const int64_t width = moment_.spec().block_size;
    double* sum = moment_.mutable_sum().data();
    pool_.ParallelFor(0, cols_ / width, 4, [&](int64_t b, int64_t e) {
      std::vector<double> panel(filled_ * width);
      for (int64_t k = b; k < e; ++k) {
        for (int64_t t = 0; t < filled_; ++t) {
          const int64_t from = t * cols_ + k * width;
          if (is_wide_) {
            std::copy_n(wide_.data() + from, width, panel.data() + t * width);
          } else {
            std::copy_n(narrow_.data() + from, width, panel.data() + t * width);
          }
        }
        GramLower(width, filled_, panel.data(), width, 1.0, sum + k * width * width, width);
      }
    });
  }

  template <typename Body>  // body(tile, rows, cols)
  void ForLowerTiles(Body body) {
    const int64_t width = TileColumns(cols_);
    const std::vector<Tile> tiles = LowerTiles(cols_, width);
    pool_.ParallelFor(0, static_cast<int64_t>(tiles.size()), 1, [&](int64_t b, int64_t e) {
      for (int64_t t = b; t < e; ++t) {
        body(tiles[t], std::min(width, cols_ - tiles[t].row),
             std::min(width, cols_ - tiles[t].col));
      }
    });
  }

  void FoldWide() {
    double* sum = moment_.mutable_sum().data();
    ForLowerTiles([&](const Tile& tile, int64_t rows, int64_t cols) {
      double* to = sum + tile.row * cols_ + tile.col;
      if (tile.row == tile.col) {
        GramLower(rows, filled_, wide_.data() + tile.row, cols_, 1.0, to, cols_);
      } else {
        TransposedMultiply(rows, cols, filled_, wide_.data() + tile.row, cols_,
                           wide_.data() + tile.col, cols_, 1.0, to, cols_);
      }
    });
  }

  void FoldNarrow() {
    ForLowerTiles([&](const Tile& tile, int64_t rows, int64_t cols) {
      thread_local std::vector<float> product;
      product.resize(rows * cols);
      const bool diagonal = tile.row == tile.col;
      if (diagonal) {
        GramLower(rows, filled_, narrow_.data() + tile.row, cols_, 0.0f, product.data(), cols);
      } else {
        TransposedMultiply(rows, cols, filled_, narrow_.data() + tile.row, cols_,
                           narrow_.data() + tile.col, cols_, 0.0f, product.data(), cols);
      }
      double* sum = moment_.mutable_sum().data();
      for (int64_t i = 0; i < rows; ++i) {
        double* to = sum + (tile.row + i) * cols_ + tile.col;
        const float* from = product.data() + i * cols;
        const int64_t end = diagonal ? i : cols;
        for (int64_t j = 0; j < end; ++j) to[j] += from[j];
      }
      if (diagonal) FoldDiagonal(tile.row, rows);
    });
  }

  // In float64: squares of discrete values are where float32 errors add up instead of cancelling.
  void FoldDiagonal(int64_t first, int64_t count) {
    thread_local std::vector<double> squares;
    squares.assign(count, 0.0);
    for (int64_t t = 0; t < filled_; ++t) {
      const float* row = narrow_.data() + t * cols_ + first;
      for (int64_t j = 0; j < count; ++j) squares[j] += static_cast<double>(row[j]) * row[j];
    }
    double* sum = moment_.mutable_sum().data();
    for (int64_t j = 0; j < count; ++j) sum[(first + j) * (cols_ + 1)] += squares[j];
  }

  // Only the lower triangles are kept up to date.
  void Mirror(SecondMoment& moment) {
    const bool full = moment.spec().layout == MomentLayout::kFull;
    const int64_t width = full ? cols_ : moment.spec().block_size;
    double* sum = moment.mutable_sum().data();
    constexpr int64_t kTile = 64;
    pool_.ParallelFor(0, cols_, kTile, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin / width * width; first < end; first += width) {
        double* block = sum + first * width;
        const int64_t low = std::max(begin, first) - first;
        const int64_t high = std::min(end, first + width) - first;
        // Writes columns [low, high) above the diagonal, read from the same rows below it.
        for (int64_t j0 = 0; j0 < high; j0 += kTile) {
          for (int64_t i = low; i < high; ++i) {
            const int64_t j1 = std::min(i, j0 + kTile);
            for (int64_t j = j0; j < j1; ++j) block[j * width + i] = block[i * width + j];
          }
        }
      }
    });
  }

  WorkerPool& pool_;
  const int64_t cols_;
  SecondMoment moment_;        // lower triangles only
  int64_t filled_ = 0;         // rows in the open slice
  bool is_wide_ = false;       // which buffer holds the open slice
  std::vector<float> narrow_;  // kSliceTokens x C
  std::vector<double> wide_;   // the same, made when first needed
};

}  // namespace

absl::StatusOr<std::unique_ptr<MomentAccumulator>> NewCpuMomentAccumulator(
    WorkerPool& pool, const MomentSpec& spec, const SecondMoment* start) {
  if (start == nullptr) {
    absl::StatusOr<SecondMoment> empty = SecondMoment::Create(spec);
    if (!empty.ok()) return empty.status();
    return std::make_unique<CpuMomentAccumulator>(pool, *std::move(empty));
  }
  if (!(start->spec() == spec)) {
    return absl::InvalidArgumentError("the second moment to continue from has another geometry");
  }
  return std::make_unique<CpuMomentAccumulator>(pool, *start);
}

}  // namespace quantd::compute
