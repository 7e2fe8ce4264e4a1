#include "compute/backend/cuda/block_reduce.cuh"
#include "compute/backend/cuda/conjugate_gradient_kernels.h"

namespace quantd::compute {
namespace {

constexpr int kRowThreads = 256;
constexpr int kStepThreads = 1024;

__global__ void __launch_bounds__(kStepThreads)
    StartKernel(int64_t size, const double* matrix, const double* right, ConjugateVectors v,
                ConjugateState* state) {
  double sum = 0.0;
  bool positive = true;
  for (int64_t i = threadIdx.x; i < size; i += kStepThreads) {
    const double diagonal = matrix[i * (size + 1)];
    positive = positive && diagonal > 0.0;
    const double inverse = 1.0 / diagonal;
    v.inverse_diagonal[i] = inverse;
    v.solution[i] = 0.0;
    v.residual[i] = right[i];
    v.direction[i] = right[i] * inverse;
    sum += right[i] * right[i] * inverse;
  }
  sum = OverBlock(sum, SumOf());
  const bool sound = __syncthreads_and(positive) != 0 && sum < INFINITY;
  if (threadIdx.x == 0) *state = {.first = sum, .residual = sum, .broken = sound ? 0 : 1};
}

// One block a row: bound by reading the matrix once.
__global__ void __launch_bounds__(kRowThreads)
    MultiplyKernel(int64_t size, const double* matrix, double least, ConjugateVectors v,
                   const ConjugateState* state) {
  if (state->broken != 0 || state->residual <= least * state->first) return;
  const double* const row = matrix + blockIdx.x * size;
  double sum = 0.0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < size; i += kRowThreads) sum += row[i] * v.direction[i];
  sum = OverBlock(sum, SumOf());
  if (threadIdx.x == 0) v.product[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kStepThreads)
    StepKernel(int64_t size, double least, ConjugateVectors v, ConjugateState* state) {
  const double before = state->residual;
  if (state->broken != 0 || before <= least * state->first) return;
  double curvature = 0.0;
  for (int64_t i = threadIdx.x; i < size; i += kStepThreads) {
    curvature += v.direction[i] * v.product[i];
  }
  curvature = OverBlock(curvature, SumOf());
  if (!(curvature > 0.0)) {
    __syncthreads();  // all have read the state
    if (threadIdx.x == 0) state->broken = 1;
    return;
  }
  const double step = before / curvature;
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < size; i += kStepThreads) {
    v.solution[i] += step * v.direction[i];
    const double left = v.residual[i] - step * v.product[i];
    v.residual[i] = left;
    sum += left * left * v.inverse_diagonal[i];
  }
  const double after = OverBlock(sum, SumOf());
  const double kept = after / before;
  for (int64_t i = threadIdx.x; i < size; i += kStepThreads) {
    v.direction[i] = v.residual[i] * v.inverse_diagonal[i] + kept * v.direction[i];
  }
  if (threadIdx.x == 0) {
    state->residual = after;
    if (!(after < INFINITY)) state->broken = 1;
  }
}

}  // namespace

cudaError_t LaunchConjugateStart(cudaStream_t stream, int64_t size, const double* matrix,
                                 const double* right, const ConjugateVectors& vectors,
                                 ConjugateState* state) {
  StartKernel<<<1, kStepThreads, 0, stream>>>(size, matrix, right, vectors, state);
  return cudaGetLastError();
}

cudaError_t LaunchConjugateStep(cudaStream_t stream, int64_t size, const double* matrix,
                                double least, const ConjugateVectors& vectors,
                                ConjugateState* state) {
  MultiplyKernel<<<static_cast<unsigned>(size), kRowThreads, 0, stream>>>(size, matrix, least,
                                                                          vectors, state);
  StepKernel<<<1, kStepThreads, 0, stream>>>(size, least, vectors, state);
  return cudaGetLastError();
}

}  // namespace quantd::compute
