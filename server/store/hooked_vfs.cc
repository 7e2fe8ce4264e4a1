#include "server/store/hooked_vfs.h"

#include <sqlite3.h>

namespace quantd::server::sqlite {
namespace {

struct HookedVfs {
  sqlite3_vfs base;
  sqlite3_vfs* real;
  VfsHooks hooks;
};

// The real file lies behind this one in the same allocation.
struct HookedFile {
  sqlite3_file base;
  const VfsHooks* hooks;
  int kind;
  sqlite3_file* real() { return reinterpret_cast<sqlite3_file*>(this + 1); }
};

HookedVfs* Ours(sqlite3_vfs* vfs) { return reinterpret_cast<HookedVfs*>(vfs); }
HookedFile* Ours(sqlite3_file* file) { return reinterpret_cast<HookedFile*>(file); }
sqlite3_file* Real(sqlite3_file* file) { return Ours(file)->real(); }

int Close(sqlite3_file* f) { return Real(f)->pMethods->xClose(Real(f)); }
int Read(sqlite3_file* f, void* out, int n, sqlite3_int64 at) {
  return Real(f)->pMethods->xRead(Real(f), out, n, at);
}
int Write(sqlite3_file* f, const void* data, int n, sqlite3_int64 at) {
  return Ours(f)->hooks->write(Ours(f)->kind,
                               [&] { return Real(f)->pMethods->xWrite(Real(f), data, n, at); });
}
int Truncate(sqlite3_file* f, sqlite3_int64 size) {
  return Real(f)->pMethods->xTruncate(Real(f), size);
}
int Sync(sqlite3_file* f, int flags) {
  return Ours(f)->hooks->sync(Ours(f)->kind,
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

int Open(sqlite3_vfs* vfs, const char* name, sqlite3_file* file, int flags, int* out_flags) {
  static const sqlite3_io_methods methods = {2,  // without memory mapping
                                             Close,       Read,       Write,
                                             Truncate,    Sync,       FileSize,
                                             Lock,        Unlock,     CheckReservedLock,
                                             FileControl, SectorSize, DeviceCharacteristics,
                                             ShmMap,      ShmLock,    ShmBarrier,
                                             ShmUnmap,    nullptr,    nullptr};
  sqlite3_vfs* const real = Ours(vfs)->real;
  const int code = real->xOpen(real, name, Real(file), flags, out_flags);
  Ours(file)->hooks = &Ours(vfs)->hooks;
  Ours(file)->kind = flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_WAL);
  file->pMethods = Real(file)->pMethods == nullptr ? nullptr : &methods;
  return code;
}

int Delete(sqlite3_vfs* vfs, const char* name, int sync_directory) {
  sqlite3_vfs* const real = Ours(vfs)->real;
  return Ours(vfs)->hooks.remove([&] { return real->xDelete(real, name, sync_directory); });
}

}  // namespace

bool RegisterHookedVfs(const char* name, const VfsHooks& hooks, bool make_default) {
  sqlite3_vfs* const real = sqlite3_vfs_find(nullptr);
  auto* const ours = new HookedVfs{.base = *real, .real = real, .hooks = hooks};  // SQLite's now
  // All but these work on names alone.
  ours->base.zName = name;
  ours->base.szOsFile = static_cast<int>(sizeof(HookedFile)) + real->szOsFile;
  ours->base.xOpen = Open;
  ours->base.xDelete = Delete;
  return sqlite3_vfs_register(&ours->base, make_default ? 1 : 0) == SQLITE_OK;
}

}  // namespace quantd::server::sqlite
