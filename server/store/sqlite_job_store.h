#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/store/job_store.h"

namespace quantd::server {

struct SqliteJobStoreOptions {
  int64_t max_bytes = 0;  // of the database file; at it RESOURCE_EXHAUSTED. 0: as the disk allows
};

// A JobStore in one SQLite file at `path`, created if missing, WAL mode, synchronous=FULL: what
// returned OK survives a power failure. One connection behind a mutex. After a failed fsync the
// store refuses everything with INTERNAL until it is opened again: what reached the disk is
// unknown. Errors of opening: FAILED_PRECONDITION for a file of a newer version or of another
// program, DATA_LOSS for a damaged one.
absl::StatusOr<std::unique_ptr<JobStore>> OpenSqliteJobStore(const std::string& path,
                                                             SqliteJobStoreOptions options = {});

}  // namespace quantd::server
