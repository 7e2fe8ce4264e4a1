#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

// What conjugate_gradients.h iterates. All pointers are to the device; sums run in a fixed order.
namespace quantd::compute {

// x, what is left of b, the direction, and the matrix times it: `size` each.
struct ConjugateVectors {
  double* solution;
  double* residual;
  double* direction;
  double* product;
  double* inverse_diagonal;
};
// Residuals are measured as r^T D^-1 r, D the matrix's diagonal.
struct ConjugateState {
  double first;     // residual of x = 0
  double residual;  // now
  int broken;       // 1: the matrix is not positive definite, or nothing here is finite
};

// x = 0: right^T D^-1 right is the first residual.
cudaError_t LaunchConjugateStart(cudaStream_t stream, int64_t size, const double* matrix,
                                 const double* right, const ConjugateVectors& vectors,
                                 ConjugateState* state);
// One iteration, none once the residual is at most `least` of the first: matrix symmetric, whole,
// size x size.
cudaError_t LaunchConjugateStep(cudaStream_t stream, int64_t size, const double* matrix,
                                double least, const ConjugateVectors& vectors,
                                ConjugateState* state);

}  // namespace quantd::compute
