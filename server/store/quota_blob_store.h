#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/strings/string_view.h"
#include "server/store/blob_store.h"

namespace quantd::server {

// Bytes that a tenant may store; 0: no limit. Called from any thread.
using StorageLimit = std::function<int64_t(absl::string_view tenant)>;

// `blobs` where no tenant's bytes grow beyond its limit: a write that would is refused with
// RESOURCE_EXHAUSTED, reason STORAGE_QUOTA, as on a full disk, and changes nothing. Deleting and
// reading go on. Bytes above a limit that was lowered stay.
std::unique_ptr<BlobStore> WithStorageLimit(std::unique_ptr<BlobStore> blobs, StorageLimit limit);

}  // namespace quantd::server
