#include "client/cpp/client.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "google/rpc/error_details.pb.h"
#include "tests/client/fake_server.h"

namespace quantd::client {
namespace {

std::string RandomBytes(size_t size) {
  std::mt19937 random(7);
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  return bytes;
}

absl::Span<const std::byte> AsBytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

class ClientTest : public testing::Test {
 protected:
  ClientTest() {
    state_->info.set_tenant("default");
    state_->info.mutable_limits()->set_max_chunk_bytes(1000);
    state_->info.mutable_limits()->set_stream_credit_bytes(4000);
    state_->credit_bytes = 4000;
    server_ = std::make_unique<FakeServer>(state_);
    ConnectOptions options;
    options.address = server_->address();
    auto client = Client::Connect(options);
    EXPECT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }

  // 16 x 64 F32: 4096 bytes, five chunks.
  Layer WeightLayer() {
    Layer layer;
    layer.name = "tenants/default/jobs/j/layers/l";
    layer.rows = 16;
    layer.cols = 64;
    layer.dtype = compute::DType::kF32;
    state_->upload_size = 4096;
    return layer;
  }

  // Rows of 100 bytes, ten a chunk.
  ActivationStreamSpec Activations() {
    ActivationStreamSpec spec;
    spec.statistic = "s";
    spec.stream_id = "test";
    spec.dtype = compute::DType::kBF16;
    spec.cols = 50;
    return spec;
  }

  std::string DurableBytes() {
    const std::lock_guard lock(state_->mutex);
    std::string all;
    int64_t expected = 1;
    for (const auto& [seq, data] : state_->durable) {
      EXPECT_EQ(seq, expected++);
      all += data;
    }
    return all;
  }

  std::shared_ptr<FakeState> state_ = std::make_shared<FakeState>();
  std::unique_ptr<FakeServer> server_;
  std::unique_ptr<Client> client_;
};

TEST_F(ClientTest, ConnectLearnsTheTenantAndNamesFollow) {
  EXPECT_EQ(client_->server().tenant, "default");
  EXPECT_EQ(client_->JobName("j"), "tenants/default/jobs/j");
  EXPECT_EQ(client_->JobName("tenants/x/jobs/j"), "tenants/x/jobs/j");
  EXPECT_EQ(client_->StatisticName("s"), "tenants/default/statistics/s");
}

TEST_F(ClientTest, ConnectToNobodyFailsAtOnceAndNamesTheAddress) {
  ConnectOptions options;
  options.address = server_->address();
  server_.reset();
  const auto client = Client::Connect(options);
  EXPECT_TRUE(absl::IsUnavailable(client.status()));
  EXPECT_TRUE(absl::StrContains(client.status().message(), options.address)) << client.status();
}

TEST_F(ClientTest, SendsTheToken) {
  state_->expected_authorization = "Bearer secret";
  ConnectOptions options;
  options.address = server_->address();
  EXPECT_TRUE(absl::IsUnauthenticated(Client::Connect(options).status()));
  options.token = "secret";
  EXPECT_TRUE(Client::Connect(options).ok());
}

TEST_F(ClientTest, RefusesAnUnreadableCaFile) {
  ConnectOptions options;
  options.address = server_->address();
  options.ca_file = "/nonexistent/ca.pem";
  const auto client = Client::Connect(options);
  EXPECT_TRUE(absl::IsInvalidArgument(client.status()));
  EXPECT_TRUE(absl::StrContains(client.status().message(), options.ca_file));
}

TEST_F(ClientTest, CreateJobCarriesTheRecipeAndReadsTheFieldViolation) {
  google::rpc::BadRequest bad;
  bad.add_field_violations()->set_field("job.layers[0].cols");
  bad.mutable_field_violations(0)->set_description("expected a multiple of 32, got 100");
  state_->create_refusals.push_back(
      StatusWithDetails(grpc::StatusCode::INVALID_ARGUMENT, "invalid", {&bad}));
  JobSpec spec;
  spec.recipe.format = compute::Format::kInt4;
  spec.recipe.transform = compute::TransformKind::kWush;
  spec.recipe.solver = compute::Solver::kConditional;
  spec.recipe.scale_rule = compute::ScaleRule::kGaussianMse;
  spec.recipe.granularity = compute::Granularity::kGroup;
  spec.recipe.group_size = 64;
  spec.recipe.damping = 0.25;
  spec.recipe.seed = 9;
  spec.layers.emplace_back();
  spec.layers[0].layer_id = "l";
  spec.layers[0].cols = 100;
  const auto job = client_->CreateJob(spec);
  EXPECT_TRUE(absl::IsInvalidArgument(job.status()));
  EXPECT_TRUE(absl::StrContains(job.status().message(),
                                "field job.layers[0].cols: expected a multiple of 32, got 100"));
  EXPECT_EQ(state_->create_calls, 1);

  const v1::Recipe& recipe = state_->created.job().recipe();
  EXPECT_EQ(recipe.format(), v1::INT4);
  EXPECT_EQ(recipe.transform(), v1::WUSH);
  EXPECT_EQ(recipe.method(), v1::RTN);
  EXPECT_EQ(recipe.solver(), v1::CONDITIONAL);
  EXPECT_EQ(recipe.scale_rule(), v1::GAUSSIAN_MSE);
  EXPECT_EQ(recipe.granularity(), v1::GROUP);
  EXPECT_EQ(recipe.group_size(), 64);
  EXPECT_EQ(recipe.damping(), 0.25);
  EXPECT_EQ(recipe.seed(), 9u);
}

TEST_F(ClientTest, RepeatsCreateJobUnderTheSameRequestId) {
  state_->create_refusals.emplace_back(grpc::StatusCode::UNAVAILABLE, "draining");
  const auto job = client_->CreateJob(JobSpec());
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->job.name, "tenants/default/jobs/j1");
  EXPECT_EQ(state_->create_calls, 2);
  EXPECT_FALSE(state_->created.request_id().empty());
}

// A limit that is reached now: come back when the server says.
grpc::Status Exhausted(absl::Duration retry_after) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_nanos(
      static_cast<int>(absl::ToInt64Nanoseconds(retry_after % absl::Seconds(1))));
  retry.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(retry_after));
  return StatusWithDetails(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many", {&retry});
}

TEST_F(ClientTest, ComesBackToALimitWhenTheServerSays) {
  state_->create_refusals.push_back(Exhausted(absl::Milliseconds(300)));
  const absl::Time start = absl::Now();
  const auto job = client_->CreateJob(JobSpec());
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(300));
  EXPECT_EQ(state_->create_calls, 2);
}

TEST_F(ClientTest, DoesNotComeBackToALimitThatLastsTooLongOrForEver) {
  state_->create_refusals.push_back(Exhausted(absl::Hours(1)));
  EXPECT_TRUE(absl::IsResourceExhausted(client_->CreateJob(JobSpec()).status()));
  EXPECT_EQ(state_->create_calls, 1);
  state_->merge_results.emplace_back(grpc::StatusCode::RESOURCE_EXHAUSTED, "too large");
  EXPECT_TRUE(absl::IsResourceExhausted(client_->MergeStatistics("m", {"a", "b"}).status()));
}

TEST_F(ClientTest, ListsAllPages) {
  const auto jobs = client_->ListJobs();
  ASSERT_TRUE(jobs.ok()) << jobs.status();
  ASSERT_EQ(jobs->size(), 2u);
  EXPECT_EQ((*jobs)[1].name, "tenants/default/jobs/old");
}

TEST_F(ClientTest, DeletionWhoseAnswerWasLostIsDone) {
  state_->delete_results = {grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone"),
                            grpc::Status(grpc::StatusCode::NOT_FOUND, "no such job")};
  EXPECT_TRUE(client_->DeleteJob("j").ok());
  state_->delete_results = {grpc::Status(grpc::StatusCode::NOT_FOUND, "no such job")};
  EXPECT_TRUE(absl::IsNotFound(client_->DeleteJob("j")));
}

TEST_F(ClientTest, MergeWhoseAnswerWasLostIsDone) {
  const grpc::Status exists(grpc::StatusCode::ALREADY_EXISTS, "m exists already");
  state_->merge_results = {grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone"), exists};
  const auto merged = client_->MergeStatistics("m", {"a", "b"});
  EXPECT_TRUE(merged.ok()) << merged.status();
  state_->merge_results = {exists};
  EXPECT_TRUE(absl::IsAlreadyExists(client_->MergeStatistics("m", {"a", "b"}).status()));
}

TEST_F(ClientTest, UploadsInChunksAndReportsProgress) {
  const std::string weights = RandomBytes(4096);
  const auto source = MemorySource(AsBytes(weights));
  std::vector<int64_t> progress;
  const absl::Status status =
      client_->UploadWeights(WeightLayer(), *source, [&](int64_t done, int64_t total) {
        EXPECT_EQ(total, 4096);
        progress.push_back(done);
      });
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(state_->uploaded, weights);
  EXPECT_TRUE(state_->upload_complete);
  EXPECT_EQ(progress, (std::vector<int64_t>{1000, 2000, 3000, 4000, 4096}));
}

TEST_F(ClientTest, UploadGoesOnWhereItBroke) {
  state_->upload_faults = {2, 0, 1};
  const std::string weights = RandomBytes(4096);
  const auto source = MemorySource(AsBytes(weights));
  const absl::Status status = client_->UploadWeights(WeightLayer(), *source);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(state_->uploaded, weights);
  EXPECT_EQ(state_->upload_first_offsets, (std::vector<int64_t>{0, 2000, 3000}));
}

TEST_F(ClientTest, UploadGoesOnWhereAnEarlierProcessStopped) {
  const std::string weights = RandomBytes(4096);
  const Layer layer = WeightLayer();
  state_->uploaded = weights.substr(0, 1234);
  const auto source = MemorySource(AsBytes(weights));
  const absl::Status status = client_->UploadWeights(layer, *source);
  ASSERT_TRUE(status.ok()) << status;  // the fake checks the digest of all 4096 bytes
  EXPECT_EQ(state_->uploaded, weights);
  EXPECT_EQ(state_->upload_first_offsets, (std::vector<int64_t>{1234}));
}

TEST_F(ClientTest, UploadThatIsCompleteIsNotRepeated) {
  const Layer layer = WeightLayer();
  state_->upload_complete = true;
  const std::string weights = RandomBytes(4096);
  const auto source = MemorySource(AsBytes(weights));
  EXPECT_TRUE(client_->UploadWeights(layer, *source).ok());
  EXPECT_TRUE(state_->uploaded.empty());
}

TEST_F(ClientTest, UploadRefusedIsNotRepeated) {
  state_->upload_refusal = grpc::Status(grpc::StatusCode::ABORTED, "another writer");
  const std::string weights = RandomBytes(4096);
  const auto source = MemorySource(AsBytes(weights));
  EXPECT_TRUE(absl::IsAborted(client_->UploadWeights(WeightLayer(), *source)));
}

TEST_F(ClientTest, UploadOfTheWrongSizeIsRefusedHere) {
  const std::string weights = RandomBytes(4095);
  const auto source = MemorySource(AsBytes(weights));
  const absl::Status status = client_->UploadWeights(WeightLayer(), *source);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_EQ(status.message(), "expected 4096 bytes (16 x 64 F32), got 4095");
}

TEST_F(ClientTest, UploadGivesUpWhenTheBudgetIsSpent) {
  ConnectOptions options;
  options.address = server_->address();
  options.retry_for = absl::Milliseconds(100);
  auto client = Client::Connect(options);
  ASSERT_TRUE(client.ok());
  server_.reset();
  const std::string weights = RandomBytes(4096);
  const auto source = MemorySource(AsBytes(weights));
  EXPECT_TRUE(absl::IsUnavailable((*client)->UploadWeights(WeightLayer(), *source)));
}

TEST_F(ClientTest, StreamsActivationsWithinTheCredit) {
  state_->chunks_per_ack = 3;
  const std::string rows = RandomBytes(12'300);  // 12 chunks of 1000 and one of 300
  const auto source = MemorySource(AsBytes(rows));
  int64_t last = 0;
  const absl::Status status =
      client_->StreamActivations(Activations(), *source, [&](int64_t done, int64_t total) {
        EXPECT_GE(done, last);
        EXPECT_EQ(total, 12'300);
        last = done;
      });
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(DurableBytes(), rows);
  EXPECT_EQ(last, 12'300);
  EXPECT_LE(state_->largest_unacknowledged, 4000);
}

TEST_F(ClientTest, SendsAgainWhatWasNotDurableWhenTheStreamBroke) {
  state_->durable_on_ack = false;  // received, and lost with the stream
  state_->activation_faults = {5, 0, 3};
  const std::string rows = RandomBytes(8'000);
  const auto source = MemorySource(AsBytes(rows));
  const absl::Status status = client_->StreamActivations(Activations(), *source);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(DurableBytes(), rows);
  ASSERT_EQ(state_->received_seqs.size(), 4u);
  EXPECT_EQ(state_->received_seqs[0], (std::vector<int64_t>{1, 2, 3, 4, 5}));
  EXPECT_TRUE(state_->received_seqs[1].empty());
  EXPECT_EQ(state_->received_seqs[2], (std::vector<int64_t>{1, 2, 3}));
  EXPECT_EQ(state_->received_seqs[3], (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8}));
}

TEST_F(ClientTest, DoesNotSendAgainWhatIsDurable) {
  state_->activation_faults = {5, 2};
  const std::string rows = RandomBytes(8'000);
  const auto source = MemorySource(AsBytes(rows));
  ASSERT_TRUE(client_->StreamActivations(Activations(), *source).ok());
  EXPECT_EQ(DurableBytes(), rows);
  EXPECT_EQ(state_->received_seqs,
            (std::vector<std::vector<int64_t>>{{1, 2, 3, 4, 5}, {6, 7}, {8}}));
}

TEST_F(ClientTest, ContinuesAStreamOfAnEarlierProcess) {
  const std::string rows = RandomBytes(5'000);
  for (int64_t seq = 1; seq <= 3; ++seq) state_->durable[seq] = rows.substr((seq - 1) * 1000, 1000);
  const auto source = MemorySource(AsBytes(rows));
  ASSERT_TRUE(client_->StreamActivations(Activations(), *source).ok());
  EXPECT_EQ(DurableBytes(), rows);
  EXPECT_EQ(state_->received_seqs, (std::vector<std::vector<int64_t>>{{4, 5}}));
}

TEST_F(ClientTest, AsksForDurabilityWhenTooMuchIsKept) {
  state_->durable_on_ack = false;
  ConnectOptions options;
  options.address = server_->address();
  options.keep_bytes = 3000;
  auto client = Client::Connect(options);
  ASSERT_TRUE(client.ok());
  const std::string rows = RandomBytes(10'000);
  const auto source = MemorySource(AsBytes(rows));
  ASSERT_TRUE((*client)->StreamActivations(Activations(), *source).ok());
  EXPECT_EQ(DurableBytes(), rows);
  EXPECT_GE(state_->flushes, 2);
}

TEST_F(ClientTest, FlushReturnsWhenEverythingIsDurable) {
  state_->durable_on_ack = false;
  auto stream = client_->OpenActivationStream(Activations());
  ASSERT_TRUE(stream.ok()) << stream.status();
  ASSERT_TRUE((*stream)->Send(10, RandomBytes(1000)).ok());
  EXPECT_EQ((*stream)->durable_seq(), 0);
  ASSERT_TRUE((*stream)->Flush().ok());
  EXPECT_EQ((*stream)->durable_seq(), 1);
  EXPECT_EQ(DurableBytes().size(), 1000u);
  ASSERT_TRUE((*stream)->Close().ok());
}

TEST_F(ClientTest, AnotherWriterIsAnErrorAtFirstAndWaitedForAfterABreak) {
  state_->activation_refusals = {grpc::Status(grpc::StatusCode::ABORTED, "another writer")};
  EXPECT_TRUE(absl::IsAborted(client_->OpenActivationStream(Activations()).status()));

  auto stream = client_->OpenActivationStream(Activations());
  ASSERT_TRUE(stream.ok());
  {
    const std::lock_guard lock(state_->mutex);
    state_->activation_refusals = {grpc::Status(grpc::StatusCode::UNAVAILABLE, "restarting"),
                                   grpc::Status(grpc::StatusCode::ABORTED, "another writer")};
  }
  const int port = server_->port();
  server_.reset();
  server_ = std::make_unique<FakeServer>(state_, port);
  ASSERT_TRUE((*stream)->Send(10, RandomBytes(1000)).ok());
  ASSERT_TRUE((*stream)->Close().ok());
  EXPECT_EQ(DurableBytes(), RandomBytes(1000));
}

TEST_F(ClientTest, RefusalsEndTheStreamWithTheirReason) {
  google::rpc::BadRequest bad;
  bad.add_field_violations()->set_field("header.cols");
  bad.mutable_field_violations(0)->set_description("expected 64, got 50");
  state_->activation_refusals = {
      StatusWithDetails(grpc::StatusCode::INVALID_ARGUMENT, "expected 64, got 50", {&bad})};
  const std::string rows = RandomBytes(1000);
  const auto source = MemorySource(AsBytes(rows));
  const absl::Status status = client_->StreamActivations(Activations(), *source);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_EQ(status.message(), "field header.cols: expected 64, got 50");
}

TEST_F(ClientTest, StreamsThroughRestartsOfTheServer) {
  std::atomic<bool> done = false;
  const std::string rows = RandomBytes(600'000);
  const auto source = MemorySource(AsBytes(rows));
  absl::Status status;
  std::thread streaming([&] {
    status = client_->StreamActivations(Activations(), *source);
    done = true;
  });
  const int port = server_->port();
  for (int i = 0; i < 3 && !done; ++i) {
    size_t seen = 0;
    while (!done && seen < 100 * static_cast<size_t>(i + 1)) {
      std::this_thread::yield();
      const std::lock_guard lock(state_->mutex);
      seen = state_->durable.size();
    }
    server_.reset();
    server_ = std::make_unique<FakeServer>(state_, port);
  }
  streaming.join();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(DurableBytes(), rows);
  EXPECT_GE(state_->received_seqs.size(), 2u);
}

TEST_F(ClientTest, ImportsASecondMoment) {
  MomentSpec spec;
  spec.statistic = "m";
  spec.cols = 20;
  spec.tokens = 77;
  const std::string matrix = RandomBytes(1600);
  const auto source = MemorySource(AsBytes(matrix));
  state_->import_faults_after_commit = 1;  // the answer is lost, the statistic is there
  const auto statistic = client_->ImportStatistic(spec, *source);
  ASSERT_TRUE(statistic.ok()) << statistic.status();
  EXPECT_EQ(statistic->tokens, 77);
  EXPECT_EQ(state_->imported, matrix);
  EXPECT_EQ(state_->imported_header.normalization(), v1::MEAN);
  EXPECT_EQ(state_->imported_header.dtype(), v1::F32);
  EXPECT_TRUE(absl::IsAlreadyExists(client_->ImportStatistic(spec, *source).status()));
}

TEST_F(ClientTest, ExportsWhatWasImported) {
  MomentSpec spec;
  spec.statistic = "m";
  spec.kind = StatisticKind::kResidualMoment;
  spec.cols = 20;
  spec.paired_cols = 6;
  spec.dtype = compute::DType::kF64;
  spec.mean = false;
  spec.tokens = 77;
  const std::string matrix = RandomBytes(6 * 20 * 8);
  const auto source = MemorySource(AsBytes(matrix));
  ASSERT_TRUE(client_->ImportStatistic(spec, *source).ok());
  EXPECT_EQ(state_->imported_header.kind(), v1::RESIDUAL_MOMENT);
  EXPECT_EQ(state_->imported_header.paired_cols(), 6);

  using Fault = FakeState::ExportFault;
  state_->export_faults = {Fault::kBreaks, Fault::kBreaks};
  const auto moment = client_->ExportStatistic("m");
  ASSERT_TRUE(moment.ok()) << moment.status();
  EXPECT_EQ(moment->matrix, matrix);
  EXPECT_EQ(moment->sample, "");
  EXPECT_EQ(moment->spec.kind, StatisticKind::kResidualMoment);
  EXPECT_EQ(moment->spec.rows(), 6);
  EXPECT_EQ(moment->spec.tokens, 77);
  EXPECT_FALSE(moment->spec.mean);
  for (const Fault fault :
       {Fault::kWrongCrc, Fault::kWrongDigest, Fault::kCutShort, Fault::kHostileHeader}) {
    state_->export_faults = {fault};
    EXPECT_TRUE(absl::IsDataLoss(client_->ExportStatistic("m").status()))
        << static_cast<int>(fault);
  }
}

TEST_F(ClientTest, StreamsPairedRowsAsOneChunk) {
  ActivationStreamSpec spec = Activations();
  spec.kind = StatisticKind::kResidualMoment;
  spec.paired_cols = 20;  // 40 bytes a row beside 100
  const std::string rows = RandomBytes(100 * 90);
  const std::string pairs = RandomBytes(40 * 90);
  const auto data = MemorySource(AsBytes(rows));
  const auto paired = MemorySource(AsBytes(pairs));
  const absl::Status status =
      client_->StreamActivations(spec, {.data = data.get(), .paired = paired.get()});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(DurableBytes(), rows);
  EXPECT_EQ(state_->paired, pairs);

  const auto refused = [&](const ActivationSources& sources) {
    return std::string(client_->StreamActivations(spec, sources).message());
  };
  EXPECT_NE(refused({.data = data.get()}).find("paired data: expected for residual_moment"),
            std::string::npos);
  const auto fewer = MemorySource(AsBytes(pairs).subspan(0, 40 * 89));
  EXPECT_NE(refused({.data = data.get(), .paired = fewer.get()}).find("expected 90 rows"),
            std::string::npos);
  spec.kind = StatisticKind::kWeighted;
  spec.paired_cols = 0;
  EXPECT_NE(refused({.data = data.get()}).find("token weights"), std::string::npos);
}

TEST_F(ClientTest, WatchesThroughBrokenStreamsUntilTheJobHasEnded) {
  for (const v1::JobState job_state : {v1::ACCEPTING, v1::RUNNING, v1::SUCCEEDED}) {
    v1::WatchJobResponse update;
    update.mutable_job()->set_state(job_state);
    state_->updates.push_back(update);
  }
  v1::Job& waiting = *state_->updates[1].mutable_job();
  waiting.set_queue_position(2);
  waiting.set_eta_seconds(1.5);
  waiting.set_priority(v1::PRIORITY_HIGH);
  waiting.mutable_quota_wait()->set_quota("max_running_layers");
  waiting.mutable_quota_wait()->mutable_until()->set_seconds(86400);
  state_->watch_faults = {0, 1, 2};
  std::vector<JobUpdate> seen;
  const auto job = client_->WatchJob("j", [&](const JobUpdate& update) { seen.push_back(update); });
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->state, JobState::kSucceeded);
  ASSERT_EQ(seen.size(), 0u + 1 + 2 + 3);
  EXPECT_EQ(seen[2].job.queue_position, 2);
  EXPECT_EQ(seen[2].job.eta_seconds, 1.5);
  EXPECT_EQ(seen[2].job.priority, Priority::kHigh);
  ASSERT_TRUE(seen[2].job.quota_wait.has_value());
  EXPECT_EQ(seen[2].job.quota_wait->quota, "max_running_layers");
  EXPECT_EQ(seen[2].job.quota_wait->until, absl::FromUnixSeconds(86400));
}

TEST_F(ClientTest, InterruptEndsAWatch) {
  std::thread interrupting([&] { client_->Interrupt(); });
  EXPECT_TRUE(absl::IsCancelled(client_->WatchJob("j", nullptr).status()));
  interrupting.join();
  EXPECT_TRUE(absl::IsCancelled(client_->ListJobs().status()));
}

class ArtifactTest : public ClientTest {
 protected:
  ArtifactTest() { state_->artifacts[name_] = content_; }
  absl::StatusOr<std::string> Read() {
    std::string all;
    absl::Status status = client_->ReadArtifact(name_, [&](absl::string_view data) {
      all.append(data.data(), data.size());
      return absl::OkStatus();
    });
    if (!status.ok()) return status;
    return all;
  }
  const std::string name_ = "tenants/default/jobs/j/artifacts/l.safetensors";
  const std::string content_ = RandomBytes(1050);
};

TEST_F(ArtifactTest, ReadsThroughBrokenStreams) {
  state_->read_faults = {3, 0, 2};
  const auto all = Read();
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(*all, content_);
}

TEST_F(ArtifactTest, EmptyArtifactsAreReadToo) {
  state_->artifacts[name_] = "";
  const auto all = Read();
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_TRUE(all->empty());
}

TEST_F(ArtifactTest, NoticesAWrongCrc) {
  state_->corrupt_chunk = true;
  EXPECT_TRUE(absl::IsDataLoss(Read().status()));
}

TEST_F(ArtifactTest, NoticesAWrongDigest) {
  state_->corrupt_digest = true;
  EXPECT_TRUE(absl::IsDataLoss(Read().status()));
}

TEST_F(ArtifactTest, FilesAppearWhole) {
  const std::filesystem::path folder =
      std::filesystem::path(testing::TempDir()) / "quantd_client_test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const std::string path = folder / "result.safetensors";
  state_->corrupt_digest = true;
  EXPECT_FALSE(client_->DownloadArtifact(name_, path).ok());
  EXPECT_TRUE(std::filesystem::is_empty(folder));
  state_->corrupt_digest = false;
  ASSERT_TRUE(client_->DownloadArtifact(name_, path).ok());
  std::ifstream file(path, std::ios::binary);
  const std::string stored((std::istreambuf_iterator<char>(file)),
                           std::istreambuf_iterator<char>());
  EXPECT_EQ(stored, content_);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace quantd::client
