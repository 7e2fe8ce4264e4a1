#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "compute/formats/format_spec.h"

// Rounding whole row-major matrices to a number format. All launchers queue on `stream` and return
// what launching said.
namespace quantd::compute {

// Where the parts of a rounded rows x cols matrix go; null: nowhere. `decoded` may be the input.
struct RoundedMatrix {
  double* decoded = nullptr;
  uint8_t* codes = nullptr;   // packed: rows x cols * bits / 8
  uint8_t* scales = nullptr;  // as stored
};

// *amax = the largest magnitude, one double on the device.
cudaError_t LaunchAmax(cudaStream_t stream, int64_t count, const double* values, double* amax);

// Scales from the values themselves, codes, and what they decode to. `global` is the divisor of
// stored scales (1 without one). `scratch`: ScaleCount doubles where NeedsScaleScratch, else null.
cudaError_t LaunchRound(cudaStream_t stream, const FormatSpec& spec, double global, int64_t rows,
                        int64_t cols, const double* values, double* scratch,
                        const RoundedMatrix& to);
int64_t ScaleCount(const FormatSpec& spec, int64_t rows, int64_t cols);
bool NeedsScaleScratch(const FormatSpec& spec, int64_t cols);

// The parts of it apart: scales as the values that they decode to, for every rule but kNvfp4Mse,
// and what is stored of them.
cudaError_t LaunchGroupScales(cudaStream_t stream, const FormatSpec& spec, double global,
                              int64_t rows, int64_t cols, const double* values, double* scales);
cudaError_t LaunchStoreScales(cudaStream_t stream, const FormatSpec& spec, double global,
                              int64_t count, const double* scales, uint8_t* to);

}  // namespace quantd::compute
