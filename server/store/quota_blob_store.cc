#include "server/store/quota_blob_store.h"

#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "server/errors/error.h"

namespace quantd::server {
namespace {

std::string TenantOf(absl::string_view blob) { return std::string(blob.substr(0, blob.find('/'))); }

// Lets writes through that fit. Thread-safe.
class Gate {
 public:
  Gate(BlobStore& blobs, StorageLimit limit) : blobs_(blobs), limit_(std::move(limit)) {}

  absl::Status Check(const std::string& tenant, int64_t bytes) {
    std::lock_guard lock(mutex_);
    return CheckLocked(tenant, bytes, limit_(tenant));
  }

  // Runs `write`, which adds `bytes`, if they fit beside those of the writes that run.
  absl::Status Write(const std::string& tenant, int64_t bytes,
                     absl::FunctionRef<absl::Status()> write) {
    const int64_t limit = limit_(tenant);
    if (limit == 0) return write();
    {
      std::lock_guard lock(mutex_);
      if (absl::Status status = CheckLocked(tenant, bytes, limit); !status.ok()) return status;
      writing_[tenant] += bytes;
    }
    absl::Status status = write();
    std::lock_guard lock(mutex_);
    const auto writing = writing_.find(tenant);
    writing->second -= bytes;
    if (writing->second == 0) writing_.erase(writing);
    return status;
  }

 private:
  absl::Status CheckLocked(const std::string& tenant, int64_t bytes, int64_t limit) {
    if (limit == 0) return absl::OkStatus();
    auto all = blobs_.StoredBytes();
    if (!all.ok()) return all.status();
    const int64_t stored = (*all)[tenant];
    const auto writing = writing_.find(tenant);
    const int64_t taken = stored + (writing == writing_.end() ? 0 : writing->second);
    if (bytes <= limit - taken) return absl::OkStatus();
    return QuotaExceeded(
        "STORAGE_QUOTA", absl::StrCat("tenants/", tenant),
        absl::StrCat(taken, " bytes are stored, ", bytes, " more were asked for, the limit is ",
                     limit, " (max_stored_bytes); delete jobs or statistics first"),
        /*retry_after=*/absl::ZeroDuration());
  }

  BlobStore& blobs_;
  const StorageLimit limit_;
  std::mutex mutex_;
  std::map<std::string, int64_t> writing_;  // not in the store's own count yet
};

class QuotaWriter final : public BlobWriter {
 public:
  QuotaWriter(Gate& gate, std::unique_ptr<BlobWriter> writer)
      : gate_(gate), writer_(std::move(writer)), tenant_(TenantOf(writer_->name())) {}

  const std::string& name() const override { return writer_->name(); }
  int64_t size() const override { return writer_->size(); }
  absl::Status Append(absl::Span<const std::byte> data) override {
    return gate_.Write(tenant_, static_cast<int64_t>(data.size()),
                       [&] { return writer_->Append(data); });
  }
  absl::Status Sync() override { return writer_->Sync(); }
  absl::StatusOr<BlobRef> Commit(absl::string_view expected_sha256) override {
    return writer_->Commit(expected_sha256);
  }

 private:
  Gate& gate_;
  const std::unique_ptr<BlobWriter> writer_;
  const std::string tenant_;
};

class QuotaBlobStore final : public BlobStore {
 public:
  QuotaBlobStore(std::unique_ptr<BlobStore> blobs, StorageLimit limit)
      : blobs_(std::move(blobs)), gate_(*blobs_, std::move(limit)) {}

  absl::StatusOr<std::unique_ptr<BlobWriter>> NewBlob(absl::string_view tenant) override {
    return Wrap(blobs_->NewBlob(tenant));
  }
  absl::StatusOr<std::unique_ptr<BlobWriter>> ResumeBlob(absl::string_view name,
                                                         int64_t committed) override {
    return Wrap(blobs_->ResumeBlob(name, committed));
  }
  absl::StatusOr<BlobRef> Put(absl::string_view tenant, absl::string_view bytes) override {
    absl::StatusOr<BlobRef> blob;
    absl::Status status = gate_.Write(std::string(tenant), static_cast<int64_t>(bytes.size()), [&] {
      blob = blobs_->Put(tenant, bytes);
      return blob.status();
    });
    if (!status.ok()) return status;
    return blob;
  }
  absl::StatusOr<std::unique_ptr<BlobReader>> Open(const BlobRef& blob) override {
    return blobs_->Open(blob);
  }
  absl::StatusOr<std::string> ReadAll(const BlobRef& blob) override {
    return blobs_->ReadAll(blob);
  }
  absl::StatusOr<BlobState> Describe(absl::string_view name) override {
    return blobs_->Describe(name);
  }
  absl::Status CheckRoom(absl::string_view tenant, int64_t bytes) override {
    return gate_.Check(std::string(tenant), bytes);
  }
  absl::Status Delete(absl::string_view name) override { return blobs_->Delete(name); }
  absl::StatusOr<std::vector<std::string>> List() override { return blobs_->List(); }
  absl::StatusOr<std::map<std::string, int64_t>> StoredBytes() override {
    return blobs_->StoredBytes();
  }

 private:
  absl::StatusOr<std::unique_ptr<BlobWriter>> Wrap(
      absl::StatusOr<std::unique_ptr<BlobWriter>> writer) {
    if (!writer.ok()) return writer;
    return std::make_unique<QuotaWriter>(gate_, *std::move(writer));
  }

  const std::unique_ptr<BlobStore> blobs_;
  Gate gate_;
};

}  // namespace

std::unique_ptr<BlobStore> WithStorageLimit(std::unique_ptr<BlobStore> blobs, StorageLimit limit) {
  return std::make_unique<QuotaBlobStore>(std::move(blobs), std::move(limit));
}

}  // namespace quantd::server
