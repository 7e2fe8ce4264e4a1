#include "tests/server/store/faulty_vfs.h"

#include <sqlite3.h>

#include "server/store/hooked_vfs.h"

namespace quantd::server {

std::atomic<int> FaultyVfs::syncs_until_failure{-1};
std::atomic<bool> FaultyVfs::disk_full{false};
std::atomic<int> FaultyVfs::syncs{0};

namespace {

using sqlite::VfsHooks;

int Write(int /*kind*/, VfsHooks::Operation write) {
  return FaultyVfs::disk_full ? SQLITE_FULL : write();
}

int Sync(int /*kind*/, VfsHooks::Operation sync) {
  ++FaultyVfs::syncs;
  int left = FaultyVfs::syncs_until_failure;
  if (left > 0) FaultyVfs::syncs_until_failure = --left;
  return left == 0 ? SQLITE_IOERR_FSYNC : sync();
}

int Remove(VfsHooks::Operation remove) { return remove(); }

}  // namespace

void FaultyVfs::Install() {
  [[maybe_unused]] static const bool installed = sqlite::RegisterHookedVfs(
      "faulty", {.write = Write, .sync = Sync, .remove = Remove}, /*make_default=*/true);
}

}  // namespace quantd::server
