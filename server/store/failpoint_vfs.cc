#include "server/store/failpoint_vfs.h"

#include <sqlite3.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "server/store/failpoint.h"
#include "server/store/hooked_vfs.h"

namespace quantd::server::sqlite {

#ifndef QUANTD_FAILPOINTS

const char* FailpointVfs() { return nullptr; }

#else

namespace {

constexpr char kName[] = "quantd-failpoints";

// A result code for what stands at the failpoints of `operation` on a file of `kind`, between which
// `run` is run.
int Guard(int kind, absl::string_view operation, int failure, VfsHooks::Operation run) {
  if (kind != SQLITE_OPEN_MAIN_DB && kind != SQLITE_OPEN_WAL) return run();
  int code = SQLITE_OK;
  const absl::Status status = AtFailpoint(
      absl::StrCat(kind == SQLITE_OPEN_WAL ? "sqlite.wal." : "sqlite.database.", operation), [&] {
        code = run();
        return code == SQLITE_OK ? absl::OkStatus() : absl::UnknownError("");
      });
  if (code != SQLITE_OK || status.ok()) return code;
  return absl::IsResourceExhausted(status) && operation == "write" ? SQLITE_FULL : failure;
}

int Write(int kind, VfsHooks::Operation write) {
  return Guard(kind, "write", SQLITE_IOERR_WRITE, write);
}
int Sync(int kind, VfsHooks::Operation sync) {
  return Guard(kind, "sync", SQLITE_IOERR_FSYNC, sync);
}

int Remove(VfsHooks::Operation remove) {
  int code = SQLITE_OK;
  const absl::Status status = AtFailpoint("sqlite.delete", [&] {
    code = remove();
    return code == SQLITE_OK ? absl::OkStatus() : absl::UnknownError("");
  });
  return code != SQLITE_OK || status.ok() ? code : SQLITE_IOERR_DELETE;
}

}  // namespace

const char* FailpointVfs() {
  if (!FailpointsArmed()) return nullptr;
  static const bool registered = RegisterHookedVfs(
      kName, {.write = Write, .sync = Sync, .remove = Remove}, /*make_default=*/false);
  return registered ? kName : nullptr;
}

#endif  // QUANTD_FAILPOINTS

}  // namespace quantd::server::sqlite
