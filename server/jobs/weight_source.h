#pragma once

#include "absl/status/status.h"
#include "server/store/job_store.h"

namespace quantd::server {

// Gives every layer of a new job that names another one in `weight_of` that layer's weight. Layers
// then share a blob, which the store keeps as long as one of them has it. INVALID_ARGUMENT for
// another shape or dtype, NOT_FOUND, FAILED_PRECONDITION for a source that is not complete; each
// names the field.
absl::Status TakeWeights(JobStore& jobs, JobRecord& job);

}  // namespace quantd::server
