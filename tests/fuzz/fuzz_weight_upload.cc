// Any sequence of chunks, commits, finishes and reconnections: an upload takes each byte once, in
// order, and is complete with the right digest alone.
#include <algorithm>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "compute/tensor/checksum.h"
#include "server/ingest/weight_uploads.h"
#include "server/store/local_blob_store.h"
#include "server/store/sqlite_job_store.h"
#include "tests/fuzz/byte_feed.h"
#include "tests/fuzz/check.h"
#include "tests/fuzz/scratch_folder.h"

namespace {

using namespace quantd;
using namespace quantd::server;

constexpr int64_t kRows = 2;
constexpr int64_t kCols = 16;
constexpr int64_t kBytes = kRows * kCols * 2;  // BF16

struct World {
  fuzz::ScratchFolder folder;
  std::unique_ptr<JobStore> jobs = OpenSqliteJobStore(folder.File("db")).value();
  std::unique_ptr<BlobStore> blobs = OpenLocalBlobStore(folder.File("blobs")).value();
  int64_t completed = 0;
  int64_t jobs_made = 0;
  WeightUploads uploads{*jobs, *blobs, 1 << 20, 4, [this](const LayerKey&) { ++completed; }};
};

// A job with one layer, for one input.
LayerKey MakeJob(World& world) {
  JobRecord job;
  job.tenant = "acme";
  job.job_id = absl::StrCat("j", world.jobs_made++);
  LayerRecord layer;
  layer.layer_id = "w";
  layer.rows = kRows;
  layer.cols = kCols;
  layer.dtype = compute::DType::kBF16;
  job.layers.push_back(layer);
  FUZZ_CHECK(world.jobs->InsertJob(job, 1000).ok());
  return {job.tenant, job.job_id, layer.layer_id};
}

// What the upload must be like, by what was accepted.
struct Model {
  std::string appended;
  int64_t committed = 0;
  bool complete = false;
};

int64_t TakeOffset(fuzz::ByteFeed& feed, int64_t right) {
  const uint8_t how = feed.Byte();
  if (how < 200) return right;
  return how < 230 ? right + static_cast<int8_t>(feed.Byte()) : feed.Take<int64_t>();
}

void Append(fuzz::ByteFeed& feed, WeightUpload& upload, Model& model) {
  const int64_t offset = TakeOffset(feed, static_cast<int64_t>(model.appended.size()));
  const std::string data = feed.Bytes(feed.Byte() % 80);
  const bool wrong_crc = feed.Byte() >= 240;
  const uint32_t crc = compute::Crc32c(data) ^ static_cast<uint32_t>(wrong_crc);
  const absl::Status status =
      upload.Append(offset, {reinterpret_cast<const std::byte*>(data.data()), data.size()}, crc);
  if (!status.ok()) {
    return fuzz::CheckRefusal(status, absl::StatusCode::kInvalidArgument,
                              absl::StatusCode::kOutOfRange);
  }
  FUZZ_CHECK(offset == static_cast<int64_t>(model.appended.size()) && !wrong_crc);
  model.appended += data;
  FUZZ_CHECK(static_cast<int64_t>(model.appended.size()) <= kBytes);
}

void Finish(fuzz::ByteFeed& feed, WeightUpload& upload, Model& model) {
  const uint8_t how = feed.Byte();
  std::string digest = compute::ToBytes(compute::Sha256::Of(model.appended));
  if (how >= 200) digest[how % digest.size()] ^= 1;
  if (how >= 240) digest = feed.Bytes(how % 40);
  const auto progress = upload.Finish(digest);
  if (!progress.ok()) {
    fuzz::CheckRefusal(progress.status(), absl::StatusCode::kInvalidArgument,
                       absl::StatusCode::kDataLoss, absl::StatusCode::kFailedPrecondition,
                       absl::StatusCode::kOutOfRange);
    return;
  }
  FUZZ_CHECK(how < 240 && how < 200);
  FUZZ_CHECK(static_cast<int64_t>(model.appended.size()) == kBytes);
  FUZZ_CHECK(progress->complete && progress->committed_size == kBytes);
  model.complete = true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static World world;
  fuzz::ByteFeed feed(data, size);
  const LayerKey key = MakeJob(world);
  const UploadDeclaration declaration = {compute::DType::kBF16, kRows, kCols};
  Model model;
  const int64_t completed_before = world.completed;
  for (int connection = 0; connection < 4 && !feed.empty() && !model.complete; ++connection) {
    auto upload = world.uploads.Open(key, declaration);
    FUZZ_CHECK(upload.ok());
    FUZZ_CHECK(!world.uploads.Open(key, declaration).ok());  // one writer at a time
    bool refused_finish = false;
    for (int step = 0; step < 8 && !feed.empty() && !model.complete && !refused_finish; ++step) {
      const int choice = feed.Choice(8);
      if (choice < 5) {
        Append(feed, **upload, model);
      } else if (choice < 7) {
        const auto progress = (*upload)->Commit();
        FUZZ_CHECK(progress.ok());
        FUZZ_CHECK(progress->committed_size == static_cast<int64_t>(model.appended.size()));
        model.committed = progress->committed_size;
      } else {
        Finish(feed, **upload, model);
        refused_finish = !model.complete;
      }
    }
    upload->reset();
    const auto progress = world.uploads.Status(key);
    FUZZ_CHECK(progress.ok() && progress->complete == model.complete);
    // A finish that is refused may have started the upload over.
    if (refused_finish) {
      FUZZ_CHECK(progress->committed_size <= static_cast<int64_t>(model.appended.size()));
      model.appended.resize(progress->committed_size);
    } else {
      FUZZ_CHECK(progress->committed_size >= model.committed);
      FUZZ_CHECK(progress->committed_size == static_cast<int64_t>(model.appended.size()));
    }
    model.committed = progress->committed_size;
  }
  FUZZ_CHECK(world.completed - completed_before == (model.complete ? 1 : 0));
  if (model.complete) {
    const auto job = world.jobs->GetJob(key.tenant, key.job);
    FUZZ_CHECK(job.ok());
    FUZZ_CHECK(world.blobs->ReadAll(job->layers[0].weight).value() == model.appended);
  }
  const auto garbage = world.jobs->DeleteJob(key.tenant, key.job);
  FUZZ_CHECK(garbage.ok());
  for (const std::string& name : *garbage) FUZZ_CHECK(world.blobs->Delete(name).ok());
  return 0;
}
