#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/store/blob_store.h"
#include "server/store/file.h"

namespace quantd::server {

// A BlobStore in a directory, created if missing. The blob "{tenant}/{random}" is the file
// {directory}/{tenant}/{first two digits of random}/{random}; while it is written, its file ends in
// ".partial". The caller sees to it that one process alone uses the directory (data_directory.h).
// `files` must outlive the store.
absl::StatusOr<std::unique_ptr<BlobStore>> OpenLocalBlobStore(
    const std::string& directory, FileSystem& files = PosixFileSystem());

}  // namespace quantd::server
