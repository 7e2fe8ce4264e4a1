#include <cooperative_groups.h>

#include <algorithm>
#include <cuda/atomic>

#include "compute/backend/cuda/successive_cancellation_kernels.h"

// A column's gamma needs sums over all rows, and the next column needs gamma: what a column costs
// is the time in which its rows' threads tell each other two numbers. So there is no barrier
// between them: each writes its sums into a place of this column alone that holds what no sum is,
// and readers wait until it does not. Up to 16 blocks sit in one cluster and write into each
// other's shared memory; otherwise blocks meet in the L2 cache.
namespace quantd::compute {
namespace {

namespace cg = cooperative_groups;

constexpr int kWarp = 32;
constexpr int kMaxCluster = 16;
constexpr int kGridThreads = 256;
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

__device__ double GammaOf(Pair sum) { return sum.energy > 0.0 ? sum.product / sum.energy : 0.0; }

// The bits of a sum, which are not kUnwritten.
__device__ unsigned long long Written(double value) {
  const double plain = value == value ? value : nan("");
  return static_cast<unsigned long long>(__double_as_longlong(plain));
}

__device__ void Publish(double value, double* to) {
  cuda::atomic_ref<unsigned long long, cuda::thread_scope_device> place(
      *reinterpret_cast<unsigned long long*>(to));
  place.store(Written(value), cuda::memory_order_relaxed);
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

// Sums of all blocks, for warp 0; `column` is the panel's.
class GridExchange {
 public:
  __device__ explicit GridExchange(const CancelPanel& panel) : panel_(panel) {}
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

// A thread's rows of the panel, in registers. `now` is the column to be rounded; y holds those
// before it, the next one last, without what the column before `now` left: while sums travel, that
// is subtracted from all of them but the next, which the critical path needs at once.
template <int kColumns, int kRows>
struct PanelRows {
  double y[kRows][kColumns];
  double now[kRows];
  double z[kRows];
  double done[kRows];

  static __device__ int64_t Row(int k) {
    const int64_t stride = int64_t{gridDim.x} * blockDim.x;
    return k * stride + int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  }

  __device__ void Load(const CancelPanel& panel) {
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
#pragma unroll
      for (int q = 0; q < kColumns; ++q) {
        const int column = panel.width - kColumns + q;
        y[k][q] = Row(k) < panel.rows && column >= 0
                      ? panel.target[(panel.begin + column) * panel.rows + Row(k)]
                      : 0.0;
      }
      now[k] = y[k][kColumns - 1];
      done[k] = 0.0;
    }
  }

  // Rounds the column at hand; this thread's part of its sums.
  __device__ Pair Round(double scale, bool& too_large) {
    Pair sum = {0.0, 0.0};
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const double scaled = now[k] * scale;
      z[k] = rint(scaled);
      sum.product += z[k] * scaled;
      sum.energy += z[k] * z[k];
      too_large |= !(fabs(z[k]) <= kLargestLatticeCode);  // NaN too
    }
    return sum;
  }

  // What column s + 1 left, where there is one, from columns before s; y then ends with s - 1.
  __device__ void Subtract(const Coefficients<kColumns>& coefficients, int s, int width) {
    const double* const later = coefficients.later[min(s + 1, width - 1)];
#pragma unroll
    for (int q = kColumns - 1; q > 0; --q) {
#pragma unroll
      for (int k = 0; k < kRows; ++k) y[k][q] = y[k][q - 1] - later[q] * done[k];
    }
  }

  __device__ void Finish(const CancelPanel& panel, const Coefficients<kColumns>& coefficients,
                         int s, double gamma) {
    const double step = gamma * coefficients.step[s];
    const int64_t begin = (panel.begin + s) * panel.rows;
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      done[k] = step * z[k];
      now[k] = y[k][kColumns - 1] - coefficients.next[s] * done[k];
      if (Row(k) >= panel.rows) continue;
      panel.target[begin + Row(k)] = done[k];
      panel.codes[begin + Row(k)] = __double2int_rn(z[k]);
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) panel.gamma[panel.begin + s] = gamma;
  }
};

// Any number of blocks that the device holds at one time.
template <int kColumns, int kRows>
__global__ void __launch_bounds__(kGridThreads) CancelInGrid(const CancelPanel panel) {
  constexpr int kWarps = kGridThreads / kWarp;
  __shared__ Coefficients<kColumns> coefficients;
  __shared__ Pair of_warp[kWarps];
  __shared__ double shared_gamma;
  GridExchange exchange(panel);
  coefficients.Load(panel);
  PanelRows<kColumns, kRows> rows;
  rows.Load(panel);
  __syncthreads();

  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const double scale = 1.0 / panel.spacing;
  bool too_large = false;
  for (int s = panel.width - 1; s >= 0; --s) {
    Pair sum = SumOverWarp(rows.Round(scale, too_large));
    if (lane == 0) of_warp[warp] = sum;
    __syncthreads();
    if (warp == 0) {
      sum = lane < kWarps ? of_warp[lane] : Pair{0.0, 0.0};
      exchange.Send(lane, s, SumOverWarp(sum));
    }
    rows.Subtract(coefficients, s, panel.width);
    if (warp == 0) {
      sum = exchange.Receive(lane, s);
      if (lane == 0) shared_gamma = GammaOf(sum);
    }
    __syncthreads();
    rows.Finish(panel, coefficients, s, shared_gamma);
  }
  if (too_large) *panel.too_large = 1;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// Into the shared memory of a block of the cluster.
__device__ void SendTo(unsigned block, Pair* place, Pair pair) {
  asm volatile(
      "{\n"
      ".reg .u32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "st.relaxed.cluster.shared::cluster.v2.b64 [remote], {%2, %3};\n"
      "}\n" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(place))),
      "r"(block), "l"(Written(pair.product)), "l"(Written(pair.energy))
      : "memory");
}

__device__ Pair AwaitIn(const Pair* place) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(place));
  unsigned long long product = 0;
  unsigned long long energy = 0;
  do {
    asm volatile("ld.relaxed.cluster.shared::cta.v2.b64 {%0, %1}, [%2];"
                 : "=l"(product), "=l"(energy)
                 : "r"(address)
                 : "memory");
  } while (product == kUnwritten || energy == kUnwritten);
  return {__longlong_as_double(static_cast<long long>(product)),
          __longlong_as_double(static_cast<long long>(energy))};
}

// One cluster; no barrier in the loop over columns: every warp sends its sums to all blocks and
// adds up those of all warps itself.
template <int kColumns, int kRows>
__device__ void CancelColumns(const CancelPanel& panel, Pair* places) {
  __shared__ Coefficients<kColumns> coefficients;
  const int lane = threadIdx.x % kWarp;
  const int warps_of_block = blockDim.x / kWarp;
  const int warps = gridDim.x * warps_of_block;
  const int warp = blockIdx.x * warps_of_block + threadIdx.x / kWarp;
  const double unwritten = __longlong_as_double(static_cast<long long>(kUnwritten));
  for (int i = threadIdx.x; i < kColumns * warps; i += blockDim.x) {
    places[i] = {unwritten, unwritten};
  }
  coefficients.Load(panel);
  PanelRows<kColumns, kRows> rows;
  rows.Load(panel);
  cg::this_cluster().sync();

  const double scale = 1.0 / panel.spacing;
  bool too_large = false;
  for (int s = panel.width - 1; s >= 0; --s) {
    const Pair own = SumOverWarp(rows.Round(scale, too_large));
    if (lane < gridDim.x) SendTo(lane, places + s * warps + warp, own);
    rows.Subtract(coefficients, s, panel.width);
    Pair sum = {0.0, 0.0};
    for (int i = lane; i < warps; i += kWarp) {
      const Pair other = AwaitIn(places + s * warps + i);
      sum.product += other.product;
      sum.energy += other.energy;
    }
    __syncwarp();
    sum = SumOverWarp(sum);
    rows.Finish(panel, coefficients, s, GammaOf(sum));
  }
  if (too_large) *panel.too_large = 1;
  // A block's shared memory must be there while others write to it.
  cg::this_cluster().sync();
}
#endif

template <int kColumns, int kRows, int kThreads>
__global__ void __launch_bounds__(kThreads, 1) CancelInCluster(const CancelPanel panel) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) unsigned char memory[];
  CancelColumns<kColumns, kRows>(panel, reinterpret_cast<Pair*>(memory));
#endif
}

// Threads of a block and what each keeps in registers; the kernel that does so.
struct Shape {
  int threads;
  int rows_of_thread;
  int columns;
  const void* kernel;

  int64_t rows_of_block() const { return int64_t{threads} * rows_of_thread; }
};

template <int kColumns, int kRows, int kThreads>
Shape ClusterShape() {
  return {kThreads, kRows, kColumns,
          reinterpret_cast<const void*>(&CancelInCluster<kColumns, kRows, kThreads>)};
}

template <int kColumns, int kRows>
Shape GridShape() {
  return {kGridThreads, kRows, kColumns,
          reinterpret_cast<const void*>(&CancelInGrid<kColumns, kRows>)};
}

cudaLaunchConfig_t ConfigOf(const CancelPlan& plan, cudaStream_t stream,
                            cudaLaunchAttribute* attribute) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(plan.blocks));
  config.blockDim = dim3(static_cast<unsigned>(plan.threads));
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
  config.stream = stream;
  config.attrs = attribute;
  config.numAttrs = 1;
  if (plan.cluster) {
    attribute->id = cudaLaunchAttributeClusterDimension;
    attribute->val.clusterDim.x = static_cast<unsigned>(plan.blocks);
    attribute->val.clusterDim.y = 1;
    attribute->val.clusterDim.z = 1;
  } else {
    attribute->id = cudaLaunchAttributeCooperative;
    attribute->val.cooperative = 1;
  }
  return config;
}

// Whether the device runs one cluster of this plan at all.
bool Fits(const CancelPlan& plan) {
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = ConfigOf(plan, nullptr, &attribute);
  int clusters = 0;
  const bool fits =
      cudaFuncSetAttribute(plan.kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) ==
          cudaSuccess &&
      cudaFuncSetAttribute(plan.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           plan.shared_bytes) == cudaSuccess &&
      cudaOccupancyMaxActiveClusters(&clusters, plan.kernel, &config) == cudaSuccess &&
      clusters > 0;
  if (!fits) cudaGetLastError();
  return fits;
}

}  // namespace

bool PlanClusterCancellation(int device, int64_t rows, CancelPlan* plan) {
  int major = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  if (major < 9) return false;
  for (const Shape& shape : {ClusterShape<32, 2, 128>(), ClusterShape<32, 2, 256>(),
                             ClusterShape<16, 4, 256>(), ClusterShape<8, 4, 512>()}) {
    if (rows > shape.rows_of_block() * kMaxCluster) continue;
    *plan = {.cluster = true,
             .blocks = 1,
             .threads = shape.threads,
             .panel = shape.columns,
             .shared_bytes = 0,
             .kernel = shape.kernel};
    while (plan->blocks * shape.rows_of_block() < rows) plan->blocks *= 2;
    plan->shared_bytes =
        static_cast<int>(sizeof(Pair)) * shape.columns * plan->blocks * (shape.threads / kWarp);
    return Fits(*plan);
  }
  return false;
}

cudaError_t PlanGridCancellation(int device, int64_t rows, CancelPlan* plan) {
  int multiprocessors = 0;
  cudaError_t code =
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (code != cudaSuccess) return code;
  *plan = CancelPlan();
  for (const Shape& shape : {GridShape<32, 1>(), GridShape<4, 8>()}) {
    int resident = 0;
    code = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, shape.kernel, shape.threads, 0);
    if (code != cudaSuccess) return code;
    const int64_t blocks =
        std::max<int64_t>((rows + shape.rows_of_block() - 1) / shape.rows_of_block(), 1);
    if (blocks > int64_t{resident} * multiprocessors) continue;
    *plan = {.cluster = false,
             .blocks = static_cast<int>(blocks),
             .threads = shape.threads,
             .panel = shape.columns,
             .shared_bytes = 0,
             .kernel = shape.kernel};
    return cudaSuccess;
  }
  return cudaSuccess;
}

cudaError_t LaunchCancelPanel(cudaStream_t stream, const CancelPlan& plan,
                              const CancelPanel& panel) {
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = ConfigOf(plan, stream, &attribute);
  CancelPanel argument = panel;
  void* arguments[] = {&argument};
  const cudaError_t code = cudaLaunchKernelExC(&config, plan.kernel, arguments);
  return code == cudaSuccess ? cudaGetLastError() : code;
}

}  // namespace quantd::compute
