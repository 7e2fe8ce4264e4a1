#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

// Numbers as sums of scaled 8-bit digits, whose products tensor cores sum up exactly in 32 bits. A
// fixed-point integer q has digits base 128 in [-64, 63], the last one what is left: q = sum_k
// digit_k 128^k. 8-bit matrices have rows of `pitch` bytes that are zero behind their width. Codes
// are stored C x R. All pointers are to the device.
namespace quantd::compute {

inline constexpr int kDigitBase = 128;
// Digits of what is not an integer: 42 bits of the largest number of its row.
inline constexpr int kFractionDigits = 6;

// largest[c] = the largest magnitude in column c.
cudaError_t LaunchLargestCodes(cudaStream_t stream, int64_t rows, int64_t cols,
                               const int32_t* codes, int* largest);

// Digit k of code (c, r) at to[(k * padded_cols + c) * pitch + r], zeros to padded_cols.
cudaError_t LaunchSplitCodesByColumn(cudaStream_t stream, int64_t rows, int64_t cols,
                                     const int32_t* codes, int digits, int64_t padded_cols,
                                     int64_t pitch, int8_t* to);
// Digit k of code (c, r) at to[(k * padded_rows + r) * pitch + c], zeros to padded_rows.
cudaError_t LaunchSplitCodesByRow(cudaStream_t stream, int64_t rows, int64_t cols,
                                  const int32_t* codes, int digits, int64_t padded_rows,
                                  int64_t pitch, int8_t* to);

// Digit k of weight[r] code(first + i, r) 2^f_i at to[(k * padded_count + i) * pitch + r] for i <
// count, zeros to padded_count; units[i] = 2^-f_i brings the column's largest number, at most
// `largest_weight` largest[c], below 2^41.
cudaError_t LaunchSplitWeightedCodes(cudaStream_t stream, int64_t rows, const int32_t* codes,
                                     const double* weight, double largest_weight,
                                     const int* largest, int64_t first, int64_t count,
                                     int64_t padded_count, int64_t pitch, int8_t* to,
                                     double* units);
// The same of rows [first, first + count) of diag(scale) matrix diag(scale), size x size.
cudaError_t LaunchSplitScaledRows(cudaStream_t stream, int64_t size, const double* matrix,
                                  const double* scale, int64_t first, int64_t count,
                                  int64_t padded_count, int64_t pitch, int8_t* to, double* units);

// gram[first + i, j] (+)= factor units[i] sum_k 128^k products[(k * padded_count + i) * pitch + j]
// for i < count and j <= first + i; gram is size x size.
cudaError_t LaunchCombineGram(cudaStream_t stream, int64_t size, const int32_t* products,
                              const double* units, int64_t first, int64_t count,
                              int64_t padded_count, int64_t pitch, double factor, bool add,
                              double* gram);

// partial[slice, r] += factor sum_i code(first + i, r) units[i] sum_k 128^k
// products[(k * padded_count + i) * pitch + r] over the i < count of each slice.
inline constexpr int64_t kEnergySlices = 16;
cudaError_t LaunchCombineEnergies(cudaStream_t stream, int64_t rows, const int32_t* codes,
                                  const int32_t* products, const double* units, int64_t first,
                                  int64_t count, int64_t padded_count, int64_t pitch, double factor,
                                  double* partial);
// to[r] = the sum over slices.
cudaError_t LaunchSumEnergies(cudaStream_t stream, int64_t rows, const double* partial, double* to);

}  // namespace quantd::compute
