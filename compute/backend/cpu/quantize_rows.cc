#include "compute/backend/cpu/quantize_rows.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace quantd::compute {

double MaxMagnitude(WorkerPool& pool, const double* values, int64_t count) {
  constexpr int64_t kGrain = 1 << 16;
  std::vector<double> partial((count + kGrain - 1) / kGrain);
  pool.ParallelFor(0, count, kGrain, [&](int64_t b, int64_t e) {
    double amax = 0.0;
    for (int64_t i = b; i < e; ++i) amax = std::max(amax, std::abs(values[i]));
    partial[b / kGrain] = amax;
  });
  return partial.empty() ? 0.0 : *std::max_element(partial.begin(), partial.end());
}

void QuantizeRows(const NumberFormat& format, std::optional<float> global, int64_t rows,
                  int64_t cols, double* values, uint8_t* codes, double* scales) {
  const ScaleGrid grid = format.grid();
  const int64_t scale_cols = (cols + grid.cols - 1) / grid.cols;
  std::vector<double> own_scales;
  std::vector<uint8_t> own_codes;
  if (scales == nullptr) {
    own_scales.resize((rows + grid.rows - 1) / grid.rows * scale_cols);
    scales = own_scales.data();
  }
  if (codes == nullptr) own_codes.resize(std::min(grid.cols, cols));
  format.ComputeScales(values, rows, cols, global, scales);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t g = 0; g < scale_cols; ++g) {
      const int64_t at = r * cols + g * grid.cols;
      const int64_t count = std::min(grid.cols, cols - g * grid.cols);
      const double scale = scales[r / grid.rows * scale_cols + g];
      uint8_t* group = codes == nullptr ? own_codes.data() : codes + at;
      format.Round(values + at, count, scale, group);
      format.Decode(group, count, scale, values + at);
    }
  }
}

void ParallelFakeQuantize(WorkerPool& pool, const NumberFormat& format, int64_t rows, int64_t cols,
                          double* values) {
  const NumberFormat& engine = format.activation_format();
  std::optional<float> global;
  if (engine.GlobalScale(1.0).has_value()) {
    global = engine.GlobalScale(MaxMagnitude(pool, values, rows * cols));
  }
  const int64_t grain = std::max<int64_t>(engine.grid().rows, 16);
  pool.ParallelFor(0, rows, grain, [&](int64_t b, int64_t e) {
    QuantizeRows(engine, global, e - b, cols, values + b * cols, nullptr, nullptr);
  });
}

}  // namespace quantd::compute
