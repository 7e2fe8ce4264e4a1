#pragma once

#include <cstdint>

namespace quantd::server {

// Syncs to disk (of files, directories and the database) that have failed since the process
// started, for the metrics. Thread-safe.
int64_t SyncFailures();
void CountSyncFailure();

}  // namespace quantd::server
