#include <algorithm>

#include "compute/backend/cuda/gram_hopper.h"
#include "compute/backend/cuda/hopper.cuh"

// A persistent kernel. Two blocks of a cluster multiply two tiles of columns with one that they
// share: each loads its own tile and half of the shared one, which the copy engine writes to both.
// In a block one warp loads and two warpgroups multiply, each 64 columns of its own tile. The
// running float64 sum of the tile stays in registers for all rows of the call.
namespace quantd::compute {
namespace {

constexpr int kSliceRows = 1024;  // kSliceTokens
constexpr int kStageRows = 64;
constexpr int kStages = 6;
constexpr int kBoxColumns = 64;
constexpr int kBoxBytes = kBoxColumns * kStageRows * 2;
constexpr int kStageBytes = 4 * kBoxBytes;  // two boxes of the block's own tile, two of the shared
constexpr int kSharedBytes = kStages * kStageBytes + 1024;  // aligned to 1024
constexpr int kStepRows = 16;                               // of one instruction
constexpr int kStepBytes = kStepRows * 128;
constexpr int kWarpgroup = 128;
constexpr int kMultipliers = 2;  // warpgroups
constexpr int kThreads = (1 + kMultipliers) * kWarpgroup;
constexpr int kClusterBlocks = 2;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Where in the ring of stages a warp is.
class Place {
 public:
  __device__ int stage() const { return stage_; }
  __device__ uint32_t parity() const { return parity_; }
  __device__ void Next() {
    if (++stage_ < kStages) return;
    stage_ = 0;
    parity_ ^= 1;
  }

 private:
  int stage_ = 0;
  uint32_t parity_ = 0;
};

struct Ring {
  uint32_t stages;  // shared memory
  uint32_t full;    // barriers: the stage's bytes are there
  uint32_t empty;   // nobody in the cluster reads the stage any more

  __device__ uint32_t stage(int i) const { return stages + i * kStageBytes; }
  __device__ uint32_t full_barrier(int i) const { return full + i * 8; }
  __device__ uint32_t empty_barrier(int i) const { return empty + i * 8; }
};

// -1: none.
__device__ __forceinline__ int OwnTile(const GramPair& pair, uint32_t rank) {
  return rank == 0 ? pair.own[0] : pair.own[1];
}
// The tile whose columns are loaded in any case: the other block waits for its half of the stage.
__device__ __forceinline__ int LoadedTile(const GramPair& pair, uint32_t rank) {
  const int own = OwnTile(pair, rank);
  return own < 0 ? pair.own[0] : own;
}

// One thread.
__device__ void Load(const Ring& ring, const CUtensorMap& rows, const GramPair* pairs,
                     int pair_count, int stages, uint32_t rank) {
  Place place;
  for (int p = blockIdx.x / kClusterBlocks; p < pair_count; p += gridDim.x / kClusterBlocks) {
    const GramPair pair = pairs[p];
    const int own = LoadedTile(pair, rank) * kGramTile;
    const int half = static_cast<int>(rank) * kBoxColumns;
    for (int k = 0; k < stages; ++k, place.Next()) {
      const uint32_t to = ring.stage(place.stage());
      const uint32_t full = ring.full_barrier(place.stage());
      WaitFor(ring.empty_barrier(place.stage()), place.parity() ^ 1);
      ArriveExpecting(full, kStageBytes);
      const int row = k * kStageRows;
      CopyTile(rows, own, row, to, full);
      CopyTile(rows, own + kBoxColumns, row, to + kBoxBytes, full);
      CopyTileTo(0b11, rows, pair.shared * kGramTile + half, row,
                 to + (2 + static_cast<int>(rank)) * kBoxBytes, full);
    }
  }
}

// Queues the products of a stage.
__device__ __forceinline__ void MultiplyStage(uint32_t stage, int warpgroup, bool add,
                                              float (&sums)[64]) {
  const uint64_t own = TileDescriptor(stage + warpgroup * kBoxBytes, kBoxBytes);
  const uint64_t shared = TileDescriptor(stage + 2 * kBoxBytes, kBoxBytes);
  BeginProducts();
#pragma unroll
  for (int step = 0; step < kStageRows / kStepRows; ++step) {
    MultiplyTiles(Advance(own, step * kStepBytes), Advance(shared, step * kStepBytes),
                  add || step > 0, sums);
  }
  CommitProducts();
}

// This warpgroup reads the stage no more. One thread for each block of the cluster.
__device__ __forceinline__ void Release(const Ring& ring, int stage, int thread) {
  if (thread % 32 == 0 && thread / 32 < kClusterBlocks) {
    ArriveAt(ring.empty_barrier(stage), thread / 32);
  }
}

// sums = the products of the next kGramDepth rows.
__device__ __forceinline__ void MultiplyRun(const Ring& ring, Place& place, int warpgroup,
                                            int thread, float (&sums)[64]) {
  int before = -1;
#pragma unroll
  for (int k = 0; k < kGramDepth / kStageRows; ++k, place.Next()) {
    WaitFor(ring.full_barrier(place.stage()), place.parity());
    MultiplyStage(ring.stage(place.stage()), warpgroup, k > 0, sums);
    AwaitProducts<1>();
    if (k > 0) Release(ring, before, thread);
    before = place.stage();
  }
  AwaitProducts<0>();
  Release(ring, before, thread);
}

__device__ void Multiply(const Ring& ring, const GramPair* pairs, int pair_count, int runs,
                         uint32_t rank, int warpgroup, int thread, double* sum) {
  Place place;
  for (int p = blockIdx.x / kClusterBlocks; p < pair_count; p += gridDim.x / kClusterBlocks) {
    const GramPair pair = pairs[p];
    const int own = LoadedTile(pair, rank);
    double2* const tile =
        reinterpret_cast<double2*>(
            sum + GramTileIndex(max(own, pair.shared), min(own, pair.shared)) * kGramTileElements) +
        warpgroup * (kGramTileElements / 4) + thread;
    double2 totals[32];
#pragma unroll
    for (int i = 0; i < 32; ++i) totals[i] = tile[i * kWarpgroup];
    for (int run = 0; run < runs; ++run) {
      float sums[64];
      MultiplyRun(ring, place, warpgroup, thread, sums);
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        totals[i].x += static_cast<double>(sums[2 * i]);
        totals[i].y += static_cast<double>(sums[2 * i + 1]);
      }
    }
    if (OwnTile(pair, rank) < 0) continue;
#pragma unroll
    for (int i = 0; i < 32; ++i) tile[i * kWarpgroup] = totals[i];
  }
}

#endif

__global__ void __cluster_dims__(kClusterBlocks, 1, 1) __launch_bounds__(kThreads, 1)
    AddGramKernel(const __grid_constant__ CUtensorMap rows, const GramPair* pairs, int pair_count,
                  int slices, double* sum) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ std::byte shared[];
  __shared__ uint64_t barriers[2][kStages];
  const Ring ring = {.stages = (SharedAddress(shared) + 1023) / 1024 * 1024,
                     .full = SharedAddress(barriers[0]),
                     .empty = SharedAddress(barriers[1])};
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      InitBarrier(ring.full_barrier(i), 1);
      InitBarrier(ring.empty_barrier(i), kMultipliers * kClusterBlocks);
    }
    FenceBarrierInit();
  }
  ClusterSync();
  const uint32_t rank = ClusterRank();
  const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup;
  if (warpgroup == kMultipliers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == kMultipliers * kWarpgroup) {
      Load(ring, rows, pairs, pair_count, slices * (kSliceRows / kStageRows), rank);
    }
    __syncwarp();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    Multiply(ring, pairs, pair_count, slices * (kSliceRows / static_cast<int>(kGramDepth)), rank,
             warpgroup, static_cast<int>(threadIdx.x) % kWarpgroup, sum);
  }
  // A block stays until the other one's copies and arrivals at it are through.
  ClusterSync();
#endif
}

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                 const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                 const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                 CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's function, without linking the driver.
cudaError_t FindEncodeTiled(EncodeTiled* encode) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t code = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                            12000, cudaEnableDefault, &found);
  if (code != cudaSuccess) return code;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorSymbolNotFound;
  *encode = reinterpret_cast<EncodeTiled>(function);
  return cudaSuccess;
}

// Boxes of kStageRows rows and kBoxColumns columns. Columns past the last are zeros.
cudaError_t MapRows(int64_t cols, int64_t pitch, int64_t count, const uint16_t* rows,
                    CUtensorMap* map) {
  EncodeTiled encode = nullptr;
  if (const cudaError_t code = FindEncodeTiled(&encode); code != cudaSuccess) return code;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(count)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(pitch) * sizeof(uint16_t)};
  const cuuint32_t box[2] = {kBoxColumns, kStageRows};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<uint16_t*>(rows), sizes, strides,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

cudaError_t LaunchAddGramHopper(cudaStream_t stream, int blocks, const GramPair* pairs,
                                int pair_count, int64_t cols, int64_t pitch, int64_t slices,
                                const uint16_t* rows, double* sum) {
  CUtensorMap map;
  cudaError_t code = MapRows(cols, pitch, slices * kSliceRows, rows, &map);
  if (code != cudaSuccess) return code;
  code = cudaFuncSetAttribute(AddGramKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              kSharedBytes);
  if (code != cudaSuccess) return code;
  const int grid = kClusterBlocks * std::min(pair_count, std::max(blocks / kClusterBlocks, 1));
  AddGramKernel<<<static_cast<unsigned>(grid), kThreads, kSharedBytes, stream>>>(
      map, pairs, pair_count, static_cast<int>(slices), sum);
  return cudaGetLastError();
}

}  // namespace quantd::compute
