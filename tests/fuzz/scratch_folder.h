#pragma once

#include <stdlib.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

namespace quantd::fuzz {

// A folder below $TMPDIR for the process's life; without that in memory, where the machine has such
// a file system: what a fuzzer stores is not worth a disk's time.
class ScratchFolder {
 public:
  ScratchFolder() {
    const char* given = std::getenv("TMPDIR");
    std::error_code none;
    path_ = given != nullptr                                  ? given
            : std::filesystem::is_directory("/dev/shm", none) ? "/dev/shm"
                                                              : "/tmp";
    path_ += "/quantd_fuzz_XXXXXX";
    if (::mkdtemp(path_.data()) == nullptr) {
      std::perror(path_.c_str());
      std::abort();
    }
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace quantd::fuzz
