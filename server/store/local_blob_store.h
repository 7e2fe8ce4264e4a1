#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/store/blob_store.h"
#include "server/store/file.h"

namespace quantd::server {

// A BlobStore in a directory, created if missing. The blob "{tenant}/{random}" is the file
// {directory}/{tenant}/{first two digits of random}/{random}; while it is written, its file ends in
// ".partial". The caller sees to it that one process alone uses the directory (data_directory.h).
// `files` must outlive the store.
absl::StatusOr<std::unique_ptr<BlobStore>> OpenLocalBlobStore(
    const std::string& directory, FileSystem& files = PosixFileSystem());

// The file of a blob in that directory, or its staging file. INVALID_ARGUMENT for a name that no
// store made.
absl::StatusOr<std::string> BlobFile(const std::string& directory, absl::string_view name,
                                     bool staging);

}  // namespace quantd::server
