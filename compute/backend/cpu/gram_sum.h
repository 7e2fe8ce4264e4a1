#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <vector>

#include "compute/backend/cpu/panel_buffer.h"
#include "compute/backend/cpu/worker_pool.h"

namespace quantd::compute {

// Rows whose products are summed in the precision of the data; from there on in float64.
inline constexpr int64_t kGramDepth = 512;

// A running sum of x x^T in float64, x in R^C. Keeps the lower triangle as square tiles, so that
// adding to it walks through memory in order. Results are the same bits on any number of threads.
// Thread-compatible.
class GramSum {
 public:
  // Columns of the panels that Add takes: three vector registers of T.
  template <typename T>
  static int64_t PanelWidth();

  explicit GramSum(int64_t cols);

  // += X^T X, X being the first `rows` rows of a buffer of C columns in panels of PanelWidth<T>().
  // For floats, squares on the diagonal are summed in float64 throughout: squares of few distinct
  // values are where rounding errors add up instead of cancelling.
  void Add(WorkerPool& pool, const PanelBuffer<float>& x, int64_t rows);
  void Add(WorkerPool& pool, const PanelBuffer<double>& x, int64_t rows);

  // Reads the lower triangle, and writes both, of a row-major C x C matrix.
  void Load(WorkerPool& pool, const double* matrix);
  void Store(WorkerPool& pool, double* matrix) const;

 private:
  template <typename T>
  void AddProduct(WorkerPool& pool, const PanelBuffer<T>& x, int64_t rows);
  double* tile(int64_t i, int64_t j);  // j <= i
  const double* tile(int64_t i, int64_t j) const;

  int64_t cols_;
  int64_t tiles_;  // a side
  std::vector<double, Eigen::aligned_allocator<double>> values_;
};

}  // namespace quantd::compute
