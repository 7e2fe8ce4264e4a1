#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "server/store/records.h"

namespace quantd::server {

// Appends to a staging file and turns it into an immutable blob. Used by one thread at a time.
// After an error that is not RESOURCE_EXHAUSTED the writer refuses everything: what a failed fsync
// left behind is unknown, so nothing of it is ever acknowledged.
class BlobWriter {
 public:
  virtual ~BlobWriter() = default;
  virtual const std::string& name() const = 0;
  virtual int64_t size() const = 0;  // bytes appended
  // RESOURCE_EXHAUSTED on a full disk: the file keeps its size from before the call.
  virtual absl::Status Append(absl::Span<const std::byte> data) = 0;
  // fdatasync: everything appended is durable afterwards.
  virtual absl::Status Sync() = 0;
  // Verifies SHA-256 of what is on disk against `expected_sha256` (32 bytes; empty: just computes),
  // then fsync, rename, fsync of the directory. DATA_LOSS on a mismatch; the staging file stays
  // until its owner, having forgotten it, deletes it. The writer is done afterwards.
  virtual absl::StatusOr<BlobRef> Commit(absl::string_view expected_sha256) = 0;
};

// Random access to a committed blob. Thread-safe.
class BlobReader {
 public:
  virtual ~BlobReader() = default;
  virtual int64_t size() const = 0;
  // Fills `out` from `offset`; OUT_OF_RANGE past the end.
  virtual absl::Status Read(int64_t offset, absl::Span<std::byte> out) const = 0;
};

// A blob or staging file as it is now.
struct BlobState {
  bool committed = false;
  int64_t size = 0;
  absl::Time written;  // the last time
};

// Immutable byte strings, each verified against its SHA-256 when it is read. Names are made by the
// store ("{tenant}/{random}"), never by callers. Thread-safe.
class BlobStore {
 public:
  virtual ~BlobStore() = default;
  virtual absl::StatusOr<std::unique_ptr<BlobWriter>> NewBlob(absl::string_view tenant) = 0;
  // Continues a staging file whose first `committed` bytes are durable: the rest is cut off. A blob
  // that was committed but that no record refers to yet becomes a staging file again.
  // DATA_LOSS if it is shorter or missing; with `committed` 0 a missing one is made.
  virtual absl::StatusOr<std::unique_ptr<BlobWriter>> ResumeBlob(absl::string_view name,
                                                                 int64_t committed) = 0;
  // Writes and commits in one step.
  virtual absl::StatusOr<BlobRef> Put(absl::string_view tenant, absl::string_view bytes) = 0;
  // Verifies size and digest first: DATA_LOSS names the blob.
  virtual absl::StatusOr<std::unique_ptr<BlobReader>> Open(const BlobRef& blob) = 0;
  virtual absl::StatusOr<std::string> ReadAll(const BlobRef& blob) = 0;
  // NOT_FOUND if there is no such blob or staging file.
  virtual absl::StatusOr<BlobState> Describe(absl::string_view name) = 0;
  // RESOURCE_EXHAUSTED where the tenant may not store so many more bytes. What is written later is
  // checked again: this is for refusing before anything is stored.
  virtual absl::Status CheckRoom(absl::string_view tenant, int64_t bytes) = 0;
  // Removes a blob or staging file; OK if it is not there.
  virtual absl::Status Delete(absl::string_view name) = 0;
  // Every blob and staging file.
  virtual absl::StatusOr<std::vector<std::string>> List() = 0;
  // Bytes of all blobs and staging files, by tenant. Counted along: cheap.
  virtual absl::StatusOr<std::map<std::string, int64_t>> StoredBytes() = 0;
};

}  // namespace quantd::server
