#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/cuda/cuda_stream.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/cuda/gram_tiles.h"

namespace quantd::compute {

// A running sum of x x^T in float64 on the device, x in R^cols: the lower triangle in tiles
// (gram_tiles.h), the diagonal apart. Slices are added in order, whole (kSliceTokens rows), so the
// bits do not depend on how many a call gets; they are the same on devices of one kind.
class CudaGramSum {
 public:
  // What multiplies slices of bfloat16: cuBLAS anywhere, or the kernel of gram_hopper.h.
  enum class Products { kBlas, kHopper };
  // The fastest on this device.
  static absl::StatusOr<Products> ChooseProducts(int device);

  // `start`: cols x cols, the sum to go on from, or empty for 0. `stream` must outlive it.
  // RESOURCE_EXHAUSTED where the device has no memory for the sum.
  static absl::StatusOr<std::unique_ptr<CudaGramSum>> Create(CudaStream& stream, Products products,
                                                             int64_t cols,
                                                             const std::vector<double>& start);

  // Elements from one row of bfloat16 to the next, for AddNarrow.
  static int64_t PitchOf(int64_t cols) { return (cols + 7) / 8 * 8; }

  // Slices of moderate bfloat16 values, one after the other: products in float32, their sums over
  // kGramDepth rows are added in float64; squares are in float64 throughout.
  absl::Status AddNarrow(const uint16_t* rows, int64_t slices);
  // One slice, without gaps: products in float64.
  absl::Status AddWide(const double* rows);
  // Both triangles, row-major.
  absl::StatusOr<std::vector<double>> Sum();

 private:
  CudaGramSum(CudaStream& stream, Products products, int64_t cols)
      : stream_(stream), products_(products), cols_(cols) {}

  absl::Status Load(const std::vector<double>& start);
  absl::Status AddNarrowByPanels(const uint16_t* rows, int64_t slices);

  CudaStream& stream_;
  const Products products_;
  const int64_t cols_;
  int multiprocessors_ = 0;
  int pair_count_ = 0;
  DeviceBuffer<GramPair> pairs_;
  DeviceBuffer<double> sum_;
  DeviceBuffer<double> diagonal_;
};

}  // namespace quantd::compute
