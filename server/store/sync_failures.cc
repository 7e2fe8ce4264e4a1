#include "server/store/sync_failures.h"

#include <atomic>

namespace quantd::server {
namespace {

std::atomic<int64_t> failures{0};

}  // namespace

int64_t SyncFailures() { return failures; }

void CountSyncFailure() { ++failures; }

}  // namespace quantd::server
