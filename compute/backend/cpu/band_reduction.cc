#include "compute/backend/cpu/band_reduction.h"

#include <algorithm>
#include <cmath>

#include "compute/backend/cpu/matrix_product.h"

namespace quantd::compute {
namespace {

constexpr int64_t kTile = 192;

class Reduction {
 public:
  Reduction(WorkerPool& pool, int64_t n, int64_t band, double* a, const Stream* stream)
      : pool_(pool), n_(n), band_(band), a_(a), stream_(stream) {}

  bool Run() {
    for (int64_t column = 0; column + band_ + 1 < n_; column += band_) {
      if (IsCancelled()) return false;
      FactorPanel(column);
      UpdateTrailing(column + band_);
    }
    return !IsCancelled();
  }

 private:
  bool IsCancelled() const { return stream_ != nullptr && !stream_->CheckCancelled().ok(); }
  double* Row(int64_t i) { return a_ + i * n_; }

  // Householder QR of the columns [column, column + band) below the band: I - V T V^T maps them to
  // an upper triangle. v_: rows x width, with ones on its diagonal and zeros above; t_: T, upper.
  void FactorPanel(int64_t column) {
    const int64_t first = column + band_;
    rows_ = n_ - first;
    width_ = std::min(band_, rows_);
    v_.assign(rows_ * width_, 0.0);
    t_.assign(width_ * width_, 0.0);
    std::vector<double> panel(band_ * rows_);  // transposed: a column is contiguous
    for (int64_t i = 0; i < rows_; ++i) {
      for (int64_t j = 0; j < band_; ++j) panel[j * rows_ + i] = Row(first + i)[column + j];
    }
    for (int64_t k = 0; k < width_; ++k) Reflect(k, panel);
    for (int64_t i = 0; i < rows_; ++i) {
      for (int64_t j = 0; j < band_; ++j) {
        Row(first + i)[column + j] = i <= j ? panel[j * rows_ + i] : 0.0;
      }
    }
  }

  // Column k of V, T and the panel.
  void Reflect(int64_t k, std::vector<double>& panel) {
    double* x = panel.data() + k * rows_;
    double below = 0.0;
    for (int64_t i = k + 1; i < rows_; ++i) below += x[i] * x[i];
    double tau = 0.0;
    v_[k * width_ + k] = 1.0;
    if (below > 0.0) {
      const double norm = std::sqrt(x[k] * x[k] + below);
      const double beta = x[k] > 0.0 ? -norm : norm;
      tau = (beta - x[k]) / beta;
      const double scale = 1.0 / (x[k] - beta);
      for (int64_t i = k + 1; i < rows_; ++i) v_[i * width_ + k] = x[i] * scale;
      x[k] = beta;
      std::fill(x + k + 1, x + rows_, 0.0);
    }
    std::vector<double> own(rows_ - k);
    for (int64_t i = k; i < rows_; ++i) own[i - k] = v_[i * width_ + k];
    pool_.ParallelFor(k + 1, band_, 8, [&](int64_t b, int64_t e) {
      for (int64_t j = b; j < e; ++j) {
        double* y = panel.data() + j * rows_ + k;
        double sum = 0.0;
        for (int64_t i = 0; i < rows_ - k; ++i) sum += own[i] * y[i];
        sum *= tau;
        for (int64_t i = 0; i < rows_ - k; ++i) y[i] -= sum * own[i];
      }
    });
    // T's new column: -tau T V^T v.
    std::vector<double> overlap(k);
    for (int64_t i = k; i < rows_; ++i) {
      for (int64_t j = 0; j < k; ++j) overlap[j] += v_[i * width_ + j] * own[i - k];
    }
    for (int64_t i = 0; i < k; ++i) {
      double sum = 0.0;
      for (int64_t j = i; j < k; ++j) sum += t_[i * width_ + j] * overlap[j];
      t_[i * width_ + k] = -tau * sum;
    }
    t_[k * width_ + k] = tau;
  }

  // A = Q^T A Q of what follows: with X = A V T and W = X - V (T^T V^T X) / 2, A -= W V^T + V W^T.
  void UpdateTrailing(int64_t first) {
    const int64_t w = width_;
    double* a = Row(first) + first;
    std::vector<double> both(rows_ * 2 * w);     // [W V]
    std::vector<double> swapped(rows_ * 2 * w);  // [V W]
    pool_.ParallelFor(0, rows_, kTile, [&](int64_t b, int64_t e) {
      if (IsCancelled()) return;
      std::vector<double> product((e - b) * w);
      Multiply(e - b, w, rows_, a + b * n_, n_, v_.data(), w, product.data(), w);
      Multiply(e - b, w, w, product.data(), w, t_.data(), w, both.data() + b * 2 * w, 2 * w);
    });
    std::vector<double> square(w * w);
    std::vector<double> half(w * w);
    TransposedMultiply(w, w, rows_, v_.data(), w, both.data(), 2 * w, square.data(), w);
    TransposedMultiply(w, w, w, t_.data(), w, square.data(), w, half.data(), w);
    for (double& value : half) value *= 0.5;
    pool_.ParallelFor(0, rows_, kTile, [&](int64_t b, int64_t e) {
      std::vector<double> correction((e - b) * w);
      Multiply(e - b, w, w, v_.data() + b * w, w, half.data(), w, correction.data(), w);
      for (int64_t i = b; i < e; ++i) {
        double* row = both.data() + i * 2 * w;
        for (int64_t j = 0; j < w; ++j) {
          row[j] -= correction[(i - b) * w + j];
          row[w + j] = v_[i * w + j];
          swapped[i * 2 * w + j] = row[w + j];
          swapped[i * 2 * w + w + j] = row[j];
        }
      }
    });
    const int64_t tiles = (rows_ + kTile - 1) / kTile;
    pool_.ParallelFor(0, tiles * tiles, 1, [&](int64_t piece, int64_t) {
      if (IsCancelled()) return;
      const int64_t i = piece / tiles * kTile;
      const int64_t j = piece % tiles * kTile;
      SubtractMultiplyTransposed(std::min(kTile, rows_ - i), std::min(kTile, rows_ - j), 2 * w,
                                 both.data() + i * 2 * w, 2 * w, swapped.data() + j * 2 * w, 2 * w,
                                 a + i * n_ + j, n_);
    });
  }

  WorkerPool& pool_;
  const int64_t n_;
  const int64_t band_;
  double* const a_;
  const Stream* const stream_;
  int64_t rows_ = 0;   // that the panel reflects
  int64_t width_ = 0;  // reflections of it
  std::vector<double> v_;
  std::vector<double> t_;
};

}  // namespace

std::vector<double> ReduceToBand(WorkerPool& pool, int64_t n, int64_t band, double* a,
                                 const Stream* stream) {
  if (!Reduction(pool, n, band, a, stream).Run()) return {};
  std::vector<double> lower(n * (band + 1));
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t k = 0; k <= band && j + k < n; ++k) lower[j * (band + 1) + k] = a[(j + k) * n + j];
  }
  return lower;
}

}  // namespace quantd::compute
