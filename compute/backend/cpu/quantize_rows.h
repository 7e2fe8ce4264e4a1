#pragma once

#include <cstdint>

#include "compute/backend/cpu/worker_pool.h"
#include "compute/formats/number_format.h"

namespace quantd::compute {

// FakeQuantize of compute/formats/number_format.h, over the pool: the same values.
void ParallelFakeQuantize(WorkerPool& pool, const NumberFormat& format, int64_t rows, int64_t cols,
                          double* values);

// The largest magnitude.
double MaxMagnitude(WorkerPool& pool, const double* values, int64_t count);

// Quantizes row-major `values` in place to what they decode to, and where not null writes codes
// (one byte an element) and scales. `rows` starts at a multiple of the format's grid.
void QuantizeRows(const NumberFormat& format, std::optional<float> global, int64_t rows,
                  int64_t cols, double* values, uint8_t* codes, double* scales);

}  // namespace quantd::compute
