#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace quantd::compute {

inline constexpr double kLargestLatticeCode = 1 << 30;

// Cancels columns [begin, begin + width) of a matrix whose earlier (larger) columns are done; all
// pointers are to the device.
struct CancelPanel {
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t begin = 0;
  int width = 0;                  // 1..the plan's panel
  double spacing = 0.0;           // c
  const double* lower = nullptr;  // L, cols x cols row-major
  double* target = nullptr;       // Y, cols x rows; the panel's becomes gamma_i c / L_ii z
  int32_t* codes = nullptr;       // z, cols x rows
  double* gamma = nullptr;        // cols
  int* too_large = nullptr;       // set to 1 where a code leaves +-2^30
  // Where blocks of a grid leave their sums for each other: CancelPlan::Sums(), every bit set
  // before the first panel.
  double* sums = nullptr;
};

// How panels of a matrix of so many rows are cancelled.
struct CancelPlan {
  bool cluster = false;  // one cluster of blocks, or a grid
  int blocks = 0;        // 0: too many rows for this device
  int threads = 0;       // of a block
  int panel = 0;         // columns of a launch
  int shared_bytes = 0;  // of a block
  const void* kernel = nullptr;

  int64_t Sums(int64_t cols) const { return cluster ? 0 : 2 * cols * blocks; }
};

// About twice as fast as a grid. False where the rows (more than 32,768) or the device (before
// compute capability 9) do not allow it.
bool PlanClusterCancellation(int device, int64_t rows, CancelPlan* plan);
cudaError_t PlanGridCancellation(int device, int64_t rows, CancelPlan* plan);

cudaError_t LaunchCancelPanel(cudaStream_t stream, const CancelPlan& plan,
                              const CancelPanel& panel);

}  // namespace quantd::compute
