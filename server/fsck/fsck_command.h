#pragma once

#include <string>

#include "CLI/CLI.hpp"

namespace quantd::server {

struct FsckOptions {
  std::string data_dir = "./data";
  bool repair = false;
  bool json = false;
};

// Adds `quantd fsck` to a command line; the options are filled in when it is parsed.
CLI::App* AddFsckCommand(CLI::App& app, FsckOptions& options);

// Checks, prints what was found, and returns the exit status, as fsck(8): 0 no damage, 1 damage
// that was repaired, 4 damage that is left, 8 the directory could not be checked.
int RunFsck(const FsckOptions& options);

}  // namespace quantd::server
