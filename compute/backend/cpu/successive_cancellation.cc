#include "compute/backend/cpu/successive_cancellation.h"

#include <algorithm>
#include <cmath>

#include "compute/backend/cpu/matrix_product.h"

namespace quantd::compute {
namespace {

constexpr int64_t kLeaf = 24;       // columns cancelled one by one
constexpr int64_t kTileRows = 256;  // rows of W in a piece of a product
constexpr double kLargestCode = 1 << 30;

struct Shrinkage {
  double product = 0.0;  // <z, Y_i> / c
  double energy = 0.0;   // <z, z>
  double largest = 0.0;  // |z|
};

class Cancellation {
 public:
  Cancellation(WorkerPool& pool, int64_t rows, int64_t cols, const double* lower, double spacing,
               double* target, int32_t* codes, double* gamma, const Stream* stream)
      : pool_(pool),
        stream_(stream),
        rows_(rows),
        cols_(cols),
        lower_(lower),
        spacing_(spacing),
        target_(target),
        codes_(codes),
        gamma_(gamma) {}

  // Columns [begin, end), whose targets hold all that later columns left.
  bool Run(int64_t begin, int64_t end) {
    if (end - begin <= kLeaf) return RunLeaf(begin, end);
    const int64_t middle = begin + (end - begin) / 2;
    if (!Run(middle, end) || IsCancelled()) return false;
    Subtract(begin, middle, end);
    return Run(begin, middle);
  }

 private:
  bool IsCancelled() const { return stream_ != nullptr && !stream_->CheckCancelled().ok(); }
  double* Column(int64_t i) { return target_ + i * rows_; }

  bool RunLeaf(int64_t begin, int64_t end) {
    for (int64_t i = end - 1; i >= begin; --i) {
      const Shrinkage sums = RoundColumn(Column(i), codes_ + i * rows_);
      if (!(sums.largest <= kLargestCode)) return false;  // NaN too
      gamma_[i] = sums.energy > 0.0 ? sums.product / sums.energy : 0.0;
      const double step = gamma_[i] * spacing_ / lower_[i * cols_ + i];
      double* done = Column(i);
      const int32_t* z = codes_ + i * rows_;
      for (int64_t r = 0; r < rows_; ++r) done[r] = step * z[r];
      for (int64_t j = begin; j < i; ++j) {
        const double factor = lower_[i * cols_ + j];
        double* column = Column(j);
        for (int64_t r = 0; r < rows_; ++r) column[r] -= factor * done[r];
      }
    }
    return true;
  }

  // Eight lanes of sums: a fixed order that the compiler may vectorize.
  Shrinkage RoundColumn(const double* y, int32_t* z) const {
    constexpr int64_t kLanes = 8;
    double product[kLanes] = {};
    double energy[kLanes] = {};
    double largest[kLanes] = {};
    const double scale = 1.0 / spacing_;
    const auto round_one = [&](int64_t r, int64_t lane) {
      const double scaled = y[r] * scale;
      const double rounded = std::rint(scaled);
      product[lane] += rounded * scaled;
      energy[lane] += rounded * rounded;
      // Written so that NaN stays.
      largest[lane] = std::abs(rounded) <= largest[lane] ? largest[lane] : std::abs(rounded);
      z[r] = static_cast<int32_t>(std::clamp(rounded, -kLargestCode, kLargestCode));
    };
    const int64_t whole = rows_ / kLanes * kLanes;
    for (int64_t r = 0; r < whole; r += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) round_one(r + lane, lane);
    }
    for (int64_t r = whole; r < rows_; ++r) round_one(r, r - whole);
    Shrinkage sums;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      sums.product += product[lane];
      sums.energy += energy[lane];
      sums.largest = largest[lane] <= sums.largest ? sums.largest : largest[lane];
    }
    return sums;
  }

  // What columns [middle, end) contribute to the targets of [begin, middle).
  void Subtract(int64_t begin, int64_t middle, int64_t end) {
    pool_.ParallelFor(0, rows_, kTileRows, [&](int64_t b, int64_t e) {
      if (IsCancelled()) return;
      SubtractTransposedMultiply(middle - begin, e - b, end - middle,
                                 lower_ + middle * cols_ + begin, cols_, Column(middle) + b, rows_,
                                 Column(begin) + b, rows_);
    });
  }

  WorkerPool& pool_;
  const Stream* const stream_;
  const int64_t rows_;
  const int64_t cols_;
  const double* const lower_;
  const double spacing_;
  double* const target_;
  int32_t* const codes_;
  double* const gamma_;
};

}  // namespace

bool CancelSuccessively(WorkerPool& pool, int64_t rows, int64_t cols, const double* lower,
                        double spacing, double* target, int32_t* codes, double* gamma,
                        const Stream* stream) {
  return Cancellation(pool, rows, cols, lower, spacing, target, codes, gamma, stream).Run(0, cols);
}

}  // namespace quantd::compute
