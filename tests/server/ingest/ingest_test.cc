// Uploads and activation streams against the real stores in a temporary directory.

#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "compute/backend/registry.h"
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
  absl::Notification done;
  Executor executor(2);
  auto strand = std::make_shared<Strand>(executor);
  Strand* raw = strand.get();
  raw->Post([owner = std::move(strand), &done]() mutable {
    owner.reset();
    done.Notify();
  });
  done.WaitForNotification();
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
  void OpenStatistics() {
    statistics_.reset();
    StatisticsOptions options;
    options.commit.interval = absl::Hours(1);  // commits happen when asked for
    options.max_streams_per_tenant = 2;
    statistics_ = std::make_unique<Statistics>(
        *jobs_, *blobs_, *backends_.back(), executor_, options,
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
    absl::Notification done;
    absl::Status outcome;
    stream->Finish([&](const absl::Status& status) {
      outcome = status;
      done.Notify();
    });
    done.WaitForNotification();
    statistics_->Close(declaration);
    return outcome;
  }

  TempDirectory directory_;
  std::unique_ptr<JobStore> jobs_;
  std::unique_ptr<BlobStore> blobs_;
  std::vector<std::unique_ptr<compute::Backend>> backends_ =
      compute::OpenBackends({.cpu_threads = 2});
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
  EXPECT_EQ(resumed->tokens(), 1800);
  EXPECT_EQ(resumed->Serialize(), whole->Serialize());
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
