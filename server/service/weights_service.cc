#include "server/service/weights_service.h"

#include <string>
#include <utility>

#include "quantd/v1/weights.grpc.pb.h"
#include "server/errors/error.h"
#include "server/service/messages.h"
#include "server/service/resource_name.h"

namespace quantd::server {
namespace {

void Fill(const UploadProgress& progress, v1::UploadStatus& status) {
  status.set_committed_size(progress.committed_size);
  status.set_size(progress.size);
  status.set_complete(progress.complete);
}

class UploadConsumer final
    : public StreamConsumer<v1::UploadWeightsRequest, v1::UploadWeightsResponse> {
 public:
  UploadConsumer(std::string tenant, WeightUploads& uploads, Metrics& metrics)
      : tenant_(std::move(tenant)), uploads_(uploads), metrics_(metrics) {
    metrics_.StreamOpened(Traffic::kWeights);
  }
  ~UploadConsumer() override { metrics_.StreamClosed(Traffic::kWeights); }

  absl::Status OnMessage(v1::UploadWeightsRequest& request) override {
    switch (request.message_case()) {
      case v1::UploadWeightsRequest::kHeader:
        return OnHeader(request.header());
      case v1::UploadWeightsRequest::kChunk:
        return OnChunk(request.chunk());
      case v1::UploadWeightsRequest::kFinish:
        return OnFinish(request.finish());
      default:
        return InvalidField("message", "expected header, chunk or finish, got none");
    }
  }

  absl::Status OnEnd(v1::UploadWeightsResponse& response) override {
    if (upload_ == nullptr && !finished_) {
      return InvalidField("header", "expected a header before the end of the stream");
    }
    if (!finished_) {
      const absl::StatusOr<UploadProgress> progress = upload_->Commit();
      if (!progress.ok()) return progress.status();
      progress_ = *progress;
    }
    Fill(progress_, *response.mutable_status());
    return absl::OkStatus();
  }

 private:
  absl::Status OnHeader(const v1::UploadHeader& header) {
    if (upload_ != nullptr || finished_) {
      return InvalidField("header", "expected one header, as the first message");
    }
    const auto name = ParseLayerName("header.layer", header.layer(), tenant_);
    if (!name.ok()) return name.status();
    const auto dtype = FromProto("header.dtype", header.dtype());
    if (!dtype.ok()) return dtype.status();
    auto upload = uploads_.Open({name->tenant, name->first, name->second},
                                {*dtype, header.rows(), header.cols()});
    if (!upload.ok()) return upload.status();
    upload_ = std::move(*upload);
    return absl::OkStatus();
  }

  absl::Status OnChunk(const v1::UploadChunk& chunk) {
    if (upload_ == nullptr) {
      return InvalidField(
          "chunk", finished_ ? "expected no message after finish" : "expected a header first");
    }
    if (absl::Status s = CheckChunkSize(static_cast<int64_t>(chunk.data().size())); !s.ok())
      return s;
    metrics_.BytesIn(tenant_, Traffic::kWeights, static_cast<int64_t>(chunk.data().size()));
    return upload_->Append(
        chunk.offset(),
        {reinterpret_cast<const std::byte*>(chunk.data().data()), chunk.data().size()},
        chunk.crc32c());
  }

  absl::Status OnFinish(const v1::UploadFinish& finish) {
    if (upload_ == nullptr) return InvalidField("finish", "expected a header and the chunks first");
    const absl::Time started = absl::Now();
    const absl::StatusOr<UploadProgress> progress = upload_->Finish(finish.sha256());
    if (!progress.ok()) return progress.status();
    metrics_.CommitFinished(Traffic::kWeights, absl::ToDoubleSeconds(absl::Now() - started));
    progress_ = *progress;
    finished_ = true;
    upload_.reset();
    return absl::OkStatus();
  }

  const std::string tenant_;
  WeightUploads& uploads_;
  Metrics& metrics_;
  std::unique_ptr<WeightUpload> upload_;
  UploadProgress progress_;
  bool finished_ = false;
};

class WeightsService final : public v1::Weights::CallbackService {
 public:
  WeightsService(const CallEnvironment& environment, WeightUploads& uploads)
      : environment_(environment), uploads_(uploads) {}

  grpc::ServerReadReactor<v1::UploadWeightsRequest>* UploadWeights(
      grpc::CallbackServerContext* context, v1::UploadWeightsResponse* response) override {
    Call call(environment_, context, "quantd.v1.Weights/UploadWeights");
    auto consumer = std::make_unique<UploadConsumer>(call.tenant().value_or(""), uploads_,
                                                     environment_.metrics);
    return new StreamIn<v1::UploadWeightsRequest, v1::UploadWeightsResponse>(
        std::move(call), std::move(consumer), response);
  }

  grpc::ServerUnaryReactor* GetUploadStatus(grpc::CallbackServerContext* context,
                                            const v1::GetUploadStatusRequest* request,
                                            v1::UploadStatus* response) override {
    return RunUnary(
        environment_, context, "quantd.v1.Weights/GetUploadStatus", request, response,
        [=, this](const std::string& tenant) -> absl::Status {
          const auto name = ParseLayerName("layer", request->layer(), tenant);
          if (!name.ok()) return name.status();
          const auto progress = uploads_.Status({name->tenant, name->first, name->second});
          if (!progress.ok()) return progress.status();
          Fill(*progress, *response);
          return absl::OkStatus();
        });
  }

 private:
  const CallEnvironment& environment_;
  WeightUploads& uploads_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewWeightsService(const CallEnvironment& environment,
                                                 WeightUploads& uploads) {
  return std::make_unique<WeightsService>(environment, uploads);
}

}  // namespace quantd::server
