#pragma once

#include <vector>

#include "prometheus/metric_family.h"

namespace quantd::server {

// Memory, processor time, open files and start time of this process under the names that every
// Prometheus client uses (process_*), read from /proc now. A figure that cannot be read is left
// out.
std::vector<prometheus::MetricFamily> ProcessMetrics();

}  // namespace quantd::server
