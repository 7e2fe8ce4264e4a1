#include "server/store/failpoint_vfs.h"

#include <sqlite3.h>

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/store/failpoint.h"

namespace quantd::server::sqlite {

#ifndef QUANTD_FAILPOINTS

const char* FailpointVfs() { return nullptr; }

#else

namespace {

constexpr char kName[] = "quantd-failpoints";

// The real file lies behind this one in the same allocation.
struct File {
  sqlite3_file base;
  int kind;  // SQLITE_OPEN_MAIN_DB, SQLITE_OPEN_WAL or another
  sqlite3_file* real() { return reinterpret_cast<sqlite3_file*>(this + 1); }
};

File* Ours(sqlite3_file* file) { return reinterpret_cast<File*>(file); }
sqlite3_file* Real(sqlite3_file* file) { return Ours(file)->real(); }

// A result code for what stands at the failpoints of `operation`, between which `run` is run.
template <typename Run>
int Guard(sqlite3_file* file, absl::string_view operation, int failure, Run run) {
  const int kind = Ours(file)->kind;
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

int Close(sqlite3_file* f) { return Real(f)->pMethods->xClose(Real(f)); }
int Read(sqlite3_file* f, void* out, int n, sqlite3_int64 at) {
  return Real(f)->pMethods->xRead(Real(f), out, n, at);
}
int Write(sqlite3_file* f, const void* data, int n, sqlite3_int64 at) {
  return Guard(f, "write", SQLITE_IOERR_WRITE,
               [&] { return Real(f)->pMethods->xWrite(Real(f), data, n, at); });
}
int Truncate(sqlite3_file* f, sqlite3_int64 size) {
  return Real(f)->pMethods->xTruncate(Real(f), size);
}
int Sync(sqlite3_file* f, int flags) {
  return Guard(f, "sync", SQLITE_IOERR_FSYNC,
               [&] { return Real(f)->pMethods->xSync(Real(f), flags); });
}
int FileSize(sqlite3_file* f, sqlite3_int64* size) {
  return Real(f)->pMethods->xFileSize(Real(f), size);
}
int Lock(sqlite3_file* f, int level) { return Real(f)->pMethods->xLock(Real(f), level); }
int Unlock(sqlite3_file* f, int level) { return Real(f)->pMethods->xUnlock(Real(f), level); }
int CheckReservedLock(sqlite3_file* f, int* out) {
  return Real(f)->pMethods->xCheckReservedLock(Real(f), out);
}
int FileControl(sqlite3_file* f, int op, void* arg) {
  return Real(f)->pMethods->xFileControl(Real(f), op, arg);
}
int SectorSize(sqlite3_file* f) { return Real(f)->pMethods->xSectorSize(Real(f)); }
int DeviceCharacteristics(sqlite3_file* f) {
  return Real(f)->pMethods->xDeviceCharacteristics(Real(f));
}
int ShmMap(sqlite3_file* f, int page, int size, int extend, void volatile** out) {
  return Real(f)->pMethods->xShmMap(Real(f), page, size, extend, out);
}
int ShmLock(sqlite3_file* f, int offset, int n, int flags) {
  return Real(f)->pMethods->xShmLock(Real(f), offset, n, flags);
}
void ShmBarrier(sqlite3_file* f) { Real(f)->pMethods->xShmBarrier(Real(f)); }
int ShmUnmap(sqlite3_file* f, int remove) { return Real(f)->pMethods->xShmUnmap(Real(f), remove); }

sqlite3_vfs* real_vfs = nullptr;

// Version 2 of the methods: without memory mapping, which would go around the failpoints.
int Open(sqlite3_vfs*, const char* name, sqlite3_file* file, int flags, int* out_flags) {
  static const sqlite3_io_methods methods = {2,
                                             Close,
                                             Read,
                                             Write,
                                             Truncate,
                                             Sync,
                                             FileSize,
                                             Lock,
                                             Unlock,
                                             CheckReservedLock,
                                             FileControl,
                                             SectorSize,
                                             DeviceCharacteristics,
                                             ShmMap,
                                             ShmLock,
                                             ShmBarrier,
                                             ShmUnmap,
                                             nullptr,
                                             nullptr};
  const int code = real_vfs->xOpen(real_vfs, name, Real(file), flags, out_flags);
  Ours(file)->kind = flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_WAL);
  file->pMethods = Real(file)->pMethods == nullptr ? nullptr : &methods;
  return code;
}

int Delete(sqlite3_vfs*, const char* name, int sync_directory) {
  int code = SQLITE_OK;
  const absl::Status status = AtFailpoint("sqlite.delete", [&] {
    code = real_vfs->xDelete(real_vfs, name, sync_directory);
    return code == SQLITE_OK ? absl::OkStatus() : absl::UnknownError("");
  });
  return code != SQLITE_OK || status.ok() ? code : SQLITE_IOERR_DELETE;
}

bool Register() {
  static sqlite3_vfs ours;
  real_vfs = sqlite3_vfs_find(nullptr);
  ours = *real_vfs;  // the rest works on names alone
  ours.zName = kName;
  ours.szOsFile = static_cast<int>(sizeof(File)) + real_vfs->szOsFile;
  ours.xOpen = Open;
  ours.xDelete = Delete;
  return sqlite3_vfs_register(&ours, /*makeDflt=*/0) == SQLITE_OK;
}

}  // namespace

const char* FailpointVfs() {
  if (!FailpointsArmed()) return nullptr;
  static const bool registered = Register();
  return registered ? kName : nullptr;
}

#endif  // QUANTD_FAILPOINTS

}  // namespace quantd::server::sqlite
