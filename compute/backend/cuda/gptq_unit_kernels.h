#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "compute/formats/format_spec.h"

namespace quantd::compute {

// How scales are divided when they are stored, as GptqGlobal says: by `global`, or by
// `small_global` where the group's largest magnitude is above `outgrown` or below `small`.
struct ScaleDivisor {
  double global = 1.0;
  double small_global = 1.0;
  double outgrown = 0.0;
  double small = 0.0;
  bool follows_amax = false;
};

// One unit of GPTQ (docs/numerics.md, section 8) in all rows, in one launch: W' = the updated
// weights is transformed, scaled and rounded with the feedback inside the unit, and its error goes
// to the rest of the panel. Row-major matrices; `cols` is the row stride where nothing else is
// said.
struct GptqUnitRows {
  int64_t rows = 0;
  int64_t cols = 0;
  int width = 0;               // of the unit: 16 or 32
  int64_t begin = 0;           // its first position
  int64_t first = 0;           // its first column
  const int* inner = nullptr;  // of each position: its column less `first`
  // The panel's positions are [panel_begin, ...); those before `begin` are updated.
  int64_t panel_begin = 0;
  int64_t panel_width = 0;

  int block_size = 0;          // 0: no transform
  const double* tw = nullptr;  // of the unit's first block
  const float* tx = nullptr;
  const double* coupling = nullptr;  // N, width x width
  const double* factor = nullptr;    // K by positions, cols x cols

  FormatSpec format;  // of E2M1 elements
  ScaleDivisor divisor;
  bool negative_zeros = false;

  const double* target = nullptr;  // rows x cols, by columns
  double* updated = nullptr;       // rows x cols, by positions
  double* errors = nullptr;        // rows x panel_width, by positions of the panel
  uint8_t* codes = nullptr;        // rows x cols, one a byte
  double* scales = nullptr;        // rows x cols / group
  double* decoded = nullptr;       // rows x cols
  double* dequantized = nullptr;   // rows x cols; not written without a transform
};
bool CanRoundUnitRows(const FormatSpec& format, int64_t width);
cudaError_t LaunchGptqUnitRows(cudaStream_t stream, const GptqUnitRows& unit);

}  // namespace quantd::compute
