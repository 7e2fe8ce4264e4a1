#pragma once

#include "absl/status/status.h"
#include "server/store/sqlite.h"

namespace quantd::server::sqlite {

// Creates the tables in a new file, or checks that the file is ours and of a version that this
// program knows (FAILED_PRECONDITION otherwise) and brings an older one up to date.
absl::Status PrepareSchema(Database& database);

}  // namespace quantd::server::sqlite
