// What the service moves, over loopback against a real quantd, beside what bare gRPC moves with the
// same messages in the same run. Prints one JSON object a line.
//
//   service_bench [--seconds S]      S: of every single measurement (default 2)

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "compute/tensor/checksum.h"
#include "nlohmann/json.hpp"
#include "quantd/v1/calibration.grpc.pb.h"
#include "quantd/v1/jobs.grpc.pb.h"
#include "quantd/v1/results.grpc.pb.h"
#include "quantd/v1/weights.grpc.pb.h"
#include "tests/bench/ack_latency.h"
#include "tests/bench/bare_server.h"
#include "tests/bench/byte_stream.h"
#include "tests/bench/service_process.h"

namespace quantd::bench {
namespace {

using nlohmann::ordered_json;

constexpr int64_t kMiB = 1 << 20;
constexpr char kParent[] = "tenants/default";

void Print(const ordered_json& line) { std::cout << line.dump() << std::endl; }

absl::Status ToStatus(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// `rows` x `cols` values of BF16: Gaussian, so that no shortcut for zeros helps.
std::string GaussianBf16(int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::string data(static_cast<size_t>(rows * cols * 2), '\0');
  for (size_t i = 0; i < data.size(); i += 2) {
    const float value = normal(random);
    uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    data[i] = static_cast<char>(bits >> 16);
    data[i + 1] = static_cast<char>(bits >> 24);
  }
  return data;
}

// A message whose last field is a large byte string: `small` holds the other fields of the inner
// message, which is field `outer` of the request and takes `data` as its field `inner`.
grpc::ByteBuffer Wrap(int outer, const std::string& small, int inner, const std::string& data) {
  const auto varint = [](std::string& out, uint64_t value) {
    for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
    out.push_back(static_cast<char>(value));
  };
  std::string field;
  varint(field, static_cast<uint64_t>(inner) << 3 | 2);
  varint(field, data.size());
  std::string prefix;
  varint(prefix, static_cast<uint64_t>(outer) << 3 | 2);
  varint(prefix, small.size() + field.size() + data.size());
  return ToBytes(prefix + small + field, data, "");
}

struct Endpoints {
  std::shared_ptr<grpc::Channel> quantd;
  std::shared_ptr<grpc::Channel> bare;
};

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

using PlanOfRound = std::function<StreamPlan(int round)>;

// Runs a plan against quantd and one against the bare server in turn, three times, and prints the
// medians. `flop_per_byte`: what a byte of payload costs to compute; 0 where nothing is computed.
absl::Status Compare(const Endpoints& endpoints, const std::string& name,
                     const PlanOfRound& plan_of, const PlanOfRound& bare_plan_of,
                     double flop_per_byte, const ordered_json& more) {
  std::vector<double> rates;
  std::vector<double> bare_rates;
  for (int round = 0; round < 3; ++round) {
    const auto real = RunStream(endpoints.quantd, plan_of(round));
    if (!real.ok()) return real.status();
    const auto bare = RunStream(endpoints.bare, bare_plan_of(round));
    if (!bare.ok()) return bare.status();
    rates.push_back(static_cast<double>(real->bytes) / real->seconds / 1e9);
    bare_rates.push_back(static_cast<double>(bare->bytes) / bare->seconds / 1e9);
  }
  ordered_json line = {{"name", name},
                       {"value", Median(rates)},
                       {"unit", "GB/s"},
                       {"bare_grpc", Median(bare_rates)},
                       {"ratio", Median(rates) / Median(bare_rates)}};
  if (flop_per_byte > 0.0) line["gflop_per_second"] = Median(rates) * flop_per_byte;
  line.update(more);
  Print(line);
  return absl::OkStatus();
}

// StreamActivations -----------------------------------------------------------------------------

absl::Status DeleteStatistic(const Endpoints& endpoints, const std::string& name) {
  grpc::ClientContext context;
  v1::DeleteStatisticRequest request;
  request.set_name(name);
  google::protobuf::Empty response;
  return ToStatus(
      v1::Calibration::NewStub(endpoints.quantd)->DeleteStatistic(&context, request, &response));
}

constexpr int kBlock = 32;

// A chunk that is sent again and again, under new numbers.
struct TokenChunk {
  TokenChunk(int64_t rows, int64_t cols)
      : rows(rows),
        cols(cols),
        data(GaussianBf16(rows, cols, 1)),
        crc32c(compute::Crc32c(absl::string_view(data))) {}

  const int64_t rows;
  const int64_t cols;
  const std::string data;
  const uint32_t crc32c;
};

// A shared-memory region whose slots all hold one chunk's bytes, as a trainer's copies from its
// device would; unlinked at the end.
class FilledRegion {
 public:
  static constexpr int64_t kSlots = 16;

  static absl::StatusOr<std::unique_ptr<FilledRegion>> Create(const std::string& data) {
    auto region = std::unique_ptr<FilledRegion>(new FilledRegion);
    const int fd = shm_open(region->path_.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600);
    if (fd < 0) return absl::ErrnoToStatus(errno, region->path_);
    absl::Status status;
    const auto size = static_cast<int64_t>(data.size());
    for (int64_t slot = 0; slot < kSlots && status.ok(); ++slot) {
      if (pwrite(fd, data.data(), data.size(), slot * size) != size) {
        status = absl::ErrnoToStatus(errno, region->path_);
      }
    }
    close(fd);
    if (!status.ok()) return status;
    return region;
  }
  ~FilledRegion() { shm_unlink(path_.c_str()); }

  std::string name() const { return path_.substr(1); }

 private:
  FilledRegion() = default;

  const std::string path_ = absl::StrCat("/quantd.default.service_bench-", getpid());
};

// Chunks in `region`, or where it is null, in their messages.
StreamPlan IngestPlan(const std::string& statistic, v1::MomentLayout layout,
                      const TokenChunk& tokens, const FilledRegion* region, double seconds) {
  v1::StreamActivationsRequest header;
  header.mutable_header()->set_statistic(statistic);
  header.mutable_header()->set_stream_id("bench");
  header.mutable_header()->set_dtype(v1::BF16);
  header.mutable_header()->set_cols(tokens.cols);
  header.mutable_header()->set_layout(layout);
  if (layout != v1::FULL) header.mutable_header()->set_block_size(kBlock);
  if (region != nullptr) header.mutable_header()->set_shared_region(region->name());
  StreamPlan plan;
  plan.method = "/quantd.v1.Calibration/StreamActivations";
  plan.header = ToBytes(header.SerializeAsString());
  plan.chunk_bytes = static_cast<int64_t>(tokens.data.size());
  plan.seconds = seconds;
  plan.keeps_credit = true;
  plan.chunk = [&tokens, region](int64_t number) {
    v1::StreamActivationsRequest request;
    v1::ActivationChunk& fields = *request.mutable_chunk();
    fields.set_seq(number);
    fields.set_rows(tokens.rows);
    fields.set_crc32c(tokens.crc32c);
    if (region == nullptr) {
      return Wrap(v1::StreamActivationsRequest::kChunkFieldNumber, fields.SerializeAsString(),
                  v1::ActivationChunk::kDataFieldNumber, tokens.data);
    }
    const auto size = static_cast<int64_t>(tokens.data.size());
    fields.mutable_shared()->set_offset(number % FilledRegion::kSlots * size);
    fields.mutable_shared()->set_bytes(size);
    return ToBytes(request.SerializeAsString());
  };
  return plan;
}

// `region`: null for chunks that come with their messages, which is what the bare server gets in
// either case.
absl::Status BenchIngest(const Endpoints& endpoints, const TokenChunk& tokens,
                         v1::MomentLayout layout, const FilledRegion* region, double seconds) {
  const bool full = layout == v1::FULL;
  const std::string name = absl::StrCat("ingest_", region == nullptr ? "" : "shared_memory_",
                                        "bf16_", tokens.cols, full ? "_full" : "_block_diagonal");
  const auto statistic = [&](int round) {
    return absl::StrCat(kParent, "/statistics/", name, "-", round);
  };
  const auto plan_from = [&](const FilledRegion* from) {
    return [&, from](int round) {
      return IngestPlan(statistic(round), layout, tokens, from, seconds);
    };
  };
  // One triangle of x x^T, of the whole row or of its blocks; a multiplication and an addition
  // each.
  const double flop_per_byte = static_cast<double>(full ? tokens.cols + 1 : kBlock + 1) / 2;
  absl::Status status =
      Compare(endpoints, name, plan_from(region), plan_from(nullptr), flop_per_byte,
              {{"message_bytes", tokens.data.size()},
               {"tokens_per_message", tokens.rows},
               {"durable", true}});
  for (int round = 0; round < 3; ++round) {
    status.Update(DeleteStatistic(endpoints, statistic(round)));
  }
  return status;
}

absl::Status BenchIngests(const Endpoints& endpoints, double seconds) {
  for (const int64_t cols : {768, 4096}) {
    const TokenChunk tokens(kMiB / (2 * cols), cols);
    const auto region = FilledRegion::Create(tokens.data);
    if (!region.ok()) return region.status();
    for (const v1::MomentLayout layout : {v1::BLOCK_DIAGONAL, v1::FULL}) {
      absl::Status status = BenchIngest(endpoints, tokens, layout, nullptr, seconds);
      if (status.ok() && cols == 4096) {
        status = BenchIngest(endpoints, tokens, layout, region->get(), seconds);
      }
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

// From the write of a chunk to its durable acknowledgement: where every chunk is flushed, and where
// the server commits by its own rules (durability.commit_bytes and commit_interval_ms).
absl::Status BenchAcks(const Endpoints& endpoints, double seconds) {
  for (const int64_t cols : {768, 4096}) {
    const TokenChunk tokens(kMiB / (2 * cols), cols);
    for (const bool flushes : {true, false}) {
      const std::string name =
          absl::StrCat("ack_latency_bf16_", cols, "_full_", flushes ? "flushed" : "streaming");
      AckStream plan;
      plan.header.set_statistic(absl::StrCat(kParent, "/statistics/", name));
      plan.header.set_stream_id("bench");
      plan.header.set_dtype(v1::BF16);
      plan.header.set_cols(cols);
      plan.header.set_layout(v1::FULL);
      plan.chunk.set_rows(tokens.rows);
      plan.chunk.set_data(tokens.data);
      plan.chunk.set_crc32c(tokens.crc32c);
      plan.seconds = flushes ? seconds : 3 * seconds;  // some commits, a second apart
      plan.flushes = flushes;
      const auto latencies = MeasureAcks(endpoints.quantd, plan);
      if (!latencies.ok()) return latencies.status();
      const auto quantile = [&](double q) {
        return (*latencies)[static_cast<size_t>(q * static_cast<double>(latencies->size() - 1))];
      };
      Print({{"name", name},
             {"value", quantile(0.5)},
             {"unit", "s"},
             {"p99", quantile(0.99)},
             {"max", latencies->back()},
             {"chunks", latencies->size()},
             {"chunk_bytes", tokens.data.size()}});
      absl::Status deleted = DeleteStatistic(endpoints, plan.header.statistic());
      if (!deleted.ok()) return deleted;
    }
  }
  return absl::OkStatus();
}

// UploadWeights ---------------------------------------------------------------------------------

struct NewLayer {
  std::string id;
  int64_t rows;
  int64_t cols;
  v1::DType dtype;
  std::string statistic;
};

absl::StatusOr<std::string> CreateJob(const Endpoints& endpoints, const NewLayer& described,
                                      v1::Transform transform) {
  v1::CreateJobRequest request;
  request.set_parent(kParent);
  request.mutable_job()->mutable_recipe()->set_format(v1::MXFP4);
  request.mutable_job()->mutable_recipe()->set_transform(transform);
  v1::Layer* layer = request.mutable_job()->add_layers();
  layer->set_layer_id(described.id);
  layer->set_rows(described.rows);
  layer->set_cols(described.cols);
  layer->set_dtype(described.dtype);
  layer->set_statistic(described.statistic);
  grpc::ClientContext context;
  v1::CreateJobResponse response;
  const grpc::Status status =
      v1::Jobs::NewStub(endpoints.quantd)->CreateJob(&context, request, &response);
  if (!status.ok()) return ToStatus(status);
  return response.job().name();
}

absl::Status DeleteJob(const Endpoints& endpoints, const std::string& name) {
  grpc::ClientContext context;
  v1::DeleteJobRequest request;
  request.set_name(name);
  google::protobuf::Empty response;
  return ToStatus(v1::Jobs::NewStub(endpoints.quantd)->DeleteJob(&context, request, &response));
}

StreamPlan UploadPlan(const std::string& layer, const NewLayer& described,
                      const std::vector<std::string>& chunks, const std::string& sha256) {
  v1::UploadWeightsRequest header;
  header.mutable_header()->set_layer(layer);
  header.mutable_header()->set_dtype(described.dtype);
  header.mutable_header()->set_rows(described.rows);
  header.mutable_header()->set_cols(described.cols);
  StreamPlan plan;
  plan.method = "/quantd.v1.Weights/UploadWeights";
  plan.header = ToBytes(header.SerializeAsString());
  plan.chunk_bytes = static_cast<int64_t>(chunks.front().size());
  plan.chunks = static_cast<int64_t>(chunks.size());
  plan.chunk = [&chunks](int64_t number) {
    const std::string& data = chunks[number - 1];
    v1::UploadChunk fields;
    fields.set_offset((number - 1) * static_cast<int64_t>(chunks.front().size()));
    fields.set_crc32c(compute::Crc32c(absl::string_view(data)));
    return Wrap(v1::UploadWeightsRequest::kChunkFieldNumber, fields.SerializeAsString(),
                v1::UploadChunk::kDataFieldNumber, data);
  };
  plan.last = [sha256] {
    v1::UploadWeightsRequest finish;
    finish.mutable_finish()->set_sha256(sha256);
    return ToBytes(finish.SerializeAsString());
  };
  return plan;
}

std::string Sha256(const std::vector<std::string>& chunks) {
  compute::Sha256 hash;
  for (const std::string& chunk : chunks) hash.Update(absl::string_view(chunk));
  const compute::Sha256Digest digest = hash.Digest();
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

absl::Status BenchUpload(const Endpoints& endpoints) {
  // Waits for a statistic that never comes, so that nothing is computed beside the upload.
  const NewLayer described{"w", 4096, 16384, v1::BF16, absl::StrCat(kParent, "/statistics/never")};
  std::vector<std::string> chunks(128, GaussianBf16(64, 8192, 2));
  const std::string sha256 = Sha256(chunks);
  std::vector<std::string> jobs;
  for (int round = 0; round < 3; ++round) {
    auto job = CreateJob(endpoints, described, v1::IDENTITY);
    if (!job.ok()) return job.status();
    jobs.push_back(*std::move(job));
  }
  const auto plan_of = [&](int round) {
    return UploadPlan(absl::StrCat(jobs[round], "/layers/w"), described, chunks, sha256);
  };
  absl::Status status = Compare(
      endpoints, "upload_weights", plan_of, plan_of, /*flop_per_byte=*/0.0,
      {{"message_bytes", chunks.front().size()}, {"matrix_bytes", 128 * kMiB}, {"durable", true}});
  for (const std::string& job : jobs) status.Update(DeleteJob(endpoints, job));
  return status;
}

// The whole round trip --------------------------------------------------------------------------

// Seconds by step; each ends where the client knows its outcome.
using Steps = std::vector<std::pair<std::string, double>>;

class RoundTrip {
 public:
  RoundTrip(const Endpoints& endpoints, const std::string& id)
      : endpoints_(endpoints), statistic_(absl::StrCat(kParent, "/statistics/", id)) {}

  absl::StatusOr<Steps> Run() {
    const auto step = [this](const char* name, absl::Status (RoundTrip::*action)()) {
      const absl::Time started = absl::Now();
      absl::Status status = (this->*action)();
      steps_.emplace_back(name, absl::ToDoubleSeconds(absl::Now() - started));
      return status;
    };
    absl::Status status = step("create", &RoundTrip::Create);
    if (status.ok()) status = step("upload", &RoundTrip::Upload);
    if (status.ok()) status = step("stream", &RoundTrip::Stream);
    if (status.ok()) status = step("seal", &RoundTrip::Seal);
    if (status.ok()) status = step("quantize", &RoundTrip::Wait);
    if (status.ok()) status = step("download", &RoundTrip::Download);
    if (status.ok()) status = step("report", &RoundTrip::Report);
    if (!status.ok()) return status;
    status = DeleteJob(endpoints_, job_);
    status.Update(DeleteStatistic(endpoints_, statistic_));
    if (!status.ok()) return status;
    return steps_;
  }

 private:
  static constexpr int64_t kSize = 768;
  static constexpr int64_t kTokens = 4096;

  absl::Status Create() {
    described_ = {"w", kSize, kSize, v1::BF16, statistic_};
    auto job = CreateJob(endpoints_, described_, v1::WUSH);
    if (!job.ok()) return job.status();
    job_ = *std::move(job);
    layer_ = absl::StrCat(job_, "/layers/w");
    return absl::OkStatus();
  }

  absl::Status Upload() {
    const std::vector<std::string> chunks = {weight_};
    return RunStream(endpoints_.quantd, UploadPlan(layer_, described_, chunks, Sha256(chunks)))
        .status();
  }

  absl::Status Stream() {
    constexpr int64_t kRows = 512;
    v1::StreamActivationsRequest header;
    header.mutable_header()->set_statistic(statistic_);
    header.mutable_header()->set_stream_id("bench");
    header.mutable_header()->set_dtype(v1::BF16);
    header.mutable_header()->set_cols(kSize);
    StreamPlan plan;
    plan.method = "/quantd.v1.Calibration/StreamActivations";
    plan.header = ToBytes(header.SerializeAsString());
    plan.chunk_bytes = kRows * kSize * 2;
    plan.chunks = kTokens / kRows;
    plan.keeps_credit = true;
    plan.chunk = [this](int64_t number) {
      const std::string& data = tokens_[number - 1];
      v1::ActivationChunk fields;
      fields.set_seq(number);
      fields.set_rows(kRows);
      fields.set_crc32c(compute::Crc32c(absl::string_view(data)));
      return Wrap(v1::StreamActivationsRequest::kChunkFieldNumber, fields.SerializeAsString(),
                  v1::ActivationChunk::kDataFieldNumber, data);
    };
    return RunStream(endpoints_.quantd, plan).status();
  }

  absl::Status Seal() {
    grpc::ClientContext context;
    v1::SealStatisticRequest request;
    request.set_name(statistic_);
    v1::Statistic response;
    return ToStatus(
        v1::Calibration::NewStub(endpoints_.quantd)->SealStatistic(&context, request, &response));
  }

  absl::Status Wait() {
    grpc::ClientContext context;
    v1::WatchJobRequest request;
    request.set_name(job_);
    const auto stub = v1::Jobs::NewStub(endpoints_.quantd);
    const auto reader = stub->WatchJob(&context, request);
    v1::WatchJobResponse response;
    v1::JobState state = v1::JOB_STATE_UNSPECIFIED;
    while (reader->Read(&response)) state = response.job().state();
    if (const grpc::Status status = reader->Finish(); !status.ok()) return ToStatus(status);
    if (state == v1::SUCCEEDED) return absl::OkStatus();
    return absl::InternalError(absl::StrCat(job_, " ended as ", v1::JobState_Name(state), ": ",
                                            response.job().layers(0).error().message()));
  }

  absl::Status Download() {
    grpc::ClientContext context;
    v1::ReadArtifactRequest request;
    request.set_name(absl::StrCat(job_, "/artifacts/w.safetensors"));
    const auto stub = v1::Results::NewStub(endpoints_.quantd);
    const auto reader = stub->ReadArtifact(&context, request);
    v1::ReadArtifactResponse response;
    std::string bytes;
    while (reader->Read(&response)) bytes += response.data();
    if (const grpc::Status status = reader->Finish(); !status.ok()) return ToStatus(status);
    if (bytes.size() > static_cast<size_t>(kSize * kSize / 2)) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat("the result has only ", bytes.size(), " bytes"));
  }

  absl::Status Report() {
    grpc::ClientContext context;
    v1::GetErrorReportRequest request;
    request.set_layer(layer_);
    v1::ErrorReport response;
    return ToStatus(
        v1::Results::NewStub(endpoints_.quantd)->GetErrorReport(&context, request, &response));
  }

  const Endpoints& endpoints_;
  const std::string statistic_;
  const std::string weight_ = GaussianBf16(kSize, kSize, 3);
  const std::vector<std::string> tokens_ =
      std::vector<std::string>(8, GaussianBf16(kTokens / 8, kSize, 4));
  NewLayer described_;
  std::string job_;
  std::string layer_;
  Steps steps_;
};

absl::Status BenchRoundTrip(const Endpoints& endpoints) {
  constexpr int kRounds = 5;
  std::vector<double> totals;
  std::vector<std::vector<double>> by_step;
  Steps steps;
  for (int round = 0; round < kRounds; ++round) {
    RoundTrip trip(endpoints, absl::StrCat("round-trip-", round));
    auto ran = trip.Run();
    if (!ran.ok()) return ran.status();
    steps = *std::move(ran);
    by_step.resize(steps.size());
    double total = 0.0;
    for (size_t i = 0; i < steps.size(); ++i) {
      by_step[i].push_back(steps[i].second);
      total += steps[i].second;
    }
    totals.push_back(total);
  }
  ordered_json line = {{"name", "layer_768x768_4096_tokens_wush_mxfp4_rtn"},
                       {"value", Median(totals)},
                       {"unit", "s"},
                       {"target", 2.0},
                       {"ratio", Median(totals) / 2.0}};
  for (size_t i = 0; i < steps.size(); ++i) {
    line[steps[i].first + "_seconds"] = Median(by_step[i]);
  }
  Print(line);
  return absl::OkStatus();
}

// -----------------------------------------------------------------------------------------------

// The build directory: $QUANTD_BIN_DIR, or the one that this program lies in (tests/bench).
std::filesystem::path BinDir() {
  if (const char* given = std::getenv("QUANTD_BIN_DIR"); given != nullptr) return given;
  return std::filesystem::read_symlink("/proc/self/exe").parent_path().parent_path().parent_path();
}

absl::StatusOr<std::filesystem::path> MakeDataDirectory() {
  std::string pattern = (std::filesystem::temp_directory_path() / "service_bench.XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) return absl::ErrnoToStatus(errno, pattern);
  return std::filesystem::path(pattern);
}

absl::Status RunAll(const std::filesystem::path& data_dir, double seconds) {
  auto quantd =
      ServiceProcess::Start({(BinDir() / "server" / "quantd").string(), "--listen=127.0.0.1:0",
                             "--metrics_listen=127.0.0.1:0",
                             absl::StrCat("--data_dir=", data_dir.string()), "--shared_memory"});
  if (!quantd.ok()) return quantd.status();
  auto bare = ServiceProcess::Start(
      {std::filesystem::read_symlink("/proc/self/exe").string(), "--bare_server"});
  if (!bare.ok()) return bare.status();
  const Endpoints endpoints{Connect((*quantd)->address()), Connect((*bare)->address())};
  const char* experiments = std::getenv("GRPC_EXPERIMENTS");
  Print({{"name", "service_machine"},
         {"value", std::thread::hardware_concurrency()},
         {"unit", "cores"},
         {"grpc_version", grpc::Version()},
         {"grpc_experiments", experiments == nullptr ? "" : experiments}});
  absl::Status status = BenchRoundTrip(endpoints);
  if (status.ok()) status = BenchIngests(endpoints, seconds);
  if (status.ok()) status = BenchAcks(endpoints, seconds);
  if (status.ok()) status = BenchUpload(endpoints);
  return status;
}

int Main(int argc, char** argv) {
  double seconds = 2.0;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--bare_server") return RunBareServer();
    if (argument == "--seconds" && i + 1 < argc) seconds = std::atof(argv[++i]);
  }
  const auto data_dir = MakeDataDirectory();
  absl::Status status = data_dir.status();
  if (status.ok()) {
    status = RunAll(*data_dir, seconds);
    std::error_code ignored;
    std::filesystem::remove_all(*data_dir, ignored);
  }
  if (status.ok()) return 0;
  std::cerr << "service_bench: " << status << std::endl;
  return 1;
}

}  // namespace
}  // namespace quantd::bench

int main(int argc, char** argv) { return quantd::bench::Main(argc, argv); }
