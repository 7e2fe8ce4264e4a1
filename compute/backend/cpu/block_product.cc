#include "compute/backend/cpu/block_product.h"

#include "compute/backend/cpu/host_memory.h"
#include "compute/backend/cpu/matrix_product.h"

namespace quantd::compute {

BlockStack WidenedTx(const BlockTransform& transform) {
  const absl::Span<const float> tx = HostTensor(transform.tx).as<float>();
  return {transform.block_size, std::vector<double>(tx.begin(), tx.end())};
}

void ApplyBlocks(int64_t block_size, const double* blocks, int64_t rows, int64_t cols,
                 const double* from, double* to) {
  for (int64_t c = 0; c < cols; c += block_size) {
    MultiplyTransposed(rows, block_size, block_size, from + c, cols, blocks + c * block_size,
                       block_size, to + c, cols);
  }
}

void ApplyTransposedBlocks(int64_t block_size, const double* blocks, int64_t rows, int64_t cols,
                           const double* from, double* to) {
  for (int64_t c = 0; c < cols; c += block_size) {
    Multiply(rows, block_size, block_size, from + c, cols, blocks + c * block_size, block_size,
             to + c, cols);
  }
}

}  // namespace quantd::compute
