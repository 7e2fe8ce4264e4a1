// Uploads and activation streams against the real stores in a temporary directory.

#include <cstring>
#include <future>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "compute/backend/cpu/cpu_backend.h"
#include "compute/tensor/checksum.h"
#include "gtest/gtest.h"
#include "server/errors/error.h"
#include "server/ingest/statistics.h"
#include "server/ingest/strand.h"
#include "server/ingest/weight_uploads.h"
#include "server/store/local_blob_store.h"
#include "server/store/sqlite_job_store.h"
#include "tests/server/temp_directory.h"

namespace quantd::server {
namespace {

constexpr int64_t kCols = 32;

TEST(StrandTest, RunsTasksInOrderAndOneAtATime) {
  std::vector<int> order;  // unguarded on purpose: the strand is what keeps it safe
  {
    Executor executor(4);
    Strand strand(executor);
    for (int i = 0; i < 1000; ++i) {
      strand.Post([&order, i] { order.push_back(i); });
    }
  }
  ASSERT_EQ(order.size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(order[i], i);
}

TEST(StrandTest, MayBeDestroyedFromWithinItsTask) {
  std::promise<void> done;
  Executor executor(2);
  auto strand = std::make_shared<Strand>(executor);
  Strand* raw = strand.get();
  raw->Post([owner = std::move(strand), &done]() mutable {
    owner.reset();
    done.set_value();
  });
  done.get_future().wait();
}

absl::Span<const std::byte> AsBytes(const std::string& data) {
  return {reinterpret_cast<const std::byte*>(data.data()), data.size()};
}

ActivationChunk Chunk(int64_t seq, int64_t rows, float first = 1.0F) {
  ActivationChunk chunk;
  chunk.seq = seq;
  chunk.rows = rows;
  std::vector<float> values(rows * kCols);
  for (size_t i = 0; i < values.size(); ++i) values[i] = first + static_cast<float>(i % 7);
  chunk.data.assign(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  chunk.crc32c = compute::Crc32c(chunk.data);
  return chunk;
}

class IngestTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto jobs = OpenSqliteJobStore(directory_.File("db"));
    ASSERT_TRUE(jobs.ok()) << jobs.status();
    jobs_ = std::move(*jobs);
    auto blobs = OpenLocalBlobStore(directory_.File("blobs"));
    ASSERT_TRUE(blobs.ok()) << blobs.status();
    blobs_ = std::move(*blobs);
    OpenStatistics();
  }

  // As after a restart: nothing in memory survives.
  void OpenStatistics(int64_t open_sum_bytes = 0) {
    statistics_.reset();
    StatisticsOptions options;
    options.commit.interval = absl::Hours(1);  // commits happen when asked for
    options.max_streams_per_tenant = open_sum_bytes > 0 ? 16 : 2;
    options.open_sum_bytes = open_sum_bytes;
    statistics_ = std::make_unique<Statistics>(
        *jobs_, *blobs_, std::vector<compute::Backend*>{backend_.get()}, executor_, options,
        [this](const std::string&, const std::string& id) { sealed_.push_back(id); });
  }

  static Statistics::Declaration Declare(const std::string& stream = "one") {
    Statistics::Declaration declaration;
    declaration.tenant = "t";
    declaration.statistic = "s";
    declaration.stream_id = stream;
    declaration.dtype = compute::DType::kF32;
    declaration.spec.cols = kCols;
    declaration.spec.sample_rows = 8;
    return declaration;
  }

  absl::Status Finish(const std::shared_ptr<ActivationStream>& stream,
                      const Statistics::Declaration& declaration) {
    const auto done = std::make_shared<std::promise<absl::Status>>();
    stream->Finish([done](const absl::Status& status) { done->set_value(status); });
    const absl::Status outcome = done->get_future().get();
    statistics_->Close(declaration);
    return outcome;
  }

  TempDirectory directory_;
  std::unique_ptr<JobStore> jobs_;
  std::unique_ptr<BlobStore> blobs_;
  const std::unique_ptr<compute::Backend> backend_ = compute::NewCpuBackend(2);
  Executor executor_{4};
  std::vector<std::string> sealed_;
  std::unique_ptr<Statistics> statistics_;
};

TEST_F(IngestTest, WhatWasFinishedIsDurableAndResumesWithTheSameBits) {
  const auto declaration = Declare();
  auto stream = statistics_->Open(declaration);
  ASSERT_TRUE(stream.ok()) << stream.status();
  for (int seq = 1; seq <= 3; ++seq) ASSERT_TRUE((*stream)->Push(Chunk(seq, 300)).ok());
  ASSERT_TRUE(Finish(*stream, declaration).ok());

  OpenStatistics();
  stream = statistics_->Open(declaration);
  ASSERT_TRUE(stream.ok()) << stream.status();
  EXPECT_EQ((*stream)->durable_seq(), 3);
  ASSERT_TRUE((*stream)->Push(Chunk(3, 300)).ok());  // resent: dropped
  for (int seq = 4; seq <= 6; ++seq) ASSERT_TRUE((*stream)->Push(Chunk(seq, 300)).ok());
  ASSERT_TRUE(Finish(*stream, declaration).ok());
  ASSERT_TRUE(statistics_->Seal("t", "s").ok());
  EXPECT_EQ(sealed_, std::vector<std::string>{"s"});

  auto undisturbed = Declare();
  undisturbed.statistic = "whole";
  stream = statistics_->Open(undisturbed);
  ASSERT_TRUE(stream.ok());
  for (int seq = 1; seq <= 6; ++seq) ASSERT_TRUE((*stream)->Push(Chunk(seq, 300)).ok());
  ASSERT_TRUE(Finish(*stream, undisturbed).ok());
  ASSERT_TRUE(statistics_->Seal("t", "whole").ok());

  const auto resumed = statistics_->Load("t", "s");
  const auto whole = statistics_->Load("t", "whole");
  ASSERT_TRUE(resumed.ok() && whole.ok());
  EXPECT_EQ((*resumed)->tokens(), 1800);
  EXPECT_EQ((*resumed)->Serialize(), (*whole)->Serialize());
}

// More sums than the device may hold, fed in turns: they page in and out, and come to the same
// bits.
TEST_F(IngestTest, SumsThatDoNotFitTakeTurns) {
  constexpr int kStatistics = 6;
  constexpr int kChunks = 8;
  const auto named = [](const std::string& prefix, int i) {
    auto declaration = Declare();
    declaration.statistic = absl::StrCat(prefix, i);
    return declaration;
  };
  const auto feed = [&](const std::string& prefix) {
    std::vector<std::shared_ptr<ActivationStream>> streams;
    for (int i = 0; i < kStatistics; ++i) {
      streams.push_back(statistics_->Open(named(prefix, i)).value());
    }
    for (int seq = 1; seq <= kChunks; ++seq) {
      for (int i = 0; i < kStatistics; ++i) {
        ASSERT_TRUE(streams[i]->Push(Chunk(seq, 200 + i, static_cast<float>(i))).ok());
      }
    }
    for (int i = 0; i < kStatistics; ++i) {
      ASSERT_TRUE(Finish(streams[i], named(prefix, i)).ok()) << i;
      ASSERT_TRUE(statistics_->Seal("t", absl::StrCat(prefix, i)).ok()) << i;
    }
  };
  OpenStatistics(/*open_sum_bytes=*/1);  // room for one, as for any that is too large
  feed("paged");
  const Statistics::OpenSums sums = statistics_->OpenSumsOfDevices().at("cpu");
  EXPECT_EQ(sums.bytes, 0);
  EXPECT_EQ(sums.waiting, 0);
  EXPECT_GE(sums.page_outs, kStatistics - 1);
  OpenStatistics(/*open_sum_bytes=*/int64_t{1} << 30);
  feed("whole");
  EXPECT_EQ(statistics_->OpenSumsOfDevices().at("cpu").page_outs, 0);
  for (int i = 0; i < kStatistics; ++i) {
    const auto paged = statistics_->Load("t", absl::StrCat("paged", i));
    const auto whole = statistics_->Load("t", absl::StrCat("whole", i));
    ASSERT_TRUE(paged.ok() && whole.ok());
    EXPECT_EQ((*paged)->Serialize(), (*whole)->Serialize()) << i;
  }
}

// An idle stream that holds the only place gives it up, and a stream that failed leaves none taken.
TEST_F(IngestTest, IdleAndFailedStreamsMakeRoom) {
  OpenStatistics(/*open_sum_bytes=*/1);
  auto idle = Declare();
  idle.statistic = "idle";
  const auto first = statistics_->Open(idle).value();
  ASSERT_TRUE(first->Push(Chunk(1, 10)).ok());
  auto other = Declare();
  other.statistic = "other";
  const auto second = statistics_->Open(other).value();
  ASSERT_TRUE(second->Push(Chunk(1, 20)).ok());
  ASSERT_TRUE(Finish(second, other).ok());
  ASSERT_TRUE(first->Push(Chunk(2, 10)).ok());
  ASSERT_TRUE(Finish(first, idle).ok());
  EXPECT_EQ(statistics_->Seal("t", "idle")->tokens, 20);
  EXPECT_EQ(statistics_->Seal("t", "other")->tokens, 20);
  EXPECT_EQ(statistics_->OpenSumsOfDevices().at("cpu").bytes, 0);
}

TEST_F(IngestTest, RefusedChunksChangeNothing) {
  const auto declaration = Declare();
  auto stream = statistics_->Open(declaration);
  ASSERT_TRUE(stream.ok()) << stream.status();
  ASSERT_TRUE((*stream)->Push(Chunk(1, 4)).ok());

  const auto reason = [&](ActivationChunk chunk) {
    return DetailsOf((*stream)->Push(std::move(chunk))).reason;
  };
  EXPECT_EQ(reason(Chunk(3, 4)), "SEQUENCE_GAP");
  EXPECT_EQ(reason(Chunk(1, 4, 2.0F)), "SEQUENCE_CONFLICT");
  EXPECT_EQ(reason(Chunk(2, 0)), "ZERO_TOKENS");
  ActivationChunk wrong_rows = Chunk(2, 4);
  wrong_rows.rows = 5;
  EXPECT_EQ(reason(std::move(wrong_rows)), "INVALID_FIELD");
  ActivationChunk corrupt = Chunk(2, 4);
  corrupt.data[5] = static_cast<char>(corrupt.data[5] ^ 1);
  EXPECT_EQ(reason(std::move(corrupt)), "CRC_MISMATCH");
  ActivationChunk not_finite = Chunk(2, 4);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(not_finite.data.data() + 40, &nan, sizeof(nan));
  not_finite.crc32c = compute::Crc32c(not_finite.data);
  EXPECT_EQ(reason(std::move(not_finite)), "NON_FINITE");

  ASSERT_TRUE((*stream)->Push(Chunk(2, 4)).ok());
  ASSERT_TRUE(Finish(*stream, declaration).ok());
  const auto sealed = statistics_->Seal("t", "s");
  ASSERT_TRUE(sealed.ok()) << sealed.status();
  EXPECT_EQ(sealed->tokens, 8);
}

// A chunk with what its kind takes beside the data: weights, or a paired row of `paired_cols`.
ActivationChunk ChunkFor(const compute::MomentSpec& spec, int64_t seq, int64_t rows) {
  ActivationChunk chunk = Chunk(seq, rows, static_cast<float>(seq));
  if (spec.kind == compute::MomentKind::kWeighted) {
    for (int64_t i = 0; i < rows; ++i) chunk.weights.push_back(static_cast<float>(i % 3) * 0.5F);
  }
  if (spec.is_paired()) {
    std::vector<float> values(rows * spec.paired_cols);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 11) - 4.25F;
    chunk.paired.assign(reinterpret_cast<const char*>(values.data()), values.size() * 4);
    chunk.paired_crc32c = compute::Crc32c(chunk.paired);
  }
  return chunk;
}

class KindsTest : public IngestTest, public ::testing::WithParamInterface<compute::MomentKind> {
 protected:
  static Statistics::Declaration DeclareKind(const std::string& statistic) {
    auto declaration = Declare();
    declaration.statistic = statistic;
    declaration.spec.kind = GetParam();
    if (GetParam() == compute::MomentKind::kCross) declaration.spec.paired_cols = kCols;
    if (GetParam() == compute::MomentKind::kResidual) declaration.spec.paired_cols = 7;
    return declaration;
  }
};
INSTANTIATE_TEST_SUITE_P(All, KindsTest,
                         ::testing::Values(compute::MomentKind::kWeighted,
                                           compute::MomentKind::kCross,
                                           compute::MomentKind::kResidual),
                         [](const auto& info) { return std::string(NameOf(info.param)); });

TEST_P(KindsTest, ResumesWithTheSameBits) {
  for (const bool interrupted : {true, false}) {
    const auto declaration = DeclareKind(interrupted ? "resumed" : "whole");
    auto stream = statistics_->Open(declaration);
    ASSERT_TRUE(stream.ok()) << stream.status();
    for (int seq = 1; seq <= 6; ++seq) {
      ASSERT_TRUE((*stream)->Push(ChunkFor(declaration.spec, seq, 300)).ok());
      if (!interrupted || seq != 3) continue;
      ASSERT_TRUE(Finish(*stream, declaration).ok());
      OpenStatistics();
      stream = statistics_->Open(declaration);
      ASSERT_TRUE(stream.ok()) << stream.status();
      ASSERT_TRUE((*stream)->Push(ChunkFor(declaration.spec, 3, 300)).ok());  // resent: dropped
    }
    ASSERT_TRUE(Finish(*stream, declaration).ok());
    ASSERT_TRUE(statistics_->Seal("t", declaration.statistic).ok());
  }
  const auto resumed = statistics_->Load("t", "resumed");
  const auto whole = statistics_->Load("t", "whole");
  ASSERT_TRUE(resumed.ok() && whole.ok());
  EXPECT_EQ((*resumed)->tokens(), 1800);
  EXPECT_EQ((*resumed)->spec().kind, GetParam());
  EXPECT_EQ((*resumed)->Serialize(), (*whole)->Serialize());
  // Merging seals a statistic of the same kind.
  const auto merged = statistics_->Merge("t", "merged", {"resumed", "whole"});
  ASSERT_TRUE(merged.ok()) << merged.status();
  EXPECT_EQ(merged->tokens, 3600);
  EXPECT_EQ(merged->spec, (*resumed)->spec());
}

TEST_P(KindsTest, RefusedChunksNameTheFieldAndChangeNothing) {
  const auto declaration = DeclareKind("s");
  auto stream = statistics_->Open(declaration);
  ASSERT_TRUE(stream.ok()) << stream.status();
  const ActivationChunk good = ChunkFor(declaration.spec, 1, 4);
  ASSERT_TRUE((*stream)->Push(good).ok());
  const auto refused = [&](const ActivationChunk& chunk, absl::string_view field,
                           absl::string_view reason = "INVALID_FIELD") {
    const ErrorDetails details = DetailsOf((*stream)->Push(chunk));
    EXPECT_EQ(details.field.value_or("accepted"), field);
    EXPECT_EQ(details.reason, reason);
  };
  const bool weighted = GetParam() == compute::MomentKind::kWeighted;
  // The same seq with the same data and other company is another chunk.
  ActivationChunk conflict = good;
  if (weighted) {
    conflict.weights[2] += 1.0F;
  } else {
    conflict.paired[9] = static_cast<char>(conflict.paired[9] ^ 1);
    conflict.paired_crc32c = compute::Crc32c(conflict.paired);
  }
  refused(conflict, "chunk.crc32c", "SEQUENCE_CONFLICT");
  ActivationChunk chunk = ChunkFor(declaration.spec, 2, 4);
  const ActivationChunk next = chunk;
  if (weighted) {
    chunk.weights.clear();
    refused(chunk, "chunk.token_weights");
    chunk.weights = std::vector<float>(5, 1.0F);
    refused(chunk, "chunk.token_weights");
    for (const float bad : {-1e-9F, std::numeric_limits<float>::quiet_NaN(),
                            std::numeric_limits<float>::infinity()}) {
      chunk.weights = {1.0F, 0.0F, bad, 1.0F};
      refused(chunk, "chunk.token_weights", "BAD_WEIGHT");
    }
    chunk = next;
    chunk.paired = chunk.data;
    chunk.paired_crc32c = chunk.crc32c;
    refused(chunk, "chunk.paired_data");
  } else {
    chunk.paired.clear();
    refused(chunk, "chunk.paired_data");
    chunk = next;
    chunk.paired.resize(chunk.paired.size() - 4);
    chunk.paired_crc32c = compute::Crc32c(chunk.paired);
    refused(chunk, "chunk.paired_data");
    chunk = next;
    chunk.paired_crc32c ^= 1;
    refused(chunk, "chunk.paired_crc32c", "CRC_MISMATCH");
    chunk = next;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(chunk.paired.data() + 8, &nan, sizeof(nan));
    chunk.paired_crc32c = compute::Crc32c(chunk.paired);
    refused(chunk, "chunk.paired_data", "NON_FINITE");
    chunk = next;
    chunk.weights = std::vector<float>(4, 1.0F);
    refused(chunk, "chunk.token_weights");
  }
  ASSERT_TRUE((*stream)->Push(next).ok());
  ASSERT_TRUE(Finish(*stream, declaration).ok());
  const auto sealed = statistics_->Seal("t", "s");
  ASSERT_TRUE(sealed.ok()) << sealed.status();
  EXPECT_EQ(sealed->tokens, 8);
}

TEST_P(KindsTest, KindAndWidthsAreOfTheStatistic) {
  const auto declaration = DeclareKind("s");
  auto stream = statistics_->Open(declaration);
  ASSERT_TRUE(stream.ok()) << stream.status();
  ASSERT_TRUE((*stream)->Push(ChunkFor(declaration.spec, 1, 4)).ok());
  auto other = declaration;
  other.stream_id = "two";
  other.spec.kind = compute::MomentKind::kSecondMoment;
  other.spec.paired_cols = 0;
  EXPECT_EQ(DetailsOf(statistics_->Open(other).status()).field, "header.kind");
  if (GetParam() == compute::MomentKind::kResidual) {
    other.spec = declaration.spec;
    other.spec.paired_cols = 8;
    EXPECT_EQ(DetailsOf(statistics_->Open(other).status()).field, "header.paired_cols");
  }
  ASSERT_TRUE(Finish(*stream, declaration).ok());
}

TEST_F(IngestTest, OneWriterAStreamAndALimitOfStreams) {
  const auto one = Declare("one");
  const auto two = Declare("two");
  auto first = statistics_->Open(one);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(absl::IsAborted(statistics_->Open(one).status()));
  auto second = statistics_->Open(two);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(DetailsOf(statistics_->Open(Declare("three")).status()).reason, "TOO_MANY_STREAMS");
  EXPECT_EQ(DetailsOf(statistics_->Seal("t", "s").status()).reason, "STREAM_OPEN");
  ASSERT_TRUE(Finish(*first, one).ok());
  ASSERT_TRUE(Finish(*second, two).ok());
  EXPECT_EQ(DetailsOf(statistics_->Seal("t", "s").status()).reason, "NO_TOKENS");
  ASSERT_TRUE(statistics_->Delete("t", "s").ok());
  EXPECT_TRUE(absl::IsNotFound(statistics_->Load("t", "s").status()));
}

TEST_F(IngestTest, CommitsReplaceTheirSnapshot) {
  const auto declaration = Declare();
  auto stream = statistics_->Open(declaration);
  ASSERT_TRUE(stream.ok());
  absl::Mutex mutex;
  absl::CondVar progressed;
  int64_t durable = 0;
  ActivationListener listener;
  listener.progressed = [&](const ActivationAck& ack) {
    absl::MutexLock lock(&mutex);
    durable = ack.durable_seq;
    progressed.Signal();
  };
  (*stream)->SetListener(std::move(listener));
  for (int seq = 1; seq <= 5; ++seq) {
    ASSERT_TRUE((*stream)->Push(Chunk(seq, 16)).ok());
    (*stream)->Flush();
    absl::MutexLock lock(&mutex);
    const absl::Time deadline = absl::Now() + absl::Seconds(30);
    while (durable != seq) ASSERT_FALSE(progressed.WaitWithDeadline(&mutex, deadline)) << seq;
  }
  ASSERT_TRUE(Finish(*stream, declaration).ok());
  const auto files = blobs_->List();
  ASSERT_TRUE(files.ok());
  EXPECT_EQ(files->size(), 1u);
}

class UploadTest : public IngestTest {
 protected:
  void SetUp() override {
    IngestTest::SetUp();
    JobRecord job;
    job.tenant = "t";
    job.job_id = "j";
    job.create_time = absl::UnixEpoch();
    job.recipe = compute::ResolveRecipe(compute::Recipe{}).value();
    LayerRecord layer;
    layer.layer_id = "l";
    layer.rows = 4;
    layer.cols = kCols;
    layer.recipe = job.recipe;
    job.layers = {layer};
    ASSERT_TRUE(jobs_->InsertJob(job, 10).ok());
  }

  absl::Status Append(WeightUpload& upload, int64_t offset, const std::string& data) {
    return upload.Append(offset, AsBytes(data), compute::Crc32c(data));
  }

  const LayerKey key_{"t", "j", "l"};
  const UploadDeclaration declaration_{compute::DType::kF32, 4, kCols};
  const std::string data_ = Chunk(1, 4).data;
  int completed_ = 0;
  std::unique_ptr<WeightUploads> NewUploads() {
    return std::make_unique<WeightUploads>(*jobs_, *blobs_, 1 << 20, 4,
                                           [this](const LayerKey&) { ++completed_; });
  }
};

TEST_F(UploadTest, ResumesWhereItWasCommitted) {
  auto uploads = NewUploads();
  {
    auto upload = uploads->Open(key_, declaration_);
    ASSERT_TRUE(upload.ok()) << upload.status();
    ASSERT_TRUE(Append(**upload, 0, data_.substr(0, 100)).ok());
    EXPECT_TRUE(absl::IsAborted(uploads->Open(key_, declaration_).status()));
  }
  uploads = NewUploads();
  EXPECT_EQ(uploads->Status(key_)->committed_size, 100);
  auto upload = uploads->Open(key_, declaration_);
  ASSERT_TRUE(upload.ok()) << upload.status();
  EXPECT_EQ(DetailsOf(Append(**upload, 0, data_)).reason, "OFFSET_MISMATCH");
  EXPECT_EQ(DetailsOf(Append(**upload, 100, data_)).field, "chunk.data");
  ASSERT_TRUE(Append(**upload, 100, data_.substr(100)).ok());
  const auto finished = (*upload)->Finish(compute::ToBytes(compute::Sha256::Of(data_)));
  ASSERT_TRUE(finished.ok()) << finished.status();
  EXPECT_TRUE(finished->complete);
  EXPECT_EQ(completed_, 1);
  upload->reset();
  EXPECT_EQ(DetailsOf(uploads->Open(key_, declaration_).status()).reason, "UPLOAD_COMPLETE");
  EXPECT_EQ(*blobs_->ReadAll(jobs_->GetJob("t", "j")->layers[0].weight), data_);
}

TEST_F(UploadTest, AnotherDigestStartsOver) {
  auto uploads = NewUploads();
  auto upload = uploads->Open(key_, declaration_);
  ASSERT_TRUE(upload.ok());
  ASSERT_TRUE(Append(**upload, 0, data_).ok());
  EXPECT_TRUE(absl::IsDataLoss((*upload)->Finish(std::string(32, 'x')).status()));
  upload->reset();
  EXPECT_EQ(uploads->Status(key_)->committed_size, 0);
  EXPECT_EQ(completed_, 0);
  EXPECT_TRUE(uploads->Open(key_, declaration_).ok());
}

}  // namespace
}  // namespace quantd::server
