#include "compute/backend/cpu/symmetric_sum.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "compute/backend/cpu/gram_sum.h"
#include "compute/backend/cpu/matrix_product.h"
#include "compute/backend/cpu/panel_buffer.h"
#include "compute/backend/token_precision.h"
#include "compute/second_moment/second_moment.h"
#include "compute/tensor/tensor.h"

namespace quantd::compute {
namespace {

constexpr int64_t kRowGrain = 16;  // rows a thread converts at a time

// The open slice of the token stream: up to kSliceTokens rows, in the narrowest precision that
// holds all of them.
class Slice {
 public:
  // `narrow_width`: of the panels of floats; 0 to keep every slice in float64.
  Slice(WorkerPool& pool, int64_t cols, int64_t narrow_width, int64_t wide_width)
      : pool_(pool), cols_(cols), narrow_width_(narrow_width), wide_width_(wide_width) {}

  int64_t rows() const { return rows_; }
  bool is_wide() const { return is_wide_; }
  const PanelBuffer<float>& narrow() const { return narrow_; }
  const PanelBuffer<double>& wide() const { return wide_; }

  // Puts rows behind those that are there. They fit.
  void Append(DType dtype, const std::byte* rows, int64_t count) {
    if (!is_wide_ && !AppendNarrow(dtype, rows, count)) Widen();
    if (is_wide_) AppendWide(dtype, rows, count);
    rows_ += count;
  }

  void Clear() {
    rows_ = 0;
    is_wide_ = false;
  }

  std::vector<double> Rows() const {
    std::vector<double> rows(rows_ * cols_);
    for (int64_t row = 0; row < rows_; ++row) {
      if (is_wide_) {
        wide_.ReadRow(row, rows.data() + row * cols_);
      } else {
        narrow_.ReadRow(row, rows.data() + row * cols_);
      }
    }
    return rows;
  }

 private:
  // False where a value needs more than bfloat16.
  bool AppendNarrow(DType dtype, const std::byte* rows, int64_t count) {
    if (narrow_width_ == 0) return false;
    if (narrow_.empty()) narrow_ = PanelBuffer<float>(kSliceTokens, cols_, narrow_width_);
    std::atomic<bool> all_fit{true};
    const int64_t row_bytes = cols_ * static_cast<int64_t>(SizeOf(dtype));
    pool_.ParallelFor(0, count, kRowGrain, [&](int64_t begin, int64_t end) {
      std::vector<float> values(cols_);
      std::vector<double> exact(dtype == DType::kF64 ? cols_ : 0);
      for (int64_t row = begin; row < end && all_fit.load(std::memory_order_relaxed); ++row) {
        ConvertToFloat(dtype, rows + row * row_bytes, cols_, values.data());
        bool fits = AreModerateBf16(values.data(), cols_);
        if (fits && dtype == DType::kF64) {
          ConvertToDouble(dtype, rows + row * row_bytes, cols_, exact.data());
          fits = std::equal(exact.begin(), exact.end(), values.begin());
        }
        if (!fits) all_fit.store(false, std::memory_order_relaxed);
        narrow_.WriteRow(rows_ + row, values.data());
      }
    });
    return all_fit.load(std::memory_order_relaxed);
  }

  void AppendWide(DType dtype, const std::byte* rows, int64_t count) {
    const int64_t row_bytes = cols_ * static_cast<int64_t>(SizeOf(dtype));
    pool_.ParallelFor(0, count, kRowGrain, [&](int64_t begin, int64_t end) {
      std::vector<double> values(cols_);
      for (int64_t row = begin; row < end; ++row) {
        ConvertToDouble(dtype, rows + row * row_bytes, cols_, values.data());
        wide_.WriteRow(rows_ + row, values.data());
      }
    });
  }

  void Widen() {
    if (wide_.empty()) wide_ = PanelBuffer<double>(kSliceTokens, cols_, wide_width_);
    std::vector<float> values(cols_);
    for (int64_t row = 0; row < rows_; ++row) {
      narrow_.ReadRow(row, values.data());
      wide_.WriteRow(row, values.data());
    }
    is_wide_ = true;
  }

  WorkerPool& pool_;
  const int64_t cols_;
  const int64_t narrow_width_;
  const int64_t wide_width_;
  int64_t rows_ = 0;
  bool is_wide_ = false;       // which buffer holds the rows
  PanelBuffer<float> narrow_;  // each made when first needed
  PanelBuffer<double> wide_;
};

// Where full slices are summed up.
class SliceSum {
 public:
  virtual ~SliceSum() = default;
  virtual void Add(WorkerPool& pool, const Slice& slice) = 0;
  // Both triangles, in the order of SecondMoment::sum().
  virtual std::vector<double> Sum(WorkerPool& pool) const = 0;
};

class FullSliceSum final : public SliceSum {
 public:
  FullSliceSum(WorkerPool& pool, int64_t cols, const std::vector<double>& start)
      : cols_(cols), sum_(cols) {
    sum_.Load(pool, start.data());
  }
  void Add(WorkerPool& pool, const Slice& slice) override {
    if (slice.is_wide()) {
      sum_.Add(pool, slice.wide(), slice.rows());
    } else {
      sum_.Add(pool, slice.narrow(), slice.rows());
    }
  }
  std::vector<double> Sum(WorkerPool& pool) const override {
    std::vector<double> sum(cols_ * cols_);
    sum_.Store(pool, sum.data());
    return sum;
  }

 private:
  const int64_t cols_;
  GramSum sum_;
};

// A block is a panel of the slice.
class BlockSliceSum final : public SliceSum {
 public:
  BlockSliceSum(int64_t block_size, std::vector<double> start)
      : size_(block_size), sum_(std::move(start)) {}
  void Add(WorkerPool& pool, const Slice& slice) override {
    pool.ParallelFor(0, slice.wide().panels(), 4, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        GramLower(size_, slice.rows(), slice.wide().panel(k), size_, 1.0,
                  sum_.data() + k * size_ * size_, size_);
      }
    });
  }
  std::vector<double> Sum(WorkerPool& /*pool*/) const override {
    std::vector<double> sum = sum_;
    for (auto block = sum.begin(); block != sum.end(); block += size_ * size_) {
      for (int64_t i = 0; i < size_; ++i) {
        for (int64_t j = 0; j < i; ++j) block[j * size_ + i] = block[i * size_ + j];
      }
    }
    return sum;
  }

 private:
  const int64_t size_;
  std::vector<double> sum_;  // lower triangles
};

class SymmetricSum final : public TokenSum {
 public:
  SymmetricSum(WorkerPool& pool, int64_t cols, int64_t block_size, std::vector<double> start)
      : pool_(pool),
        cols_(cols),
        slice_(pool, cols, block_size == 0 ? GramSum::PanelWidth<float>() : 0,
               block_size == 0 ? GramSum::PanelWidth<double>() : block_size) {
    if (block_size == 0) {
      sum_ = std::make_unique<FullSliceSum>(pool, cols, start);
    } else {
      sum_ = std::make_unique<BlockSliceSum>(block_size, std::move(start));
    }
  }

  int64_t rows() const override { return slice_.rows(); }
  absl::Status Append(DType dtype, const std::byte* rows, const std::byte* /*paired*/,
                      int64_t count) override {
    slice_.Append(dtype, rows, count);
    return absl::OkStatus();
  }
  absl::Status Resume(absl::Span<const double> rows) override {
    slice_.Append(DType::kF64, reinterpret_cast<const std::byte*>(rows.data()),
                  static_cast<int64_t>(rows.size()) / cols_);
    return absl::OkStatus();
  }
  absl::Status Fold() override {
    sum_->Add(pool_, slice_);
    slice_.Clear();
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<double>> Sum() override { return sum_->Sum(pool_); }
  absl::StatusOr<std::vector<double>> Rows() override { return slice_.Rows(); }

 private:
  WorkerPool& pool_;
  const int64_t cols_;
  Slice slice_;
  std::unique_ptr<SliceSum> sum_;
};

}  // namespace

std::unique_ptr<TokenSum> NewSymmetricSum(WorkerPool& pool, int64_t cols, int64_t block_size,
                                          std::vector<double> start) {
  return std::make_unique<SymmetricSum>(pool, cols, block_size, std::move(start));
}

}  // namespace quantd::compute
