#include "compute/backend/cpu/measure.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <vector>

#include "compute/backend/cpu/block_product.h"
#include "compute/backend/cpu/host_memory.h"
#include "compute/backend/cpu/matrix_product.h"
#include "compute/backend/cpu/quantize_rows.h"

namespace quantd::compute {
namespace {

constexpr int64_t kTileRows = 128;
constexpr int64_t kTileCols = 256;

int64_t Tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

// d N for `rows` rows, N full with d N d^T = d M d^T: M's diagonal blocks, what is below them
// twice and nothing above.
void MultiplyByTriangle(const double* m, int64_t rows, int64_t cols, const double* d, double* to) {
  std::vector<double> below(rows * kTileCols);
  for (int64_t b = 0; b < cols; b += kTileCols) {
    const int64_t width = std::min(kTileCols, cols - b);
    MultiplyTransposed(rows, width, width, d + b, cols, m + b * (cols + 1), cols, to + b, cols);
    if (b + width == cols) break;
    const int64_t rest = cols - b - width;
    Multiply(rows, width, rest, d + b + width, cols, m + (b + width) * cols + b, cols, below.data(),
             kTileCols);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < width; ++c) to[r * cols + b + c] += 2.0 * below[r * kTileCols + c];
    }
  }
}

// d M for `rows` rows, M full or a stack of diagonal blocks; of a full one what `detail` needs.
void MultiplyByMoment(const DeviceTensor& moment, ErrorDetail detail, int64_t rows, int64_t cols,
                      const double* d, double* to) {
  const double* m = Doubles(moment);
  if (moment.shape().size() != 2) {
    ApplyBlocks(moment.dim(1), m, rows, cols, d, to);  // blocks are symmetric
  } else if (detail == ErrorDetail::kRows) {
    MultiplyByTriangle(m, rows, cols, d, to);
  } else {
    Multiply(rows, cols, cols, d, cols, m, cols, to, cols);
  }
}

struct WeightErrorTile {
  double max_abs = 0.0;
  double sum_squares = 0.0;
  std::vector<double> by_column;
};

// `d` holds dW of the tile's rows.
WeightErrorTile MeasureTile(int64_t rows, int64_t cols, const std::vector<double>& d,
                            const DeviceTensor& moment, ErrorDetail detail, double* by_row) {
  WeightErrorTile tile;
  for (const double value : d) {
    tile.max_abs = std::max(tile.max_abs, std::abs(value));
    tile.sum_squares += value * value;
  }
  if (moment.empty()) return tile;
  std::vector<double> product(rows * cols);
  MultiplyByMoment(moment, detail, rows, cols, d.data(), product.data());
  if (detail == ErrorDetail::kRowsAndColumns) tile.by_column.assign(cols, 0.0);
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0.0;
    for (int64_t c = 0; c < cols; ++c) {
      const double part = product[r * cols + c] * d[r * cols + c];
      if (!tile.by_column.empty()) tile.by_column[c] += part;
      sum += part;
    }
    by_row[r] = sum;
  }
  return tile;
}

}  // namespace

absl::StatusOr<WeightError> CpuMeasureWeightError(WorkerPool& pool, Stream& stream,
                                                  const DeviceTensor& weight,
                                                  const DeviceTensor& dequantized,
                                                  const DeviceTensor& second_moment,
                                                  ErrorDetail detail) {
  const int64_t rows = weight.dim(0);
  const int64_t cols = weight.dim(1);
  const double* w = Doubles(weight);
  const double* q = dequantized.empty() ? nullptr : Doubles(dequantized);
  WeightError error;
  if (!second_moment.empty()) {
    error.by_row.resize(rows);
    if (detail == ErrorDetail::kRowsAndColumns) error.by_column.resize(cols);
  }
  std::vector<WeightErrorTile> tiles(Tiles(rows, kTileRows));
  pool.ParallelFor(0, rows, kTileRows, [&](int64_t b, int64_t e) {
    if (!stream.CheckCancelled().ok()) return;
    std::vector<double> d(w + b * cols, w + e * cols);
    if (q != nullptr) {
      for (size_t i = 0; i < d.size(); ++i) d[i] -= q[b * cols + static_cast<int64_t>(i)];
    }
    tiles[b / kTileRows] =
        MeasureTile(e - b, cols, d, second_moment, detail, error.by_row.data() + b);
  });
  if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
  for (const WeightErrorTile& tile : tiles) {
    error.max_abs = std::max(error.max_abs, tile.max_abs);
    error.sum_squares += tile.sum_squares;
    for (size_t c = 0; c < tile.by_column.size(); ++c) error.by_column[c] += tile.by_column[c];
  }
  return error;
}

absl::StatusOr<DeviceTensor> CpuComputeOutputs(WorkerPool& pool, Stream& stream,
                                               const DeviceTensor& weight,
                                               const DeviceTensor& sample) {
  const int64_t tokens = sample.dim(0);
  const int64_t rows = weight.dim(0);
  const int64_t cols = weight.dim(1);
  absl::StatusOr<WritableTensor> outputs = NewMatrix(stream, {tokens, rows});
  if (!outputs.ok()) return outputs.status();
  const int64_t across = Tiles(rows, kTileCols);
  pool.ParallelFor(0, Tiles(tokens, kTileRows) * across, 1, [&](int64_t b, int64_t e) {
    for (int64_t tile = b; tile < e; ++tile) {
      if (!stream.CheckCancelled().ok()) return;
      const int64_t t = tile / across * kTileRows;
      const int64_t r = tile % across * kTileCols;
      MultiplyTransposed(std::min(kTileRows, tokens - t), std::min(kTileCols, rows - r), cols,
                         Doubles(sample) + t * cols, cols, Doubles(weight) + r * cols, cols,
                         outputs->data + t * rows + r, rows);
    }
  });
  if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
  return outputs->tensor;
}

absl::StatusOr<OutputError> CpuMeasureOutputError(
    WorkerPool& pool, Stream& stream, const NumberFormat& format, const BlockTransform& transform,
    const DeviceTensor& decoded, const DeviceTensor& sample, const DeviceTensor& outputs) {
  const int64_t tokens = sample.dim(0);
  const int64_t cols = sample.dim(1);
  absl::StatusOr<WritableTensor> inputs = NewMatrix(stream, {tokens, cols});
  if (!inputs.ok()) return inputs.status();
  const double* x = Doubles(sample);
  if (transform.identity) {
    std::copy_n(x, tokens * cols, inputs->data);
  } else {
    const BlockStack tx = WidenedTx(transform);
    pool.ParallelFor(0, tokens, 16, [&](int64_t b, int64_t e) {
      ApplyBlocks(tx.block_size, tx.blocks.data(), e - b, cols, x + b * cols,
                  inputs->data + b * cols);
    });
  }
  ParallelFakeQuantize(pool, format, tokens, cols, inputs->data);
  absl::StatusOr<DeviceTensor> quantized = CpuComputeOutputs(pool, stream, decoded, inputs->tensor);
  if (!quantized.ok()) return quantized.status();

  const int64_t rows = decoded.dim(0);
  std::vector<OutputError> tiles(Tiles(tokens, kTileRows));
  pool.ParallelFor(0, tokens, kTileRows, [&](int64_t b, int64_t e) {
    OutputError& tile = tiles[b / kTileRows];
    const double* y = Doubles(outputs);
    const double* yhat = Doubles(*quantized);
    for (int64_t i = b * rows; i < e * rows; ++i) {
      tile.error += (y[i] - yhat[i]) * (y[i] - yhat[i]);
      tile.energy += y[i] * y[i];
    }
  });
  OutputError sum;
  for (const OutputError& tile : tiles) {
    sum.error += tile.error;
    sum.energy += tile.energy;
  }
  return sum;
}

absl::StatusOr<double> CpuMeasureSpread(WorkerPool& pool, Stream& stream,
                                        const BlockTransform& transform, const DeviceTensor& weight,
                                        const DeviceTensor& block_moment) {
  const int64_t rows = weight.dim(0);
  const int64_t cols = weight.dim(1);
  const int64_t size = block_moment.dim(1);
  const double* w = Doubles(weight);
  const double* m = Doubles(block_moment);
  const BlockStack tx = transform.identity ? BlockStack{size, {}} : WidenedTx(transform);
  std::vector<double> spread(cols / size);
  pool.ParallelFor(0, cols / size, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> gram(size * size);
    std::vector<double> product(size * size);
    // (T G T^T)_ii
    const auto diagonal = [&](const double* t, const double* g, int64_t i) {
      if (t == nullptr) return g[i * size + i];
      if (i == 0) Multiply(size, size, size, t, size, g, size, product.data(), size);
      return std::inner_product(t + i * size, t + (i + 1) * size, product.data() + i * size, 0.0);
    };
    for (int64_t k = begin; k < end; ++k) {
      if (!stream.CheckCancelled().ok()) return;
      TransposedMultiply(size, size, rows, w + k * size, cols, w + k * size, cols, gram.data(),
                         size);
      const int64_t at = k * size * size;
      std::vector<double> a(size);
      for (int64_t i = 0; i < size; ++i) {
        a[i] = diagonal(transform.identity ? nullptr : Doubles(transform.tw) + at, gram.data(), i) /
               static_cast<double>(rows);
      }
      for (int64_t i = 0; i < size; ++i) {
        spread[k] +=
            a[i] * diagonal(transform.identity ? nullptr : tx.blocks.data() + at, m + at, i);
      }
    }
  });
  if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
  return std::accumulate(spread.begin(), spread.end(), 0.0);
}

absl::StatusOr<OutputError> CpuMeasureDriftError(
    WorkerPool& pool, Stream& stream, const DeviceTensor& weight, const DeviceTensor& dequantized,
    const DeviceTensor& moment, const DeviceTensor& moment_hat, const DeviceTensor& cross) {
  const int64_t rows = weight.dim(0);
  const int64_t cols = weight.dim(1);
  std::vector<OutputError> tiles(Tiles(rows, kTileRows));
  pool.ParallelFor(0, rows, kTileRows, [&](int64_t b, int64_t e) {
    if (!stream.CheckCancelled().ok()) return;
    const int64_t count = (e - b) * cols;
    const double* w = Doubles(weight) + b * cols;
    const double* q = Doubles(dequantized) + b * cols;
    std::vector<double> product(count);
    const auto inner = [&](const double* left, const DeviceTensor& matrix, const double* right) {
      Multiply(e - b, cols, cols, left, cols, Doubles(matrix), cols, product.data(), cols);
      return std::inner_product(right, right + count, product.data(), 0.0);
    };
    OutputError& tile = tiles[b / kTileRows];
    tile.energy = inner(w, moment, w);
    tile.error = tile.energy - 2.0 * inner(w, cross, q) + inner(q, moment_hat, q);
  });
  if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
  OutputError sum;
  for (const OutputError& tile : tiles) {
    sum.error += tile.error;
    sum.energy += tile.energy;
  }
  return sum;
}

}  // namespace quantd::compute
