#include "compute/backend/cpu/paired_sum.h"

#include <algorithm>
#include <utility>

#include "compute/backend/cpu/matrix_product.h"
#include "compute/second_moment/second_moment.h"
#include "compute/tensor/tensor.h"

namespace quantd::compute {
namespace {

constexpr int64_t kRowGrain = 16;  // rows a thread converts at a time

// Tiles of the sum that a thread computes at a time. Fixed, since the bits of a product may depend
// on its shape.
constexpr int64_t kTileRows = 256;
constexpr int64_t kTileCols = 256;

// Rows of one factor, row-major.
class Factor {
 public:
  explicit Factor(int64_t cols) : cols_(cols) {}

  int64_t cols() const { return cols_; }
  const double* row(int64_t row) const { return values_.data() + row * cols_; }

  // Memory is taken when data comes.
  void Write(WorkerPool& pool, int64_t first, DType dtype, const std::byte* rows, int64_t count) {
    values_.resize(kSliceTokens * cols_);
    const int64_t row_bytes = cols_ * static_cast<int64_t>(SizeOf(dtype));
    pool.ParallelFor(0, count, kRowGrain, [&](int64_t begin, int64_t end) {
      ConvertToDouble(dtype, rows + begin * row_bytes, (end - begin) * cols_,
                      values_.data() + (first + begin) * cols_);
    });
  }

 private:
  const int64_t cols_;
  std::vector<double> values_;
};

class PairedSum final : public TokenSum {
 public:
  PairedSum(WorkerPool& pool, int64_t left_cols, int64_t cols, std::vector<double> start)
      : pool_(pool), left_(left_cols), right_(cols), sum_(std::move(start)) {}

  int64_t rows() const override { return rows_; }

  absl::Status Append(DType dtype, const std::byte* rows, const std::byte* paired,
                      int64_t count) override {
    left_.Write(pool_, rows_, dtype, paired, count);
    right_.Write(pool_, rows_, dtype, rows, count);
    rows_ += count;
    return absl::OkStatus();
  }

  absl::Status Resume(absl::Span<const double> rows) override {
    const int64_t values = left_.cols() + right_.cols();
    for (const double* row = rows.begin(); row != rows.end(); row += values) {
      const auto* bytes = reinterpret_cast<const std::byte*>(row);
      const auto* right = reinterpret_cast<const std::byte*>(row + left_.cols());
      absl::Status status = Append(DType::kF64, right, bytes, 1);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status Fold() override {
    const int64_t row_tiles = (left_.cols() + kTileRows - 1) / kTileRows;
    const int64_t col_tiles = (right_.cols() + kTileCols - 1) / kTileCols;
    pool_.ParallelFor(0, row_tiles * col_tiles, 1, [&](int64_t begin, int64_t end) {
      std::vector<double> tile(kTileRows * kTileCols);
      for (int64_t i = begin; i < end; ++i) {
        AddTile(i / col_tiles * kTileRows, i % col_tiles * kTileCols, tile.data());
      }
    });
    rows_ = 0;
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<double>> Sum() override { return sum_; }

  absl::StatusOr<std::vector<double>> Rows() override {
    std::vector<double> rows;
    rows.reserve(rows_ * (left_.cols() + right_.cols()));
    for (int64_t row = 0; row < rows_; ++row) {
      rows.insert(rows.end(), left_.row(row), left_.row(row) + left_.cols());
      rows.insert(rows.end(), right_.row(row), right_.row(row) + right_.cols());
    }
    return rows;
  }

 private:
  void AddTile(int64_t first_row, int64_t first_col, double* tile) {
    const int64_t height = std::min(kTileRows, left_.cols() - first_row);
    const int64_t width = std::min(kTileCols, right_.cols() - first_col);
    TransposedMultiply(height, width, rows_, left_.row(0) + first_row, left_.cols(),
                       right_.row(0) + first_col, right_.cols(), tile, width);
    for (int64_t i = 0; i < height; ++i) {
      double* to = sum_.data() + (first_row + i) * right_.cols() + first_col;
      for (int64_t j = 0; j < width; ++j) to[j] += tile[i * width + j];
    }
  }

  WorkerPool& pool_;
  Factor left_;
  Factor right_;
  std::vector<double> sum_;
  int64_t rows_ = 0;
};

}  // namespace

std::unique_ptr<TokenSum> NewPairedSum(WorkerPool& pool, int64_t left_cols, int64_t cols,
                                       std::vector<double> start) {
  return std::make_unique<PairedSum>(pool, left_cols, cols, std::move(start));
}

}  // namespace quantd::compute
