#pragma once

// Reductions over a block of threads in a fixed order.
namespace quantd::compute {

struct SumOf {
  __device__ double operator()(double a, double b) const { return a + b; }
};
struct MaxOf {
  __device__ double operator()(double a, double b) const { return fmax(a, b); }
};

template <typename Combine>
__device__ inline double OverWarp(double value, Combine combine) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, lanes));
  }
  return value;
}

// All threads of the block (whole warps, at most 1024) call and get the result.
template <typename Combine>
__device__ inline double OverBlock(double value, Combine combine) {
  __shared__ double parts[32];
  value = OverWarp(value, combine);
  __syncthreads();  // an earlier call may still read parts
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  value = parts[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) value = combine(value, parts[warp]);
  return value;
}

}  // namespace quantd::compute
