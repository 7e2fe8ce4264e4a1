#include "server/store/local_blob_store.h"

#include <openssl/rand.h>

#include <algorithm>
#include <functional>
#include <map>
#include <mutex>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "compute/tensor/checksum.h"
#include "server/store/failpoint.h"
#include "server/store/sync_failures.h"

namespace quantd::server {
namespace {

constexpr size_t kRandomBytes = 16;
constexpr size_t kFanOutDigits = 2;
constexpr size_t kMaxTenantBytes = 63;
constexpr int64_t kReadBytes = int64_t{1} << 20;
constexpr absl::string_view kStagingSuffix = ".partial";

bool IsTenant(absl::string_view tenant) {
  return !tenant.empty() && tenant.size() <= kMaxTenantBytes &&
         std::all_of(tenant.begin(), tenant.end(), [](char c) {
           return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-';
         });
}

bool IsRandomPart(absl::string_view random) {
  return random.size() == 2 * kRandomBytes && std::all_of(random.begin(), random.end(), [](char c) {
           return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f');
         });
}

// Where a blob lives. Made from a checked name only, so that no name leads out of the directory.
struct BlobPath {
  std::string name;
  std::string tenant;
  std::string tenant_directory;
  std::string directory;
  std::string committed;
  std::string staging;
};

absl::StatusOr<BlobPath> PathOf(const std::string& root, absl::string_view name) {
  const size_t slash = name.find('/');
  const absl::string_view tenant = name.substr(0, slash);
  const absl::string_view random =
      slash == absl::string_view::npos ? absl::string_view() : name.substr(slash + 1);
  if (!IsTenant(tenant) || !IsRandomPart(random)) {
    return absl::InvalidArgumentError(absl::StrCat("blob name: expected {tenant}/{",
                                                   2 * kRandomBytes, " hex digits}, got '",
                                                   absl::CHexEscape(name), "'"));
  }
  BlobPath path;
  path.name = std::string(name);
  path.tenant = std::string(tenant);
  path.tenant_directory = absl::StrCat(root, "/", tenant);
  path.directory = absl::StrCat(path.tenant_directory, "/", random.substr(0, kFanOutDigits));
  path.committed = absl::StrCat(path.directory, "/", random);
  path.staging = absl::StrCat(path.committed, kStagingSuffix);
  return path;
}

absl::Status Annotate(const absl::Status& status, absl::string_view name) {
  return absl::Status(status.code(), absl::StrCat("blob ", name, ": ", status.message()));
}

// What a sync came to. Counted here, around failpoints and files of any kind, so that no way in
// which a sync fails is missed.
absl::Status Synced(absl::Status status) {
  if (!status.ok()) CountSyncFailure();
  return status;
}

absl::Status DataLoss(absl::string_view name, absl::string_view what) {
  return absl::DataLossError(absl::StrCat("blob ", name, " is damaged: ", what));
}

// SHA-256 of the first `size` bytes of a file.
absl::StatusOr<std::string> DigestOf(const File& file, int64_t size) {
  compute::Sha256 sha;
  std::vector<std::byte> buffer(static_cast<size_t>(std::min(size, kReadBytes)));
  for (int64_t offset = 0; offset < size; offset += kReadBytes) {
    const auto piece = absl::MakeSpan(buffer).first(std::min(size - offset, kReadBytes));
    if (auto s = file.ReadAt(offset, piece); !s.ok()) return s;
    sha.Update(piece);
  }
  return compute::ToBytes(sha.Digest());
}

// Stored bytes by tenant, counted along. Thread-safe.
class Ledger {
 public:
  void Add(absl::string_view tenant, int64_t bytes) {
    std::lock_guard lock(mutex_);
    const auto entry = bytes_.try_emplace(std::string(tenant)).first;
    entry->second += bytes;
    if (entry->second <= 0) bytes_.erase(entry);
  }
  std::map<std::string, int64_t> bytes() const {
    std::lock_guard lock(mutex_);
    return bytes_;
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::string, int64_t> bytes_;
};

class LocalBlobWriter final : public BlobWriter {
 public:
  // `directory_synced`: the file's entry in its directory is durable.
  LocalBlobWriter(FileSystem& files, Ledger& ledger, BlobPath path, std::unique_ptr<File> file,
                  int64_t size, bool directory_synced)
      : files_(files),
        ledger_(ledger),
        path_(std::move(path)),
        file_(std::move(file)),
        size_(size),
        directory_synced_(directory_synced) {}

  const std::string& name() const override { return path_.name; }
  int64_t size() const override { return size_; }
  absl::Status Append(absl::Span<const std::byte> data) override;
  absl::Status Sync() override;
  absl::StatusOr<BlobRef> Commit(absl::string_view expected_sha256) override;

 private:
  absl::Status Refuse(absl::Status why);
  // After a write that failed: counts what it left, if that cannot be cut off.
  absl::Status RefuseRest(const absl::Status& why);
  absl::Status Verify(absl::string_view expected_sha256, std::string& digest);

  FileSystem& files_;
  Ledger& ledger_;
  const BlobPath path_;
  std::unique_ptr<File> file_;
  int64_t size_;
  bool directory_synced_;
  absl::Status refused_;  // why nothing is accepted any more
};

absl::Status LocalBlobWriter::Refuse(absl::Status why) {
  refused_ = Annotate(why, path_.name);
  return refused_;
}

absl::Status LocalBlobWriter::RefuseRest(const absl::Status& why) {
  if (const auto size = file_->Size(); size.ok()) ledger_.Add(path_.tenant, *size - size_);
  return Refuse(why);
}

absl::Status LocalBlobWriter::Append(absl::Span<const std::byte> data) {
  if (!refused_.ok()) return refused_;
  absl::Status written = AtFailpoint("blob.append", [&] { return file_->WriteAt(size_, data); });
  if (written.ok()) {
    size_ += static_cast<int64_t>(data.size());
    ledger_.Add(path_.tenant, static_cast<int64_t>(data.size()));
    return absl::OkStatus();
  }
  if (!absl::IsResourceExhausted(written)) return RefuseRest(written);
  // A part may be there: cut it off, so that the size on disk is what was acknowledged.
  absl::Status cut = AtFailpoint("blob.append.undo", [&] { return file_->Truncate(size_); });
  if (!cut.ok()) return RefuseRest(cut);
  return Annotate(written, path_.name);
}

absl::Status LocalBlobWriter::Sync() {
  if (!refused_.ok()) return refused_;
  // Whatever the code is: after a failed sync the kernel may have dropped the pages and would
  // report the next one as good. With delayed allocation a full disk shows here too.
  absl::Status synced = Synced(AtFailpoint("blob.sync", [&] { return file_->SyncData(); }));
  if (!synced.ok()) return Refuse(absl::InternalError(synced.message()));
  if (!directory_synced_) {
    synced = Synced(
        AtFailpoint("blob.sync.directory", [&] { return files_.SyncDirectory(path_.directory); }));
    if (!synced.ok()) return Refuse(absl::InternalError(synced.message()));
    directory_synced_ = true;
  }
  return absl::OkStatus();
}

absl::Status LocalBlobWriter::Verify(absl::string_view expected_sha256, std::string& digest) {
  const auto size = file_->Size();
  if (!size.ok()) return Annotate(size.status(), path_.name);
  if (*size != size_) {
    return DataLoss(path_.name, absl::StrCat(size_, " bytes were written, ", *size, " are there"));
  }
  auto computed = DigestOf(*file_, size_);
  if (!computed.ok()) return Annotate(computed.status(), path_.name);
  digest = *std::move(computed);
  if (expected_sha256.empty() || digest == expected_sha256) return absl::OkStatus();
  return DataLoss(path_.name,
                  absl::StrCat("expected SHA-256 ", absl::BytesToHexString(expected_sha256),
                               ", got ", absl::BytesToHexString(digest)));
}

absl::StatusOr<BlobRef> LocalBlobWriter::Commit(absl::string_view expected_sha256) {
  if (!refused_.ok()) return refused_;
  if (!expected_sha256.empty() && expected_sha256.size() != sizeof(compute::Sha256Digest)) {
    return absl::InvalidArgumentError(
        absl::StrCat("sha256: expected 32 bytes, got ", expected_sha256.size()));
  }
  refused_ = absl::FailedPreconditionError(absl::StrCat("blob ", path_.name, " is finished"));

  BlobRef blob{.name = path_.name, .size = size_, .sha256 = ""};
  if (auto s = Verify(expected_sha256, blob.sha256); !s.ok()) return s;
  absl::Status status = Synced(AtFailpoint("blob.commit.fsync", [&] { return file_->Sync(); }));
  if (!status.ok()) return Refuse(absl::InternalError(status.message()));
  status = AtFailpoint("blob.commit.rename",
                       [&] { return files_.Rename(path_.staging, path_.committed); });
  if (!status.ok()) return Refuse(status);
  status = Synced(
      AtFailpoint("blob.commit.directory", [&] { return files_.SyncDirectory(path_.directory); }));
  if (!status.ok()) return Refuse(absl::InternalError(status.message()));
  file_.reset();
  return blob;
}

class LocalBlobReader final : public BlobReader {
 public:
  LocalBlobReader(std::string name, int64_t size, std::unique_ptr<File> file)
      : name_(std::move(name)), size_(size), file_(std::move(file)) {}

  int64_t size() const override { return size_; }

  absl::Status Read(int64_t offset, absl::Span<std::byte> out) const override {
    const auto length = static_cast<int64_t>(out.size());
    if (offset < 0 || length > size_ || offset > size_ - length) {
      return absl::OutOfRangeError(absl::StrCat("blob ", name_, " has ", size_,
                                                " bytes; asked for ", length, " from ", offset));
    }
    if (auto s = Failpoint("blob.read"); !s.ok()) return s;
    absl::Status read = file_->ReadAt(offset, out);
    // It was whole when it was opened, and nobody writes to it.
    return read.ok() ? read : DataLoss(name_, read.message());
  }

 private:
  const std::string name_;
  const int64_t size_;
  const std::unique_ptr<File> file_;
};

class LocalBlobStore final : public BlobStore {
 public:
  LocalBlobStore(std::string root, FileSystem& files) : root_(std::move(root)), files_(files) {}

  absl::StatusOr<std::unique_ptr<BlobWriter>> NewBlob(absl::string_view tenant) override;
  absl::StatusOr<std::unique_ptr<BlobWriter>> ResumeBlob(absl::string_view name,
                                                         int64_t committed) override;
  absl::StatusOr<BlobRef> Put(absl::string_view tenant, absl::string_view bytes) override;
  absl::StatusOr<std::unique_ptr<BlobReader>> Open(const BlobRef& blob) override;
  absl::StatusOr<std::string> ReadAll(const BlobRef& blob) override;
  absl::StatusOr<BlobState> Describe(absl::string_view name) override;
  absl::Status CheckRoom(absl::string_view, int64_t) override { return absl::OkStatus(); }
  absl::Status Delete(absl::string_view name) override;
  absl::StatusOr<std::vector<std::string>> List() override;
  absl::StatusOr<std::map<std::string, int64_t>> StoredBytes() override { return ledger_.bytes(); }

  // Counts what is there. Before anything else.
  absl::Status CountStored();

 private:
  absl::Status MakeDirectory(const std::string& path, const std::string& parent);
  absl::Status MakeDirectories(const BlobPath& path);
  absl::StatusOr<std::unique_ptr<File>> OpenStaging(const BlobPath& path, int64_t committed);
  // Opens the file and compares its size.
  absl::StatusOr<std::unique_ptr<File>> OpenCommitted(const BlobRef& blob);
  // Calls visit(tenant, path, file name) for every file of the store.
  absl::Status Walk(const std::function<absl::Status(const std::string&, const std::string&,
                                                     const std::string&)>& visit);

  const std::string root_;
  FileSystem& files_;
  Ledger ledger_;
};

absl::Status LocalBlobStore::MakeDirectory(const std::string& path, const std::string& parent) {
  bool made = false;
  absl::Status status = AtFailpoint("blob.mkdir", [&] {
    auto created = files_.CreateDirectory(path);
    made = created.ok() && *created;
    return created.status();
  });
  if (!status.ok() || !made) return status;
  return Synced(AtFailpoint("blob.mkdir.directory", [&] { return files_.SyncDirectory(parent); }));
}

absl::Status LocalBlobStore::MakeDirectories(const BlobPath& path) {
  if (auto s = MakeDirectory(path.tenant_directory, root_); !s.ok()) return s;
  return MakeDirectory(path.directory, path.tenant_directory);
}

absl::StatusOr<std::unique_ptr<BlobWriter>> LocalBlobStore::NewBlob(absl::string_view tenant) {
  unsigned char random[kRandomBytes];
  if (RAND_bytes(random, sizeof(random)) != 1) {
    return absl::InternalError("no random bytes for the name of a blob");
  }
  const absl::string_view bytes(reinterpret_cast<const char*>(random), sizeof(random));
  auto path = PathOf(root_, absl::StrCat(tenant, "/", absl::BytesToHexString(bytes)));
  if (!path.ok()) return path.status();
  if (auto s = MakeDirectories(*path); !s.ok()) return s;
  absl::StatusOr<std::unique_ptr<File>> file;
  absl::Status created = AtFailpoint("blob.create", [&] {
    file = files_.Create(path->staging);
    return file.status();
  });
  if (!created.ok()) return Annotate(created, path->name);
  return std::make_unique<LocalBlobWriter>(files_, ledger_, *std::move(path), *std::move(file), 0,
                                           /*directory_synced=*/false);
}

absl::StatusOr<std::unique_ptr<File>> LocalBlobStore::OpenStaging(const BlobPath& path,
                                                                  int64_t committed) {
  auto file = files_.OpenForWriting(path.staging);
  if (absl::IsNotFound(file.status())) {
    // A crash between the rename and the record that was to refer to the blob ...
    absl::Status back = AtFailpoint("blob.resume.rename",
                                    [&] { return files_.Rename(path.committed, path.staging); });
    if (back.ok()) {
      file = files_.OpenForWriting(path.staging);
    } else if (absl::IsNotFound(back) && committed == 0) {
      // ... or one after which the record is there and the empty file's name is not.
      if (auto s = MakeDirectories(path); !s.ok()) return s;
      file = files_.Create(path.staging);
    } else if (absl::IsNotFound(back)) {
      return DataLoss(path.name, absl::StrCat(committed, " bytes were durable, it is missing"));
    } else {
      return Annotate(back, path.name);
    }
  }
  if (!file.ok()) return Annotate(file.status(), path.name);
  return file;
}

absl::StatusOr<std::unique_ptr<BlobWriter>> LocalBlobStore::ResumeBlob(absl::string_view name,
                                                                       int64_t committed) {
  auto path = PathOf(root_, name);
  if (!path.ok()) return path.status();
  if (committed < 0) {
    return absl::InvalidArgumentError(absl::StrCat("committed: expected >= 0, got ", committed));
  }
  auto file = OpenStaging(*path, committed);
  if (!file.ok()) return file.status();
  const auto size = (*file)->Size();
  if (!size.ok()) return Annotate(size.status(), path->name);
  if (*size < committed) {
    return DataLoss(name, absl::StrCat(committed, " bytes were durable, ", *size, " are there"));
  }
  absl::Status cut =
      AtFailpoint("blob.resume.truncate", [&] { return (*file)->Truncate(committed); });
  if (!cut.ok()) return Annotate(cut, path->name);
  ledger_.Add(path->tenant, committed - *size);
  return std::make_unique<LocalBlobWriter>(files_, ledger_, *std::move(path), *std::move(file),
                                           committed,
                                           /*directory_synced=*/false);
}

absl::StatusOr<BlobRef> LocalBlobStore::Put(absl::string_view tenant, absl::string_view bytes) {
  auto writer = NewBlob(tenant);
  if (!writer.ok()) return writer.status();
  absl::Status appended =
      (*writer)->Append({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
  absl::StatusOr<BlobRef> blob =
      appended.ok() ? (*writer)->Commit(compute::ToBytes(compute::Sha256::Of(bytes)))
                    : absl::StatusOr<BlobRef>(appended);
  if (!blob.ok()) Delete((*writer)->name()).IgnoreError();  // nobody knows its name
  return blob;
}

absl::StatusOr<std::unique_ptr<File>> LocalBlobStore::OpenCommitted(const BlobRef& blob) {
  auto path = PathOf(root_, blob.name);
  if (!path.ok()) return path.status();
  auto file = files_.OpenForReading(path->committed);
  if (absl::IsNotFound(file.status())) return DataLoss(blob.name, "it is missing");
  if (!file.ok()) return Annotate(file.status(), blob.name);
  const auto size = (*file)->Size();
  if (!size.ok()) return Annotate(size.status(), blob.name);
  if (*size != blob.size) {
    return DataLoss(blob.name, absl::StrCat("expected ", blob.size, " bytes, got ", *size));
  }
  return file;
}

absl::Status CheckDigest(const BlobRef& blob, absl::string_view digest) {
  if (digest == blob.sha256) return absl::OkStatus();
  return DataLoss(blob.name, absl::StrCat("expected SHA-256 ", absl::BytesToHexString(blob.sha256),
                                          ", got ", absl::BytesToHexString(digest)));
}

absl::StatusOr<std::unique_ptr<BlobReader>> LocalBlobStore::Open(const BlobRef& blob) {
  auto file = OpenCommitted(blob);
  if (!file.ok()) return file.status();
  const auto digest = DigestOf(**file, blob.size);
  if (!digest.ok()) return DataLoss(blob.name, digest.status().message());
  if (auto s = CheckDigest(blob, *digest); !s.ok()) return s;
  return std::make_unique<LocalBlobReader>(blob.name, blob.size, *std::move(file));
}

// The size is compared with the file's before anything is allocated.
absl::StatusOr<std::string> LocalBlobStore::ReadAll(const BlobRef& blob) {
  auto file = OpenCommitted(blob);
  if (!file.ok()) return file.status();
  std::string bytes(static_cast<size_t>(blob.size), '\0');
  absl::Status read =
      (*file)->ReadAt(0, absl::MakeSpan(reinterpret_cast<std::byte*>(bytes.data()), bytes.size()));
  if (!read.ok()) return DataLoss(blob.name, read.message());
  if (auto s = CheckDigest(blob, compute::ToBytes(compute::Sha256::Of(bytes))); !s.ok()) return s;
  return bytes;
}

absl::Status LocalBlobStore::Delete(absl::string_view name) {
  auto path = PathOf(root_, name);
  if (!path.ok()) return path.status();
  for (const std::string& file : {path->staging, path->committed}) {
    const auto info = files_.Describe(file);
    if (absl::IsNotFound(info.status())) continue;
    absl::Status removed = AtFailpoint("blob.delete", [&] { return files_.Remove(file); });
    if (absl::IsNotFound(removed)) continue;
    if (!removed.ok()) return Annotate(removed, name);
    if (info.ok()) ledger_.Add(path->tenant, -info->size);
  }
  return absl::OkStatus();
}

absl::Status LocalBlobStore::Walk(
    const std::function<absl::Status(const std::string&, const std::string&, const std::string&)>&
        visit) {
  auto tenants = files_.ListDirectory(root_);
  if (!tenants.ok()) return tenants.status();
  for (const std::string& tenant : *tenants) {
    if (!IsTenant(tenant)) continue;  // lost+found and the like
    const std::string tenant_directory = absl::StrCat(root_, "/", tenant);
    auto directories = files_.ListDirectory(tenant_directory);
    if (!directories.ok()) return directories.status();
    for (const std::string& directory : *directories) {
      const std::string path = absl::StrCat(tenant_directory, "/", directory);
      auto names = files_.ListDirectory(path);
      if (!names.ok()) return names.status();
      for (const std::string& name : *names) {
        if (auto s = visit(tenant, absl::StrCat(path, "/", name), name); !s.ok()) return s;
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> LocalBlobStore::List() {
  std::vector<std::string> names;
  absl::Status walked =
      Walk([&](const std::string& tenant, const std::string&, const std::string& file) {
        const absl::string_view random = absl::StripSuffix(file, kStagingSuffix);
        if (IsRandomPart(random)) names.push_back(absl::StrCat(tenant, "/", random));
        return absl::OkStatus();
      });
  if (!walked.ok()) return walked;
  return names;
}

absl::StatusOr<BlobState> LocalBlobStore::Describe(absl::string_view name) {
  auto path = PathOf(root_, name);
  if (!path.ok()) return path.status();
  // The staging file first: a rename between the two is not missed.
  auto info = files_.Describe(path->staging);
  const bool committed = absl::IsNotFound(info.status());
  if (committed) info = files_.Describe(path->committed);
  if (!info.ok()) return Annotate(info.status(), name);
  return BlobState{.committed = committed, .size = info->size, .written = info->modified};
}

absl::Status LocalBlobStore::CountStored() {
  return Walk([&](const std::string& tenant, const std::string& path, const std::string&) {
    const auto info = files_.Describe(path);
    if (!info.ok()) return info.status();
    ledger_.Add(tenant, info->size);
    return absl::OkStatus();
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlobStore>> OpenLocalBlobStore(const std::string& directory,
                                                              FileSystem& files) {
  if (auto made = files.CreateDirectory(directory); !made.ok()) return made.status();
  auto store = std::make_unique<LocalBlobStore>(directory, files);
  if (absl::Status counted = store->CountStored(); !counted.ok()) return counted;
  return store;
}

absl::StatusOr<std::string> BlobFile(const std::string& directory, absl::string_view name,
                                     bool staging) {
  auto path = PathOf(directory, name);
  if (!path.ok()) return path.status();
  return staging ? path->staging : path->committed;
}

}  // namespace quantd::server
