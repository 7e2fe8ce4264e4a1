#include <cooperative_groups.h>

#include <algorithm>
#include <cuda/atomic>

#include "compute/backend/cuda/successive_cancellation_kernels.h"

// A column's gamma needs sums over all rows, and the next column needs gamma: what a column costs
// is the time in which blocks tell each other two numbers. So there is no barrier between blocks:
// each writes its sums into a place that no other value ever takes, for this column alone, and
// readers wait until it is no longer what it was filled with. Up to 16 blocks sit in one cluster
// and write into each other's shared memory; for more rows they meet in the L2 cache.
namespace quantd::compute {
namespace {

namespace cg = cooperative_groups;

constexpr int kWarp = 32;
constexpr int kMaxCluster = 16;
constexpr int kMaxWarps = 16;
constexpr unsigned kAllLanes = 0xffffffffu;
// A NaN that no sum is: arithmetic's own NaNs are replaced by another.
constexpr unsigned long long kUnwritten = ~0ull;

struct Pair {
  double product;
  double energy;
};

// The same tree for every lane: all get the same bits.
__device__ Pair SumOverWarp(Pair pair) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    pair.product += __shfl_xor_sync(kAllLanes, pair.product, offset);
    pair.energy += __shfl_xor_sync(kAllLanes, pair.energy, offset);
  }
  return pair;
}

__device__ void Publish(double value, double* to) {
  const double plain = value == value ? value : nan("");
  cuda::atomic_ref<unsigned long long, cuda::thread_scope_device> place(
      *reinterpret_cast<unsigned long long*>(to));
  place.store(static_cast<unsigned long long>(__double_as_longlong(plain)),
              cuda::memory_order_relaxed);
}

__device__ double Await(double* from) {
  cuda::atomic_ref<unsigned long long, cuda::thread_scope_device> place(
      *reinterpret_cast<unsigned long long*>(from));
  unsigned long long bits = kUnwritten;
  do {
    bits = place.load(cuda::memory_order_relaxed);
  } while (bits == kUnwritten);
  return __longlong_as_double(static_cast<long long>(bits));
}

// Sums of all blocks, for warp 0. `step` counts columns from the panel's last.
class GridExchange {
 public:
  struct Places {};
  __device__ GridExchange(const CancelPanel& panel, Places&) : panel_(panel) {}
  __device__ void Open() {}
  __device__ void Close() {}
  __device__ void Send(int lane, int column, Pair pair) {
    if (lane > 1) return;
    Publish(lane == 0 ? pair.product : pair.energy, Place(column, blockIdx.x) + lane);
  }
  __device__ Pair Receive(int lane, int column) {
    Pair sum = {0.0, 0.0};
    for (unsigned block = lane; block < gridDim.x; block += kWarp) {
      double* const place = Place(column, block);
      sum.product += Await(place);
      sum.energy += Await(place + 1);
    }
    return SumOverWarp(sum);
  }

 private:
  __device__ double* Place(int column, unsigned block) const {
    return panel_.sums + 2 * ((panel_.begin + column) * gridDim.x + block);
  }
  const CancelPanel& panel_;
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
class ClusterExchange {
 public:
  struct Places {
    double sums[kCancelPanel][kMaxCluster][2];
  };
  __device__ ClusterExchange(const CancelPanel&, Places& places) : places_(places) {}
  __device__ void Open() {
    auto* const words = reinterpret_cast<unsigned long long*>(places_.sums);
    for (int i = threadIdx.x; i < kCancelPanel * kMaxCluster * 2; i += blockDim.x) {
      words[i] = kUnwritten;
    }
    cg::this_cluster().sync();
  }
  // A block's shared memory must be there while others write to it.
  __device__ void Close() { cg::this_cluster().sync(); }
  __device__ void Send(int lane, int column, Pair pair) {
    if (lane >= static_cast<int>(gridDim.x)) return;
    double* const place =
        cg::this_cluster().map_shared_rank(&places_.sums[column][blockIdx.x][0], lane);
    Publish(pair.product, place);
    Publish(pair.energy, place + 1);
  }
  __device__ Pair Receive(int lane, int column) {
    Pair sum = {0.0, 0.0};
    if (lane < static_cast<int>(gridDim.x)) {
      sum.product = Await(&places_.sums[column][lane][0]);
      sum.energy = Await(&places_.sums[column][lane][1]);
    }
    return SumOverWarp(sum);
  }

 private:
  Places& places_;
};
#endif

// What the panel needs of L, arranged for a loop that always rounds the same register: behind
// source column s, coefficient q is that of column s - 2 - (kColumns - 1 - q), 0 where there is
// none.
template <int kColumns>
struct Coefficients {
  double later[kColumns][kColumns];
  double next[kColumns];  // of column s - 1
  double step[kColumns];  // c / L_ss

  __device__ void Load(const CancelPanel& panel) {
    const int64_t stride = panel.cols;
    const double* const corner = panel.lower + panel.begin * stride + panel.begin;
    for (int at = threadIdx.x; at < kColumns * kColumns; at += blockDim.x) {
      const int s = at / kColumns;
      const int q = at % kColumns;
      const int j = s - 2 - (kColumns - 1 - q);
      later[s][q] = s < panel.width && j >= 0 ? corner[s * stride + j] : 0.0;
    }
    for (int s = threadIdx.x; s < kColumns; s += blockDim.x) {
      next[s] = s < panel.width && s > 0 ? corner[s * stride + s - 1] : 0.0;
      step[s] = s < panel.width ? panel.spacing / corner[s * stride + s] : 0.0;
    }
  }
};

// Each thread keeps its rows of the panel in registers. While the sums travel, what the column
// before left is subtracted from all columns but the next, which the critical path needs at once.
template <int kColumns, int kRows, typename Exchange>
__device__ void Cancel(const CancelPanel& panel) {
  __shared__ Coefficients<kColumns> coefficients;
  __shared__ typename Exchange::Places places;
  __shared__ Pair of_warp[kMaxWarps];
  __shared__ double shared_step;
  Exchange exchange(panel, places);
  coefficients.Load(panel);
  exchange.Open();

  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int warps = blockDim.x / kWarp;
  const int64_t first = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x);
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  double y[kRows][kColumns];
  double now[kRows];
  double done[kRows];
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    const int64_t r = first + k * stride;
#pragma unroll
    for (int q = 0; q < kColumns; ++q) {
      const int column = panel.width - kColumns + q;
      y[k][q] = r < panel.rows && column >= 0
                    ? panel.target[(panel.begin + column) * panel.rows + r]
                    : 0.0;
    }
    now[k] = y[k][kColumns - 1];
    done[k] = 0.0;
  }
  __syncthreads();

  const double scale = 1.0 / panel.spacing;
  bool too_large = false;
  for (int s = panel.width - 1; s >= 0; --s) {
    double z[kRows];
    Pair sum = {0.0, 0.0};
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const double scaled = now[k] * scale;
      z[k] = rint(scaled);
      sum.product += z[k] * scaled;
      sum.energy += z[k] * z[k];
      too_large |= !(fabs(z[k]) <= kLargestLatticeCode);  // NaN too
    }
    sum = SumOverWarp(sum);
    if (lane == 0) of_warp[warp] = sum;
    __syncthreads();
    if (warp == 0) {
      sum = lane < warps ? of_warp[lane] : Pair{0.0, 0.0};
      exchange.Send(lane, s, SumOverWarp(sum));
    }
    const double* const later = coefficients.later[min(s + 1, panel.width - 1)];
#pragma unroll
    for (int q = kColumns - 1; q > 0; --q) {
#pragma unroll
      for (int k = 0; k < kRows; ++k) y[k][q] = y[k][q - 1] - later[q] * done[k];
    }
    const int64_t column = panel.begin + s;
    if (warp == 0) {
      sum = exchange.Receive(lane, s);
      const double gamma = sum.energy > 0.0 ? sum.product / sum.energy : 0.0;
      if (lane == 0) {
        shared_step = gamma * coefficients.step[s];
        if (blockIdx.x == 0) panel.gamma[column] = gamma;
      }
    }
    __syncthreads();
    const double step = shared_step;
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      done[k] = step * z[k];
      now[k] = y[k][kColumns - 1] - coefficients.next[s] * done[k];
      const int64_t r = first + k * stride;
      if (r >= panel.rows) continue;
      panel.target[column * panel.rows + r] = done[k];
      panel.codes[column * panel.rows + r] = __double2int_rn(z[k]);
    }
  }
  if (too_large) *panel.too_large = 1;
  exchange.Close();
}

template <int kColumns, int kRows>
__global__ void __launch_bounds__(256) CancelInGrid(const CancelPanel panel) {
  Cancel<kColumns, kRows, GridExchange>(panel);
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) CancelInCluster(const CancelPanel panel) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  Cancel<kCancelPanel, 1, ClusterExchange>(panel);
#endif
}

constexpr int kGridThreads = 256;
constexpr int kTallRows = 8;
constexpr int kTallPanel = 4;

const void* KernelOf(const CancelPlan& plan) {
  if (plan.cluster > 0) {
    return plan.threads == 256 ? reinterpret_cast<const void*>(&CancelInCluster<256>)
                               : reinterpret_cast<const void*>(&CancelInCluster<512>);
  }
  return plan.rows_per_thread == 1
             ? reinterpret_cast<const void*>(&CancelInGrid<kCancelPanel, 1>)
             : reinterpret_cast<const void*>(&CancelInGrid<kTallPanel, kTallRows>);
}

cudaLaunchConfig_t ConfigOf(const CancelPlan& plan, cudaStream_t stream,
                            cudaLaunchAttribute* attribute) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(plan.blocks));
  config.blockDim = dim3(static_cast<unsigned>(plan.threads));
  config.stream = stream;
  config.attrs = attribute;
  config.numAttrs = 1;
  if (plan.cluster > 0) {
    attribute->id = cudaLaunchAttributeClusterDimension;
    attribute->val.clusterDim.x = static_cast<unsigned>(plan.cluster);
    attribute->val.clusterDim.y = 1;
    attribute->val.clusterDim.z = 1;
  } else {
    attribute->id = cudaLaunchAttributeCooperative;
    attribute->val.cooperative = 1;
  }
  return config;
}

// One cluster for all rows; no blocks where the rows or the device do not allow it.
CancelPlan PlanCluster(int64_t rows) {
  CancelPlan plan = {.rows_per_thread = 1, .panel = kCancelPanel};
  plan.threads = rows <= 256 * kMaxCluster ? 256 : 512;
  if (rows > int64_t{plan.threads} * kMaxCluster) return plan;
  plan.cluster = 1;
  while (int64_t{plan.cluster} * plan.threads < rows) plan.cluster *= 2;
  if (cudaFuncSetAttribute(KernelOf(plan), cudaFuncAttributeNonPortableClusterSizeAllowed, 1) ==
      cudaSuccess) {
    plan.blocks = plan.cluster;
    cudaLaunchAttribute attribute;
    const cudaLaunchConfig_t config = ConfigOf(plan, nullptr, &attribute);
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, KernelOf(plan), &config) == cudaSuccess &&
        clusters > 0) {
      return plan;
    }
    plan.blocks = 0;
  }
  cudaGetLastError();
  plan.cluster = 0;
  return plan;
}

cudaError_t PlanGrid(int multiprocessors, int64_t rows, CancelPlan* plan) {
  for (const int rows_per_thread : {1, kTallRows}) {
    *plan = {.threads = kGridThreads,
             .rows_per_thread = rows_per_thread,
             .panel = rows_per_thread == 1 ? kCancelPanel : kTallPanel};
    int resident = 0;
    const cudaError_t code =
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, KernelOf(*plan), plan->threads, 0);
    if (code != cudaSuccess) return code;
    const int64_t of_block = int64_t{plan->threads} * rows_per_thread;
    const int64_t blocks = (rows + of_block - 1) / of_block;
    if (blocks > int64_t{resident} * multiprocessors) continue;
    plan->blocks = static_cast<int>(std::max<int64_t>(blocks, 1));
    return cudaSuccess;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t PlanCancellation(int device, int64_t rows, CancelPlan* plan) {
  int major = 0;
  cudaError_t code = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (code != cudaSuccess) return code;
  if (major >= 9) {
    *plan = PlanCluster(rows);
    if (plan->blocks > 0) return cudaSuccess;
  }
  int multiprocessors = 0;
  code = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (code != cudaSuccess) return code;
  return PlanGrid(multiprocessors, rows, plan);
}

cudaError_t LaunchCancelPanel(cudaStream_t stream, const CancelPlan& plan,
                              const CancelPanel& panel) {
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = ConfigOf(plan, stream, &attribute);
  CancelPanel argument = panel;
  void* arguments[] = {&argument};
  const cudaError_t code = cudaLaunchKernelExC(&config, KernelOf(plan), arguments);
  return code == cudaSuccess ? cudaGetLastError() : code;
}

}  // namespace quantd::compute
