#pragma once

#include <atomic>

namespace quantd::server {

// Makes SQLite's file operations fail on demand, for databases that are opened after Install().
struct FaultyVfs {
  // Counts down with every sync; the one that reaches 0 fails, and the counter stays there. Below
  // 0: none fails.
  static std::atomic<int> syncs_until_failure;
  // While true, every write fails as on a full disk.
  static std::atomic<bool> disk_full;
  static std::atomic<int> syncs;  // seen so far

  static void Install();
};

}  // namespace quantd::server
