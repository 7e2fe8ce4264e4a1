#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace quantd::compute {

// Columns that one launch cancels.
inline constexpr int kCancelPanel = 32;
inline constexpr double kLargestLatticeCode = 1 << 30;

// Cancels columns [begin, begin + width) of a matrix whose earlier (larger) columns are done; all
// pointers are to the device.
struct CancelPanel {
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t begin = 0;
  int width = 0;                  // 1..kCancelPanel
  double spacing = 0.0;           // c
  const double* lower = nullptr;  // L, cols x cols row-major
  double* target = nullptr;       // Y, cols x rows; the panel's becomes gamma_i c / L_ii z
  int32_t* codes = nullptr;       // z, cols x rows
  double* gamma = nullptr;        // cols
  int* too_large = nullptr;       // set to 1 where a code leaves +-2^30
  // Where blocks leave their sums for each other: cols x CancelBlocks() pairs, every bit set before
  // the first panel. Null if CancelBlocks() is 0.
  double* sums = nullptr;
};

// What a matrix of this many rows is cancelled by.
struct CancelPlan {
  int cluster = 0;          // blocks of one cluster that talk through shared memory; 0: of a grid
  int blocks = 0;           // of the launch; 0: too many rows for this device
  int threads = 0;          // of a block
  int rows_per_thread = 1;  // 1, or 8 with narrower panels
  int panel = 0;            // columns of a launch

  int64_t Sums(int64_t cols) const { return cluster > 0 ? 0 : 2 * cols * blocks; }
};
cudaError_t PlanCancellation(int device, int64_t rows, CancelPlan* plan);

cudaError_t LaunchCancelPanel(cudaStream_t stream, const CancelPlan& plan,
                              const CancelPanel& panel);

}  // namespace quantd::compute
