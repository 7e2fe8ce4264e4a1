#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

// Kernels around a sum of x x^T in tiles (gram_tiles.h). `sum`: GramElements(cols); `diagonal`:
// cols, the squares, which are summed apart. Launchers queue on `stream` and return what launching
// said.
namespace quantd::compute {

// Reads rows [first, first + count) of the lower triangle of a row-major cols x cols matrix,
// diagonal included. `rows` holds these rows.
cudaError_t LaunchReadGramRows(cudaStream_t stream, int64_t cols, int64_t first, int64_t count,
                               const double* rows, double* sum, double* diagonal);
// Writes rows [first, first + count) of the symmetric matrix.
cudaError_t LaunchWriteGramRows(cudaStream_t stream, int64_t cols, int64_t first, int64_t count,
                                const double* sum, const double* diagonal, double* rows);

// Adds a product of columns [first, cols) with columns [first, first + width), row-major with
// `width` columns: its part in the lower triangle. `first` is a multiple of kGramTile. Doubles are
// added to the diagonal, too.
cudaError_t LaunchAddGramPanel(cudaStream_t stream, int64_t cols, int64_t first, int64_t width,
                               const float* panel, double* sum);
cudaError_t LaunchAddGramPanel(cudaStream_t stream, int64_t cols, int64_t first, int64_t width,
                               const double* panel, double* sum, double* diagonal);

// Adds the squares of `slices` x kSliceTokens rows of bfloat16 that are `pitch` elements apart, in
// float64, slice by slice. `partial`: slices x cols.
cudaError_t LaunchAddGramSquares(cudaStream_t stream, int64_t cols, int64_t pitch, int64_t slices,
                                 const uint16_t* rows, double* partial, double* diagonal);

// rows x cols bfloat16, `pitch` elements apart, to float64 without gaps.
cudaError_t LaunchWidenRows(cudaStream_t stream, int64_t rows, int64_t cols, int64_t pitch,
                            const uint16_t* from, double* to);

}  // namespace quantd::compute
