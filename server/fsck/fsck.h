#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace quantd::server {

// Something that is not as a server leaves it.
struct Finding {
  std::string kind;     // stable, UPPER_SNAKE: docs/reliability.md lists them
  std::string subject;  // resource or blob
  std::string what;
  bool garbage = false;  // what a crash leaves and the next start of the server removes; no damage
  std::string remedy;    // what a repair does or did; empty: nothing can be done
  bool repaired = false;
};

struct FsckReport {
  int64_t jobs = 0;
  int64_t statistics = 0;
  int64_t blobs = 0;  // referred to and read
  int64_t bytes = 0;
  std::vector<Finding> findings;
};

// Checks the data directory at `path`: the database's own integrity, every record's invariants,
// every blob's presence, size and digest, partial sums against their sequence numbers, and what
// nothing refers to.
//
// `repair` removes garbage, moves damaged files to {path}/quarantine, and brings the records in
// line: weights that unfinished layers need and partial uploads start over, layers whose result is
// damaged fail with DATA_LOSS, statistics lose what is damaged and are open again. Nothing is
// removed while the database itself is damaged.
//
// NOT_FOUND where there is no database; FAILED_PRECONDITION while a server holds the directory;
// other errors where it cannot be read.
absl::StatusOr<FsckReport> CheckDataDirectory(const std::string& path, bool repair);

}  // namespace quantd::server
