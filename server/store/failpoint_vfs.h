#pragma once

namespace quantd::server::sqlite {

// Name of a VFS whose writes, syncs and deletes pass failpoints ("sqlite.wal.sync" and so on), on
// top of the default one; null, which stands for the default, where no failpoint is armed.
const char* FailpointVfs();

}  // namespace quantd::server::sqlite
