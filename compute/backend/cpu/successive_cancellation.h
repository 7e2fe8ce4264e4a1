#pragma once

#include <cstdint>
#include <vector>

#include "compute/backend/backend.h"
#include "compute/backend/cpu/worker_pool.h"

namespace quantd::compute {

// Successive interference cancellation with LMMSE shrinkage (WaterSIC, "ZSIC"): from the last
// column of Y (R x C) to the first
//   z = round(Y_i / c), gamma_i = <z, Y_i> / (c <z, z>) (0 for z = 0), Y -= gamma_i c / L_ii z L[i,
//   :]
// All matrices are stored transposed, C x R, so that a column is contiguous.
// `lower`: L, cols x cols row-major. `target`: Y, overwritten by gamma_i c / L_ii z. `codes`: z.
// `gamma`: cols. The recursion halves the columns, so all but the last few products are matrix
// products; the same bits on any number of threads. False where a code leaves +-2^30, which a
// spacing that is far too small gives, and where `stream` is cancelled meanwhile; nothing else is
// then defined.
bool CancelSuccessively(WorkerPool& pool, int64_t rows, int64_t cols, const double* lower,
                        double spacing, double* target, int32_t* codes, double* gamma,
                        const Stream* stream = nullptr);

}  // namespace quantd::compute
