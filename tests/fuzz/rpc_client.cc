#include "tests/fuzz/rpc_client.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "compute/tensor/checksum.h"
#include "tests/fuzz/check.h"

namespace quantd::fuzz {
namespace {

constexpr int kIds = 3;
constexpr int64_t kCols = 32;  // of most layers and statistics
constexpr int64_t kRows = 4;

// The tokens of chunk `seq` of every stream, and their values: the same whenever they are sent, so
// that what a statistic counts follows from its durable sequence numbers alone.
int64_t RowsOf(int64_t seq) { return 1 + seq % 3; }
std::string ChunkOf(int64_t seq) {
  std::string bytes;
  for (int64_t i = 0; i < RowsOf(seq) * kCols; ++i) {
    const float value = static_cast<float>((seq * 31 + i * 7) % 17) - 8.0F;
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  return bytes;
}

std::string WeightBytes() {
  std::string bytes;
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    const float value = 0.01F * static_cast<float>(i % 29) - 0.1F;
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  return bytes;
}

std::string Sha256Of(const std::string& bytes) {
  return compute::ToBytes(compute::Sha256::Of(bytes));
}

// Mostly `right`.
int64_t Near(ByteFeed& feed, int64_t right) {
  const uint8_t how = feed.Byte();
  if (how < 224) return right;
  return how < 248 ? right + static_cast<int8_t>(feed.Byte()) : feed.Take<int64_t>();
}

v1::Recipe TakeRecipe(ByteFeed& feed) {
  v1::Recipe recipe;
  const uint8_t how = feed.Byte();
  if (how >= 240) {  // anything that parses
    recipe.ParseFromString(feed.Bytes(how - 230));
    return recipe;
  }
  constexpr v1::Format kFormats[] = {
      v1::MXFP4, v1::NVFP4, v1::INT4, v1::FP8, v1::INT2, v1::INT8, v1::FORMAT_UNSPECIFIED};
  recipe.set_format(kFormats[how % 7]);
  recipe.set_transform(static_cast<v1::Transform>(feed.Choice(6)));
  recipe.set_method(static_cast<v1::Method>(feed.Choice(5)));
  if (recipe.method() == v1::WATERSIC || recipe.method() == v1::HIGGS) {
    recipe.set_format(v1::FORMAT_UNSPECIFIED);
    recipe.set_rate_bits(2 + feed.Choice(3));
  }
  return recipe;
}

[[noreturn]] void Fail(const char* what, const std::string& detail) {
  std::fprintf(stderr, "%s: %s\n", what, detail.c_str());
  std::abort();
}

}  // namespace

RpcClient::RpcClient(std::string tenant, std::string stranger, RpcServer& server)
    : tenant_(std::move(tenant)), stranger_(std::move(stranger)), server_(server) {
  Reconnect();
}

void RpcClient::Reconnect() {
  channel_ = server_.NewChannel();
  jobs_ = v1::Jobs::NewStub(channel_);
  weights_ = v1::Weights::NewStub(channel_);
  calibration_ = v1::Calibration::NewStub(channel_);
  results_ = v1::Results::NewStub(channel_);
  quantize_ = v1::Quantize::NewStub(channel_);
  info_ = v1::Server::NewStub(channel_);
}

void RpcClient::Call(int which, ByteFeed& feed) {
  using Method = void (RpcClient::*)(ByteFeed&);
  // Those that others build on come more often.
  constexpr Method kCalls[] = {
      &RpcClient::CreateJob,      &RpcClient::CreateJob, &RpcClient::Upload,
      &RpcClient::Upload,         &RpcClient::Stream,    &RpcClient::Stream,
      &RpcClient::Stream,         &RpcClient::Seal,      &RpcClient::JobCalls,
      &RpcClient::PlanJob,        &RpcClient::WatchJob,  &RpcClient::UploadStatus,
      &RpcClient::Statistic,      &RpcClient::Merge,     &RpcClient::Export,
      &RpcClient::Import,         &RpcClient::Lists,     &RpcClient::Artifacts,
      &RpcClient::Report,         &RpcClient::AnyBytes,  &RpcClient::Artifacts,
      &RpcClient::QuantizeTensor,
  };
  (this->*kCalls[which % std::size(kCalls)])(feed);
}

std::unique_ptr<grpc::ClientContext> RpcClient::Context() const {
  auto context = std::make_unique<grpc::ClientContext>();
  context->AddMetadata("authorization", "Bearer " + tenant_);
  context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  return context;
}

std::string RpcClient::Tenant(ByteFeed& feed) {
  const uint8_t how = feed.Byte();
  if (how >= 250) {
    std::string name = feed.Bytes(how - 245);
    for (char& c : name) c &= 0x7F;  // text, or gRPC refuses the message before anybody reads it
    return name;
  }
  return how >= 240 ? stranger_ : tenant_;
}
std::string RpcClient::Job(ByteFeed& feed) {
  return absl::StrCat("tenants/", Tenant(feed), "/jobs/j", feed.Choice(kIds));
}
std::string RpcClient::Layer(ByteFeed& feed) {
  return absl::StrCat(Job(feed), "/layers/w", feed.Choice(2));
}
std::string RpcClient::StatisticName(ByteFeed& feed) {
  return absl::StrCat("tenants/", Tenant(feed), "/statistics/s", feed.Choice(kIds));
}

void RpcClient::Check(const grpc::Status& status, const std::string& named,
                      const char* call) const {
  const bool of_stranger = absl::StartsWith(named, absl::StrCat("tenants/", stranger_, "/"));
  switch (status.error_code()) {
    case grpc::StatusCode::INTERNAL:
    case grpc::StatusCode::UNKNOWN:
    case grpc::StatusCode::UNAUTHENTICATED:
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      Fail(call, absl::StrCat(named, ": code ", status.error_code(), " ", status.error_message()));
    default:
      break;
  }
  if (!status.ok() && status.error_code() != grpc::StatusCode::CANCELLED &&
      status.error_message().empty()) {
    Fail(call, absl::StrCat("a refusal without a reason, code ", status.error_code()));
  }
  if (of_stranger && status.ok()) Fail(call, absl::StrCat(named, " is a stranger's"));
}

void RpcClient::CreateJob(ByteFeed& feed) {
  v1::CreateJobRequest request;
  request.set_parent(absl::StrCat("tenants/", Tenant(feed)));
  const uint8_t options = feed.Byte();
  request.set_job_id(absl::StrCat("j", feed.Choice(kIds)));
  if ((options & 1) != 0) request.set_request_id(absl::StrCat("r", feed.Choice(kIds)));
  request.set_validate_only((options & 14) == 14);
  *request.mutable_job()->mutable_recipe() = TakeRecipe(feed);
  const int layers = 1 + (options >> 7);
  for (int i = 0; i < layers; ++i) {
    v1::Layer* layer = request.mutable_job()->add_layers();
    layer->set_layer_id(absl::StrCat("w", i));
    layer->set_rows(Near(feed, kRows));
    layer->set_cols(Near(feed, kCols));
    layer->set_dtype(v1::F32);
    const uint8_t uses = feed.Byte();
    if ((uses & 1) != 0)
      layer->set_statistic(absl::StrCat("tenants/", tenant_, "/statistics/s", (uses >> 1) % kIds));
    if ((uses & 8) != 0) layer->set_fusion_group("g");
    if ((uses & 48) == 48) layer->set_weight_of(Layer(feed));
    if ((uses & 192) == 192) *layer->mutable_recipe() = TakeRecipe(feed);
  }
  const std::string name = absl::StrCat(request.parent(), "/jobs/", request.job_id());
  v1::CreateJobResponse response;
  const grpc::Status status = jobs_->CreateJob(Context().get(), request, &response);
  Check(status, name, "CreateJob");
  if (!status.ok()) return;
  FUZZ_CHECK(response.job().layers_size() >= 1);
}

void RpcClient::JobCalls(ByteFeed& feed) {
  const int which = feed.Choice(8);
  const std::string name = Job(feed);
  v1::Job job;
  if (which < 5) {
    v1::GetJobRequest request;
    request.set_name(name);
    Check(jobs_->GetJob(Context().get(), request, &job), name, "GetJob");
  } else if (which < 7) {
    v1::CancelJobRequest request;
    request.set_name(name);
    Check(jobs_->CancelJob(Context().get(), request, &job), name, "CancelJob");
  } else {
    v1::DeleteJobRequest request;
    request.set_name(name);
    google::protobuf::Empty nothing;
    const grpc::Status status = jobs_->DeleteJob(Context().get(), request, &nothing);
    Check(status, name, "DeleteJob");
    if (!status.ok()) return;
    const auto below = [&](const auto& entry) {
      return absl::StartsWith(entry.first, absl::StrCat(name, "/"));
    };
    std::erase_if(committed_, below);
    std::erase_if(artifacts_, below);
  }
}

void RpcClient::PlanJob(ByteFeed& feed) {
  v1::PlanJobRequest request;
  request.set_name(Job(feed));
  request.set_bits_per_weight(feed.Byte() / 8.0);
  v1::Plan plan;
  Check(jobs_->PlanJob(Context().get(), request, &plan), request.name(), "PlanJob");
}

void RpcClient::WatchJob(ByteFeed& feed) {
  v1::WatchJobRequest request;
  request.set_name(Job(feed));
  const int most = 1 + feed.Choice(3);
  const auto context = Context();
  const auto reader = jobs_->WatchJob(context.get(), request);
  v1::WatchJobResponse response;
  if (reader->Read(&response)) {
    FUZZ_CHECK(response.job().name() == request.name());
    // More come with a change alone.
    if (most == 3 && response.job().state() == v1::RUNNING) reader->Read(&response);
  }
  context->TryCancel();
  while (reader->Read(&response)) {
  }
  Check(reader->Finish(), request.name(), "WatchJob");
}

void RpcClient::Upload(ByteFeed& feed) {
  const std::string name = Layer(feed);
  const std::string weight = WeightBytes();
  v1::GetUploadStatusRequest status_request;
  status_request.set_layer(name);
  v1::UploadStatus before;
  const bool known = weights_->GetUploadStatus(Context().get(), status_request, &before).ok() &&
                     !before.complete();

  const auto context = Context();
  v1::UploadWeightsResponse response;
  const auto writer = weights_->UploadWeights(context.get(), &response);
  v1::UploadWeightsRequest message;
  if (feed.Byte() < 248) {
    v1::UploadHeader* header = message.mutable_header();
    header->set_layer(name);
    header->set_dtype(feed.Byte() < 248 ? v1::F32 : v1::BF16);
    header->set_rows(Near(feed, kRows));
    header->set_cols(Near(feed, kCols));
    writer->Write(message);
  }
  int64_t offset = known ? before.committed_size() : 0;
  const int chunks = feed.Choice(4);
  for (int i = 0; i < chunks; ++i) {
    const auto size = static_cast<int64_t>(weight.size());
    const int64_t rest = size - std::min(offset, size);
    const int64_t count =
        i + 1 == chunks && feed.Byte() < 128 ? rest : std::min<int64_t>(rest, feed.Byte() / 4 * 4);
    v1::UploadChunk* chunk = message.mutable_chunk();
    chunk->set_offset(Near(feed, offset));
    chunk->set_data(weight.substr(offset, count));
    chunk->set_crc32c(static_cast<uint32_t>(Near(feed, compute::Crc32c(chunk->data()))));
    offset += count;
    if (!writer->Write(message)) break;
  }
  const uint8_t how = feed.Byte();
  if (how < 200) {
    message.mutable_finish()->set_sha256(how < 180 ? Sha256Of(weight) : feed.Bytes(32));
    writer->Write(message);
  }
  if (how >= 240) context->TryCancel();
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  if (status.error_code() == grpc::StatusCode::CANCELLED) return;
  Check(status, name, "UploadWeights");
  if (status.error_code() == grpc::StatusCode::DATA_LOSS) committed_.erase(name);  // starts over
  if (status.ok()) {
    committed_[name] = std::max(committed_[name], response.status().committed_size());
  }
}

void RpcClient::UploadStatus(ByteFeed& feed) {
  v1::GetUploadStatusRequest request;
  request.set_layer(Layer(feed));
  v1::UploadStatus response;
  const grpc::Status status = weights_->GetUploadStatus(Context().get(), request, &response);
  Check(status, request.layer(), "GetUploadStatus");
  if (!status.ok()) return;
  const auto acknowledged = committed_.find(request.layer());
  if (acknowledged != committed_.end()) {
    FUZZ_CHECK(response.committed_size() >= acknowledged->second);
  }
  FUZZ_CHECK(response.committed_size() <= response.size());
}

void RpcClient::Stream(ByteFeed& feed) {
  const std::string name = StatisticName(feed);
  const std::string id = absl::StrCat("p", feed.Choice(2));
  const auto context = Context();
  const auto stream = calibration_->StreamActivations(context.get());
  v1::StreamActivationsRequest message;
  v1::ActivationHeader* header = message.mutable_header();
  header->set_statistic(name);
  header->set_stream_id(id);
  header->set_dtype(v1::F32);
  header->set_cols(Near(feed, kCols));
  header->set_sample_rows(2);
  if (const uint8_t how = feed.Byte(); how >= 248) {
    header->ParseFromString(feed.Bytes(how - 240));
  }
  stream->Write(message);
  v1::StreamActivationsResponse response;
  if (stream->Read(&response)) {
    int64_t& durable = durable_[{name, id}];
    FUZZ_CHECK(response.durable_seq() >= durable);
    int64_t seq = response.received_seq();
    const int chunks = feed.Choice(6);
    for (int i = 0; i < chunks; ++i) {
      const int64_t sent = std::max<int64_t>(Near(feed, seq + 1), INT64_MIN + 1);
      // Only what this stream always sends under a number counts.
      const int64_t shown = std::clamp<int64_t>(sent, 0, 1 << 20);
      v1::ActivationChunk* chunk = message.mutable_chunk();
      chunk->set_seq(sent);
      chunk->set_data(ChunkOf(shown));
      chunk->set_rows(Near(feed, RowsOf(shown)));
      chunk->set_crc32c(static_cast<uint32_t>(Near(feed, compute::Crc32c(chunk->data()))));
      if (!stream->Write(message)) break;
      if (sent == seq + 1) ++seq;
    }
    const uint8_t how = feed.Byte();
    if (how < 64) {
      message.mutable_flush();
      stream->Write(message);
    }
    if (how >= 224) context->TryCancel();
    stream->WritesDone();
    while (stream->Read(&response)) {
      FUZZ_CHECK(response.durable_seq() >= durable);
      FUZZ_CHECK(response.durable_seq() <= response.received_seq());
      durable = response.durable_seq();
    }
  } else {
    stream->WritesDone();
  }
  const grpc::Status status = stream->Finish();
  if (status.error_code() != grpc::StatusCode::CANCELLED) Check(status, name, "StreamActivations");
}

void RpcClient::CheckStatistic(const v1::Statistic& statistic) {
  int64_t tokens = 0;
  for (const v1::StatisticStream& stream : statistic.streams()) {
    int64_t expected = 0;
    for (int64_t seq = 1; seq <= stream.durable_seq(); ++seq) expected += RowsOf(seq);
    FUZZ_CHECK(stream.tokens() == expected);  // each chunk once
    const auto known = durable_.find({statistic.name(), stream.stream_id()});
    if (known != durable_.end()) FUZZ_CHECK(stream.durable_seq() >= known->second);
    tokens += stream.tokens();
  }
  if (statistic.streams_size() > 0) FUZZ_CHECK(statistic.tokens() == tokens);
}

void RpcClient::Statistic(ByteFeed& feed) {
  const std::string name = StatisticName(feed);
  if (feed.Byte() < 160) {
    v1::GetStatisticRequest request;
    request.set_name(name);
    v1::Statistic statistic;
    const grpc::Status status = calibration_->GetStatistic(Context().get(), request, &statistic);
    Check(status, name, "GetStatistic");
    if (status.ok()) CheckStatistic(statistic);
    return;
  }
  v1::DeleteStatisticRequest request;
  request.set_name(name);
  google::protobuf::Empty nothing;
  const grpc::Status status = calibration_->DeleteStatistic(Context().get(), request, &nothing);
  Check(status, name, "DeleteStatistic");
  if (status.ok()) std::erase_if(durable_, [&](const auto& e) { return e.first.first == name; });
}

void RpcClient::Seal(ByteFeed& feed) {
  v1::SealStatisticRequest request;
  request.set_name(StatisticName(feed));
  v1::Statistic statistic;
  const grpc::Status status = calibration_->SealStatistic(Context().get(), request, &statistic);
  Check(status, request.name(), "SealStatistic");
  if (!status.ok()) return;
  FUZZ_CHECK(statistic.state() == v1::SEALED && statistic.tokens() >= 1);
  CheckStatistic(statistic);
}

void RpcClient::Merge(ByteFeed& feed) {
  v1::MergeStatisticsRequest request;
  request.set_parent(absl::StrCat("tenants/", Tenant(feed)));
  request.set_statistic_id(absl::StrCat("s", feed.Choice(kIds)));
  const int sources = feed.Choice(3);
  for (int i = 0; i < sources; ++i) request.add_sources(StatisticName(feed));
  v1::Statistic statistic;
  Check(calibration_->MergeStatistics(Context().get(), request, &statistic),
        absl::StrCat(request.parent(), "/"), "MergeStatistics");
}

void RpcClient::Export(ByteFeed& feed) {
  v1::ExportStatisticRequest request;
  request.set_name(StatisticName(feed));
  const auto context = Context();
  const auto reader = calibration_->ExportStatistic(context.get(), request);
  v1::ExportStatisticResponse response;
  std::string bytes;
  std::string digest;
  while (reader->Read(&response)) {
    if (response.has_chunk()) {
      FUZZ_CHECK(response.chunk().offset() == static_cast<int64_t>(bytes.size()));
      FUZZ_CHECK(response.chunk().crc32c() == compute::Crc32c(response.chunk().data()));
      bytes += response.chunk().data();
    }
    if (response.has_finish()) digest = response.finish().sha256();
  }
  const grpc::Status status = reader->Finish();
  Check(status, request.name(), "ExportStatistic");
  if (status.ok()) FUZZ_CHECK(digest == Sha256Of(bytes));
}

void RpcClient::Import(ByteFeed& feed) {
  const auto context = Context();
  v1::Statistic statistic;
  const auto writer = calibration_->ImportStatistic(context.get(), &statistic);
  v1::ImportStatisticRequest message;
  const std::string name = StatisticName(feed);
  const int64_t cols = 4;
  if (feed.Byte() < 248) {
    v1::StatisticHeader* header = message.mutable_header();
    header->set_statistic(name);
    header->set_cols(Near(feed, cols));
    header->set_dtype(v1::F64);
    header->set_tokens(Near(feed, 10));
    header->set_sample_rows(static_cast<int32_t>(Near(feed, 0)));
    if (const uint8_t how = feed.Byte(); how >= 240) {
      header->ParseFromString(feed.Bytes(how - 230));
    }
    writer->Write(message);
  }
  std::string matrix;
  for (int64_t i = 0; i < cols * cols; ++i) {
    const double value = i % (cols + 1) == 0 ? 2.0 : 0.5;
    matrix.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  if (feed.Byte() >= 240) matrix[feed.Byte() % matrix.size()] ^= static_cast<char>(feed.Byte());
  int64_t offset = 0;
  const int chunks = 1 + feed.Choice(2);
  for (int i = 0; i < chunks; ++i) {
    const auto end = static_cast<int64_t>(matrix.size()) * (i + 1) / chunks;
    v1::StatisticChunk* chunk = message.mutable_chunk();
    chunk->set_offset(Near(feed, offset));
    chunk->set_data(matrix.substr(offset, end - offset));
    chunk->set_crc32c(static_cast<uint32_t>(Near(feed, compute::Crc32c(chunk->data()))));
    offset = end;
    if (!writer->Write(message)) break;
  }
  const uint8_t how = feed.Byte();
  if (how < 240) {
    message.mutable_finish()->set_sha256(how < 224 ? Sha256Of(matrix) : feed.Bytes(how - 210));
    writer->Write(message);
  }
  writer->WritesDone();
  Check(writer->Finish(), name, "ImportStatistic");
}

void RpcClient::Lists(ByteFeed& feed) {
  const int which = feed.Choice(3);
  const std::string parent = absl::StrCat("tenants/", Tenant(feed));
  const auto size = static_cast<int32_t>(Near(feed, 1 + feed.Choice(3)));
  const bool own_token = feed.Byte() < 224;
  std::string token;
  for (int page = 0; page < 4; ++page) {
    grpc::Status status;
    const auto ask = [&](auto request, auto response, const auto& call) {
      request.set_parent(parent);
      request.set_page_size(size);
      request.set_page_token(token);
      status = call(request, response);
      return response.next_page_token();
    };
    std::string next;
    if (which == 0) {
      next = ask(v1::ListJobsRequest(), v1::ListJobsResponse(),
                 [&](auto& q, auto& r) { return jobs_->ListJobs(Context().get(), q, &r); });
    } else {
      next = ask(v1::ListStatisticsRequest(), v1::ListStatisticsResponse(), [&](auto& q, auto& r) {
        return calibration_->ListStatistics(Context().get(), q, &r);
      });
    }
    Check(status, absl::StrCat(parent, "/"), "List");
    if (!status.ok() || next.empty()) return;
    FUZZ_CHECK(next != token);
    token = own_token ? next : feed.Bytes(feed.Byte());
  }
}

void RpcClient::ReadWhole(const std::string& artifact) {
  v1::ReadArtifactRequest request;
  request.set_name(artifact);
  const auto context = Context();
  const auto reader = results_->ReadArtifact(context.get(), request);
  v1::ReadArtifactResponse response;
  std::string bytes;
  std::string digest;
  while (reader->Read(&response)) {
    if (!response.sha256().empty()) digest = response.sha256();
    bytes += response.data();
  }
  FUZZ_CHECK(reader->Finish().ok());
  FUZZ_CHECK(digest == Sha256Of(bytes));
  // A result never changes.
  FUZZ_CHECK(artifacts_.emplace(artifact, digest).first->second == digest);
}

void RpcClient::Artifacts(ByteFeed& feed) {
  v1::ListArtifactsRequest list;
  list.set_parent(Job(feed));
  v1::ListArtifactsResponse listed;
  const grpc::Status found = results_->ListArtifacts(Context().get(), list, &listed);
  Check(found, list.parent(), "ListArtifacts");
  v1::ReadArtifactRequest request;
  int64_t size = 100;  // a guess where nothing is listed yet: the layer may finish meanwhile
  if (found.ok() && listed.artifacts_size() > 0) {
    const v1::Artifact& artifact = listed.artifacts(feed.Choice(listed.artifacts_size()));
    ReadWhole(artifact.name());
    request.set_name(artifact.name());
    size = artifact.size_bytes();
  } else {
    request.set_name(absl::StrCat(list.parent(), "/artifacts/w0.safetensors"));
  }
  request.set_read_offset(Near(feed, feed.Take<uint16_t>() % (size + 1)));
  request.set_read_limit(Near(feed, feed.Byte()));
  const auto context = Context();
  const auto reader = results_->ReadArtifact(context.get(), request);
  v1::ReadArtifactResponse response;
  int64_t got = 0;
  while (reader->Read(&response)) {
    FUZZ_CHECK(response.offset() == request.read_offset() + got);
    FUZZ_CHECK(response.crc32c() == compute::Crc32c(response.data()));
    FUZZ_CHECK(listed.artifacts_size() == 0 || response.size_bytes() == size);
    got += static_cast<int64_t>(response.data().size());
    size = response.size_bytes();
  }
  const grpc::Status status = reader->Finish();
  Check(status, request.name(), "ReadArtifact");
  if (!status.ok() || (listed.artifacts_size() == 0 && got == 0)) return;
  const int64_t rest = size - request.read_offset();
  const int64_t limit = request.read_limit();
  FUZZ_CHECK(got == (limit == 0 ? rest : std::min(rest, limit)));
}

void RpcClient::Report(ByteFeed& feed) {
  v1::GetErrorReportRequest request;
  request.set_layer(Layer(feed));
  v1::ErrorReport report;
  Check(results_->GetErrorReport(Context().get(), request, &report), request.layer(),
        "GetErrorReport");
  v1::ServerInfo info;
  FUZZ_CHECK(info_->GetServerInfo(Context().get(), v1::GetServerInfoRequest(), &info).ok());
  FUZZ_CHECK(info.tenant() == tenant_);
}

void RpcClient::QuantizeTensor(ByteFeed& feed) {
  v1::QuantizeTensorRequest request;
  *request.mutable_recipe() = TakeRecipe(feed);
  v1::InlineTensor* weight = request.mutable_weight();
  weight->set_dtype(v1::F32);
  weight->add_shape(Near(feed, kRows));
  weight->add_shape(Near(feed, kCols));
  weight->set_data(WeightBytes());
  if (feed.Byte() >= 200) request.mutable_activations()->ParseFromString(feed.Bytes(feed.Byte()));
  if (feed.Byte() >= 240) request.mutable_second_moment()->add_values(feed.Take<double>());
  request.set_return_dequantized(feed.Byte() < 64);
  v1::QuantizeTensorResponse response;
  Check(quantize_->QuantizeTensor(Context().get(), request, &response), "", "QuantizeTensor");
}

void RpcClient::AnyBytes(ByteFeed& feed) {
  constexpr const char* kMethods[] = {
      "Jobs/CreateJob",
      "Jobs/GetJob",
      "Jobs/ListJobs",
      "Jobs/PlanJob",
      "Calibration/GetStatistic",
      "Calibration/MergeStatistics",
      "Results/GetErrorReport",
      "Results/ListArtifacts",
      "Quantize/QuantizeTensor",
      "Weights/GetUploadStatus",
  };
  const std::string method =
      absl::StrCat("/quantd.v1.", kMethods[feed.Choice(std::size(kMethods))]);
  const std::string bytes = feed.Bytes(feed.Byte());
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer response;
  grpc::GenericStub stub(channel_);
  const auto context = Context();
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareUnaryCall(context.get(), method, request, &queue);
  call->StartCall();
  grpc::Status status;
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
  // Bytes that are no message are gRPC's to refuse.
  if (!status.error_message().empty()) Check(status, "", method.c_str());
}

void RpcClient::CheckAndForgetEverything() {
  for (const auto& [layer, bytes] : committed_) {
    v1::GetUploadStatusRequest request;
    request.set_layer(layer);
    v1::UploadStatus status;
    if (!weights_->GetUploadStatus(Context().get(), request, &status).ok()) continue;
    FUZZ_CHECK(status.committed_size() >= bytes);
  }
  const std::string parent = absl::StrCat("tenants/", tenant_);
  v1::ListJobsRequest list_jobs;
  list_jobs.set_parent(parent);
  v1::ListJobsResponse jobs;
  FUZZ_CHECK(jobs_->ListJobs(Context().get(), list_jobs, &jobs).ok());
  for (const v1::Job& listed : jobs.jobs()) {
    v1::CancelJobRequest cancel;
    cancel.set_name(listed.name());
    v1::Job job;
    jobs_->CancelJob(Context().get(), cancel, &job);
    v1::DeleteJobRequest remove;
    remove.set_name(listed.name());
    google::protobuf::Empty nothing;
    for (int tries = 0; tries < 1000; ++tries) {  // until the layer that runs has heard of it
      if (jobs_->DeleteJob(Context().get(), remove, &nothing).ok()) break;
      absl::SleepFor(absl::Milliseconds(2));
    }
  }
  v1::ListStatisticsRequest list_statistics;
  list_statistics.set_parent(parent);
  v1::ListStatisticsResponse statistics;
  FUZZ_CHECK(calibration_->ListStatistics(Context().get(), list_statistics, &statistics).ok());
  for (const v1::Statistic& listed : statistics.statistics()) {
    v1::GetStatisticRequest get;
    get.set_name(listed.name());
    v1::Statistic statistic;
    FUZZ_CHECK(calibration_->GetStatistic(Context().get(), get, &statistic).ok());
    CheckStatistic(statistic);
    v1::DeleteStatisticRequest remove;
    remove.set_name(listed.name());
    google::protobuf::Empty nothing;
    for (int tries = 0; tries < 1000; ++tries) {  // until a cancelled stream has ended
      if (calibration_->DeleteStatistic(Context().get(), remove, &nothing).ok()) break;
      absl::SleepFor(absl::Milliseconds(2));
    }
  }
  jobs.Clear();
  FUZZ_CHECK(jobs_->ListJobs(Context().get(), list_jobs, &jobs).ok() && jobs.jobs_size() == 0);
  statistics.Clear();
  FUZZ_CHECK(calibration_->ListStatistics(Context().get(), list_statistics, &statistics).ok() &&
             statistics.statistics_size() == 0);
}

}  // namespace quantd::fuzz
