#pragma once

#include "compute/backend/cuda/gram_tiles.h"

// Order of elements in a tile. A warpgroup holds 64 rows of it: thread t holds, of the rows
// t / 32 * 16 + t % 32 / 4 and that + 8, columns 8 k + t % 4 * 2 and that + 1 (wgmma's layout of
// results). Its k-th pair of the row, or of the row + 8, is at [half][2 k or 2 k + 1][t][2].
namespace quantd::compute {

struct GramPlace {
  int row;
  int column;
};

__device__ __forceinline__ GramPlace GramPlaceOf(int offset) {
  const int thread = offset / 2 % 128;
  const int pair = offset / 256 % 32;
  const int row = offset / 8192 * 64 + thread / 32 * 16 + thread % 32 / 4 + pair % 2 * 8;
  return {row, pair / 2 * 8 + thread % 4 * 2 + offset % 2};
}

__device__ __forceinline__ int GramOffsetOf(GramPlace place) {
  const int row = place.row % 64;
  const int thread = row / 16 * 32 + row % 8 * 4 + place.column % 8 / 2;
  const int pair = place.column / 8 * 2 + row % 16 / 8;
  return place.row / 64 * 8192 + pair * 256 + thread * 2 + place.column % 2;
}

}  // namespace quantd::compute
