#pragma once

#include "absl/functional/function_ref.h"

namespace quantd::server::sqlite {

// What stands around the operations of SQLite's files that change something. Each is given the real
// one and returns a result code of SQLite. `kind`: SQLITE_OPEN_MAIN_DB, SQLITE_OPEN_WAL or 0.
struct VfsHooks {
  using Operation = absl::FunctionRef<int()>;
  int (*write)(int kind, Operation write);
  int (*sync)(int kind, Operation sync);
  int (*remove)(Operation remove);
};

// Registers a VFS that works on top of the default one, without memory mapping, which would go
// around the hooks; for good. Whether SQLite took it.
bool RegisterHookedVfs(const char* name, const VfsHooks& hooks, bool make_default);

}  // namespace quantd::server::sqlite
