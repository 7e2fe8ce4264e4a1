#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "compute/backend/cuda/gptq_unit_kernels.h"
#include "compute/formats/format_spec.h"

// The steps of GPTQ (docs/numerics.md, section 8) over whole row-major matrices. A *position* is a
// column's place in the order of processing, from last to first. All launchers queue on `stream`
// and return what launching said.
namespace quantd::compute {

// Lower triangle of the moment by positions, with `added` on its diagonal, and `dead` besides where
// that is 0. arranged: of each position its column.
cudaError_t LaunchArrangeMoment(cudaStream_t stream, int64_t cols, const double* moment,
                                const int* arranged, double added, double dead, double* to);

// K[later, unit] = L[later, unit] L[unit, unit]^-1 in place, for units of one `width` <= 64 that
// fill all `cols` positions.
constexpr int kLargestSplit = 64;
cudaError_t LaunchSplitFactor(cudaStream_t stream, int64_t cols, int width, double* factor);

// to[r, i] = from[r, arranged[i]], and to[r, arranged[i]] = from[r, arranged[i]] + x[r, i].
cudaError_t LaunchArrangeColumns(cudaStream_t stream, int64_t rows, int64_t cols,
                                 const double* from, const int* arranged, double* to);
cudaError_t LaunchAddArranged(cudaStream_t stream, int64_t rows, int64_t cols, const double* from,
                              const int* arranged, const double* x, double* to);
// a - b, `count` elements.
cudaError_t LaunchSubtract(cudaStream_t stream, int64_t count, const double* a, const double* b,
                           double* to);

// to = T L: rows of L (width x width of `ld`, zeros above the diagonal) times a stack of blocks, in
// the order of positions: the columns of the unit or, if reversed, from its last.
cudaError_t LaunchTransformFactor(cudaStream_t stream, int64_t width, int block_size,
                                  const float* tx, const double* factor, int64_t ld, bool reversed,
                                  double* to);
// to[i, j] = from[i, j] / from[j, j] below the diagonal; what is elsewhere stays.
cudaError_t LaunchNormalizeColumns(cudaStream_t stream, int64_t width, const double* from,
                                   int64_t from_ld, double* to);

// A unit's columns [first, first + width) of a matrix of `cols` columns, at the positions
// [begin, begin + width).
struct UnitColumns {
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t width = 0;
  int64_t begin = 0;
  int64_t first = 0;
  const int* inner = nullptr;
};
// to[r, inner[i]] = from[r, begin + i]: rows x width from rows x cols.
cudaError_t LaunchGatherUnit(cudaStream_t stream, const UnitColumns& unit, const double* from,
                             double* to);
// What a unit decodes to (rows x width, by column), and before the transform was taken back, into
// matrices of `cols` columns; its errors target - seen by position, rows of `errors_ld`.
struct UnitResult {
  const double* decoded = nullptr;
  const double* seen = nullptr;  // `decoded` again without a transform
  const double* target = nullptr;
  double* decoded_to = nullptr;
  double* seen_to = nullptr;  // null without a transform
  double* errors = nullptr;
  int64_t errors_ld = 0;
};
cudaError_t LaunchKeepUnit(cudaStream_t stream, const UnitColumns& unit, const UnitResult& result);

// Scales of NVFP4 groups by the divisor that each needs: rows x width / 16.
cudaError_t LaunchDividedScales(cudaStream_t stream, const FormatSpec& format,
                                const ScaleDivisor& divisor, int64_t rows, int64_t width,
                                const double* values, double* scales);

// The positions [begin, end), at most kRoundedColumns of them, of a unit whose scales are set.
constexpr int kRoundedColumns = 32;
struct GptqChunk {
  UnitColumns unit;
  int64_t begin = 0;  // within the unit
  int64_t end = 0;
  const double* values = nullptr;    // rows x width, by column: transformed weights
  const double* feedback = nullptr;  // rows x width, by position: of all later chunks
  const double* coupling = nullptr;  // N, width x width
  FormatSpec format;
  bool negative_zeros = false;
  const double* scales = nullptr;  // of the whole matrix
  uint8_t* codes = nullptr;        // rows x cols, one a byte
  double* decoded = nullptr;       // rows x width, by column; may be `values`
  double* errors = nullptr;        // rows of errors_ld: those of [begin, end)
  int64_t errors_ld = 0;
};
cudaError_t LaunchRoundChunk(cudaStream_t stream, const GptqChunk& chunk);

// Codes, one a byte, to a little-endian stream of `bits` each, row by row.
cudaError_t LaunchPackCodes(cudaStream_t stream, int64_t rows, int64_t cols, int bits,
                            const uint8_t* codes, uint8_t* packed);

}  // namespace quantd::compute
