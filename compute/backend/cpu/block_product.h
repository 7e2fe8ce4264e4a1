#pragma once

#include <cstdint>
#include <vector>

#include "compute/backend/backend.h"

namespace quantd::compute {

// A stack of C/B blocks of B x B, float64, row-major.
struct BlockStack {
  int64_t block_size;
  std::vector<double> blocks;
};
// The stored transform, widened.
BlockStack WidenedTx(const BlockTransform& transform);

// to = from T^T by blocks: every row x of `rows` x `cols` becomes T x. `from` and `to` do not
// overlap. In the calling thread.
void ApplyBlocks(int64_t block_size, const double* blocks, int64_t rows, int64_t cols,
                 const double* from, double* to);
// to = from T by blocks.
void ApplyTransposedBlocks(int64_t block_size, const double* blocks, int64_t rows, int64_t cols,
                           const double* from, double* to);

}  // namespace quantd::compute
