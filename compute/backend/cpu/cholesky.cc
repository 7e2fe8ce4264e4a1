#include "compute/backend/cpu/cholesky.h"

#include <algorithm>
#include <cmath>

#include "compute/backend/cpu/matrix_product.h"

namespace quantd::compute {
namespace {

constexpr int64_t kPanel = 96;  // columns factored at a time
constexpr int64_t kTile = 192;  // side of a piece of the trailing update

// One diagonal block, column by column.
bool FactorBlock(int64_t n, double* a, int64_t lda) {
  for (int64_t j = 0; j < n; ++j) {
    double pivot = a[j * lda + j];
    for (int64_t k = 0; k < j; ++k) pivot -= a[j * lda + k] * a[j * lda + k];
    if (!(pivot > 0.0) || !std::isfinite(pivot)) return false;
    const double root = std::sqrt(pivot);
    a[j * lda + j] = root;
    for (int64_t i = j + 1; i < n; ++i) {
      double sum = a[i * lda + j];
      for (int64_t k = 0; k < j; ++k) sum -= a[i * lda + k] * a[j * lda + k];
      a[i * lda + j] = sum / root;
    }
  }
  return true;
}

}  // namespace

bool FactorCholesky(WorkerPool& pool, int64_t n, double* a, const Stream* stream) {
  const auto is_cancelled = [&] { return stream != nullptr && !stream->CheckCancelled().ok(); };
  for (int64_t first = 0; first < n; first += kPanel) {
    if (is_cancelled()) return false;
    const int64_t width = std::min(kPanel, n - first);
    double* diagonal = a + first * n + first;
    if (!FactorBlock(width, diagonal, n)) return false;
    const int64_t rest = first + width;
    pool.ParallelFor(rest, n, kTile, [&](int64_t b, int64_t e) {
      SolveLowerTransposedRight(e - b, width, diagonal, n, a + b * n + first, n);
    });
    // Tiles of the lower triangle, the last rows first: they have the most columns.
    const int64_t tiles = (n - rest + kTile - 1) / kTile;
    pool.ParallelFor(0, tiles * tiles, 1, [&](int64_t piece, int64_t) {
      const int64_t i = rest + (tiles - 1 - piece / tiles) * kTile;
      const int64_t j = rest + piece % tiles * kTile;
      if (j > i || is_cancelled()) return;
      SubtractMultiplyTransposed(std::min(kTile, n - i), std::min(kTile, n - j), width,
                                 a + i * n + first, n, a + j * n + first, n, a + i * n + j, n);
    });
  }
  for (int64_t i = 0; i < n; ++i) std::fill(a + i * n + i + 1, a + (i + 1) * n, 0.0);
  return true;
}

}  // namespace quantd::compute
