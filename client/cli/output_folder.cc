#include "client/cli/output_folder.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace quantd::cli {

absl::Status CreateOutputFolder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--out ", path, ": expected a folder that can be made: ", error.message()));
}

}  // namespace quantd::cli
