#include "server/service/results_service.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "compute/tensor/checksum.h"
#include "quantd/v1/results.grpc.pb.h"
#include "server/errors/error.h"
#include "server/service/messages.h"
#include "server/service/resource_name.h"

namespace quantd::server {
namespace {

constexpr int64_t kChunkBytes = int64_t{1} << 20;

// Reads a range of one artifact, a chunk at a time.
class ArtifactReader {
 public:
  static absl::StatusOr<std::unique_ptr<ArtifactReader>> Open(
      const v1::ReadArtifactRequest& request, const std::string& tenant, JobStore& jobs,
      BlobStore& blobs, Metrics& metrics) {
    const auto name = ParseArtifactName("name", request.name(), tenant);
    if (!name.ok()) return name.status();
    const auto artifact = jobs.GetArtifact(tenant, name->first, name->second);
    if (!artifact.ok()) return artifact.status();
    const int64_t size = artifact->blob.size;
    if (request.read_offset() < 0 || request.read_offset() > size) {
      return Error(
          absl::StatusCode::kOutOfRange, "OFFSET_OUT_OF_RANGE",
          absl::StrFormat("read_offset: expected 0..%d, got %d", size, request.read_offset()));
    }
    if (request.read_limit() < 0) {
      return InvalidField("read_limit",
                          absl::StrCat("expected 0 or more, got ", request.read_limit()));
    }
    auto blob = blobs.Open(artifact->blob);
    if (!blob.ok()) return Annotate(blob.status(), request.name());
    const int64_t rest = size - request.read_offset();
    const int64_t count = request.read_limit() == 0 ? rest : std::min(rest, request.read_limit());
    return std::unique_ptr<ArtifactReader>(new ArtifactReader(
        tenant, std::move(*blob), artifact->blob, request.read_offset(), count, metrics));
  }

  absl::StatusOr<bool> Next(v1::ReadArtifactResponse& response) {
    if (offset_ == end_ && !first_) return false;
    const int64_t count = std::min(kChunkBytes, end_ - offset_);
    std::string data(count, '\0');
    if (absl::Status s = blob_->Read(
            offset_, {reinterpret_cast<std::byte*>(data.data()), static_cast<size_t>(count)});
        !s.ok()) {
      return s;
    }
    response.set_offset(offset_);
    response.set_crc32c(compute::Crc32c(data));
    response.set_size_bytes(ref_.size);
    if (first_) response.set_sha256(ref_.sha256);
    response.set_data(std::move(data));
    metrics_.BytesOut(tenant_, Traffic::kArtifacts, count);
    offset_ += count;
    first_ = false;
    return true;
  }

 private:
  ArtifactReader(std::string tenant, std::unique_ptr<BlobReader> blob, BlobRef ref, int64_t offset,
                 int64_t count, Metrics& metrics)
      : tenant_(std::move(tenant)),
        blob_(std::move(blob)),
        ref_(std::move(ref)),
        offset_(offset),
        end_(offset + count),
        metrics_(metrics) {}

  const std::string tenant_;
  const std::unique_ptr<BlobReader> blob_;
  const BlobRef ref_;
  int64_t offset_;
  const int64_t end_;
  bool first_ = true;  // an empty range still answers with the artifact's size and digest
  Metrics& metrics_;
};

class ResultsService final : public v1::Results::CallbackService {
 public:
  ResultsService(const CallEnvironment& environment, JobStore& jobs, BlobStore& blobs)
      : environment_(environment), jobs_(jobs), blobs_(blobs) {}

  grpc::ServerUnaryReactor* GetErrorReport(grpc::CallbackServerContext* context,
                                           const v1::GetErrorReportRequest* request,
                                           v1::ErrorReport* response) override {
    return RunUnary(environment_, context, "quantd.v1.Results/GetErrorReport", request, response,
                    [=, this](const std::string& tenant) {
                      return Report(tenant, request->layer(), *response);
                    });
  }

  grpc::ServerUnaryReactor* ListArtifacts(grpc::CallbackServerContext* context,
                                          const v1::ListArtifactsRequest* request,
                                          v1::ListArtifactsResponse* response) override {
    return RunUnary(
        environment_, context, "quantd.v1.Results/ListArtifacts", request, response,
        [=, this](const std::string& tenant) { return List(tenant, *request, *response); });
  }

  grpc::ServerWriteReactor<v1::ReadArtifactResponse>* ReadArtifact(
      grpc::CallbackServerContext* context, const v1::ReadArtifactRequest* request) override {
    Call call(environment_, context, "quantd.v1.Results/ReadArtifact");
    // Opened with the first message, on the executor.
    auto next = [reader = std::shared_ptr<ArtifactReader>(), tenant = call.tenant(),
                 request = *request,
                 this](v1::ReadArtifactResponse& response) mutable -> absl::StatusOr<bool> {
      if (!tenant.ok()) return tenant.status();
      if (reader == nullptr) {
        auto opened = ArtifactReader::Open(request, *tenant, jobs_, blobs_, environment_.metrics);
        if (!opened.ok()) return opened.status();
        reader = std::move(*opened);
      }
      return reader->Next(response);
    };
    return new StreamOut<v1::ReadArtifactResponse>(
        std::move(call), StreamOut<v1::ReadArtifactResponse>::Next(std::move(next)));
  }

 private:
  absl::Status Report(const std::string& tenant, const std::string& layer_name,
                      v1::ErrorReport& response) {
    const auto name = ParseLayerName("layer", layer_name, tenant);
    if (!name.ok()) return name.status();
    const auto job = jobs_.GetJob(tenant, name->first);
    if (!job.ok()) return job.status();
    const auto layer = std::find_if(job->layers.begin(), job->layers.end(),
                                    [&](const auto& l) { return l.layer_id == name->second; });
    if (layer == job->layers.end()) {
      return Error(absl::StatusCode::kNotFound, "LAYER_NOT_FOUND",
                   absl::StrCat(layer_name, " does not exist"));
    }
    if (layer->state != LayerState::kSucceeded) {
      return FailedPrecondition("LAYER_NOT_SUCCEEDED", layer_name,
                                "it has no report, because it has not succeeded");
    }
    const auto artifact =
        jobs_.GetArtifact(tenant, name->first, absl::StrCat(name->second, ".report.json"));
    if (!artifact.ok()) return artifact.status();
    const auto json = blobs_.ReadAll(artifact->blob);
    if (!json.ok()) return Annotate(json.status(), layer_name);
    auto report = ErrorReportFromJson(*json);
    if (!report.ok()) return Annotate(report.status(), layer_name);
    response = std::move(*report);
    response.set_layer(layer_name);
    return absl::OkStatus();
  }

  absl::Status List(const std::string& tenant, const v1::ListArtifactsRequest& request,
                    v1::ListArtifactsResponse& response) {
    const auto name = ParseJobName("parent", request.parent(), tenant);
    if (!name.ok()) return name.status();
    const auto size = PageSize(request.page_size());
    if (!size.ok()) return size.status();
    const auto page = jobs_.ListArtifacts(tenant, name->first, *size, request.page_token());
    if (absl::IsInvalidArgument(page.status())) return InvalidField("page_token", page.status());
    if (!page.ok()) return page.status();
    for (const ArtifactRecord& artifact : page->items) {
      *response.add_artifacts() = ToProto(artifact, tenant, name->first);
    }
    response.set_next_page_token(page->next_token);
    return absl::OkStatus();
  }

  const CallEnvironment& environment_;
  JobStore& jobs_;
  BlobStore& blobs_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewResultsService(const CallEnvironment& environment, JobStore& jobs,
                                                 BlobStore& blobs) {
  return std::make_unique<ResultsService>(environment, jobs, blobs);
}

}  // namespace quantd::server
