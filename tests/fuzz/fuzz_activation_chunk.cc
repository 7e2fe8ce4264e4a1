// Any chunk that a client sends to a statistic of any kind is either refused, and the stream stays
// where it was, or is the next of its stream.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/backend/cpu/cpu_backend.h"
#include "compute/tensor/checksum.h"
#include "server/ingest/shared_region.h"
#include "server/ingest/statistics.h"
#include "server/service/activation_chunk.h"
#include "server/store/local_blob_store.h"
#include "server/store/sqlite_job_store.h"
#include "tests/fuzz/byte_feed.h"
#include "tests/fuzz/check.h"
#include "tests/fuzz/scratch_folder.h"

namespace {

using namespace quantd;
using namespace quantd::server;

constexpr int64_t kCols = 4;
constexpr int64_t kRegionBytes = 4096;

std::unique_ptr<SharedRegion> MakeRegion() {
  const std::string name = absl::StrCat("quantd.acme.fuzz", ::getpid());
  const int fd = ::shm_open(("/" + name).c_str(), O_CREAT | O_RDWR, 0600);
  FUZZ_CHECK(fd >= 0 && ::ftruncate(fd, kRegionBytes) == 0);
  ::close(fd);
  auto region = SharedRegion::Open(name).value();
  ::shm_unlink(("/" + name).c_str());
  return region;
}

// One open stream for each kind of statistic. They live as long as the process: to open one takes
// far longer than to check a chunk.
struct Streams {
  fuzz::ScratchFolder folder;
  std::unique_ptr<JobStore> jobs = OpenSqliteJobStore(folder.File("db")).value();
  std::unique_ptr<BlobStore> blobs = OpenLocalBlobStore(folder.File("blobs")).value();
  std::unique_ptr<compute::Backend> backend = compute::NewCpuBackend(1);
  Executor executor{1};
  Statistics statistics{*jobs,    *blobs,    {backend.get()},
                        executor, Options(), [](const std::string&, const std::string&) {}};
  std::unique_ptr<SharedRegion> region = MakeRegion();
  std::vector<std::shared_ptr<ActivationStream>> streams;
  std::vector<int64_t> accepted;

  static StatisticsOptions Options() {
    StatisticsOptions options;
    options.commit.interval = absl::InfiniteDuration();
    options.commit.bytes = int64_t{1} << 60;
    return options;
  }

  Streams() {
    using compute::MomentKind;
    for (const MomentKind kind : {MomentKind::kSecondMoment, MomentKind::kWeighted,
                                  MomentKind::kCross, MomentKind::kResidual}) {
      Statistics::Declaration declaration;
      declaration.tenant = "acme";
      declaration.statistic = absl::StrCat("s", streams.size());
      declaration.stream_id = "one";
      declaration.dtype =
          kind == MomentKind::kWeighted ? compute::DType::kF64 : compute::DType::kBF16;
      declaration.spec.kind = kind;
      declaration.spec.cols = kCols;
      declaration.spec.sample_rows = 2;
      if (kind == MomentKind::kCross) declaration.spec.paired_cols = kCols;
      if (kind == MomentKind::kResidual) declaration.spec.paired_cols = 3;
      streams.push_back(statistics.Open(declaration).value());
      accepted.push_back(0);
    }
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Streams world;
  fuzz::ByteFeed feed(data, size);
  const uint8_t options = feed.Byte();
  const int kind = options & 3;
  const std::string bytes = feed.Rest();
  v1::ActivationChunk message;
  if (!message.ParseFromString(bytes)) return 0;
  // Without help, a changed byte gets no further than the checksums and the sequence number.
  if ((options & 4) != 0) message.set_crc32c(compute::Crc32c(message.data()));
  if ((options & 8) != 0) message.set_paired_crc32c(compute::Crc32c(message.paired_data()));
  if ((options & 16) != 0) message.set_seq(world.accepted[kind] + 1);
  const int64_t seq = message.seq();

  auto chunk = TakeChunk(message, (options & 32) != 0 ? world.region.get() : nullptr);
  absl::Status status = chunk.status();
  if (chunk.ok()) {
    const int64_t rows = chunk->rows;
    status = world.streams[kind]->Push(*std::move(chunk));
    if (status.ok() && seq > world.accepted[kind]) {
      FUZZ_CHECK(seq == world.accepted[kind] + 1 && rows >= 1);
      world.accepted[kind] = seq;
    }
    while (world.streams[kind]->queued_bytes() > 0) std::this_thread::yield();
  }
  if (!status.ok()) {
    fuzz::CheckRefusal(status, absl::StatusCode::kInvalidArgument, absl::StatusCode::kOutOfRange);
  }
  return 0;
}
