#include "server/service/jobs_service.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "quantd/v1/jobs.grpc.pb.h"
#include "server/errors/error.h"
#include "server/service/messages.h"
#include "server/service/resource_name.h"
#include "server/service/watch_job.h"

namespace quantd::server {
namespace {

std::string RandomJobId() {
  static thread_local std::mt19937_64 random{std::random_device{}()};
  return absl::StrFormat("job-%013x", random() >> 12);
}

absl::StatusOr<std::string> ChooseJobId(const std::string& requested) {
  if (requested.empty()) return RandomJobId();
  const bool well_formed =
      requested.size() <= 63 && std::all_of(requested.begin(), requested.end(), [](char c) {
        return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-';
      });
  if (well_formed) return requested;
  return InvalidField(
      "job_id",
      absl::StrCat("expected [a-z0-9-]{1,63}, got \"", absl::CHexEscape(requested.substr(0, 80)),
                   "\" (", requested.size(), " bytes)"),
      "INVALID_NAME");
}

class JobsService final : public v1::Jobs::CallbackService {
 public:
  JobsService(const CallEnvironment& environment, JobEngine& engine, JobStore& jobs,
              BlobStore& blobs)
      : environment_(environment), engine_(engine), jobs_(jobs), blobs_(blobs) {}

  grpc::ServerUnaryReactor* CreateJob(grpc::CallbackServerContext* context,
                                      const v1::CreateJobRequest* request,
                                      v1::CreateJobResponse* response) override {
    return RunUnary(
        environment_, context, "quantd.v1.Jobs/CreateJob", request, response,
        [=, this](const std::string& tenant) { return Create(tenant, *request, *response); });
  }

  grpc::ServerUnaryReactor* GetJob(grpc::CallbackServerContext* context,
                                   const v1::GetJobRequest* request, v1::Job* response) override {
    return RunUnary(environment_, context, "quantd.v1.Jobs/GetJob", request, response,
                    [=, this](const std::string& tenant) -> absl::Status {
                      const auto name = ParseJobName("name", request->name(), tenant);
                      if (!name.ok()) return name.status();
                      const auto view = engine_.Get(tenant, name->first);
                      if (!view.ok()) return view.status();
                      *response = ToProto(*view);
                      return absl::OkStatus();
                    });
  }

  grpc::ServerUnaryReactor* ListJobs(grpc::CallbackServerContext* context,
                                     const v1::ListJobsRequest* request,
                                     v1::ListJobsResponse* response) override {
    return RunUnary(environment_, context, "quantd.v1.Jobs/ListJobs", request, response,
                    [=, this](const std::string& tenant) -> absl::Status {
                      if (auto s = CheckParent("parent", request->parent(), tenant); !s.ok()) {
                        return s;
                      }
                      const auto size = PageSize(request->page_size());
                      if (!size.ok()) return size.status();
                      const auto page = jobs_.ListJobs(tenant, *size, request->page_token());
                      if (absl::IsInvalidArgument(page.status())) {
                        return InvalidField("page_token", page.status());
                      }
                      if (!page.ok()) return page.status();
                      for (const JobRecord& job : page->items) {
                        v1::Job& message = *response->add_jobs();
                        message = ToProto(job);
                        if (!HasEnded(job.state))
                          AddQueue(engine_.Queue(tenant, job.job_id), message);
                      }
                      response->set_next_page_token(page->next_token);
                      return absl::OkStatus();
                    });
  }

  grpc::ServerUnaryReactor* CancelJob(grpc::CallbackServerContext* context,
                                      const v1::CancelJobRequest* request,
                                      v1::Job* response) override {
    return RunUnary(environment_, context, "quantd.v1.Jobs/CancelJob", request, response,
                    [=, this](const std::string& tenant) -> absl::Status {
                      const auto name = ParseJobName("name", request->name(), tenant);
                      if (!name.ok()) return name.status();
                      const auto job = engine_.Cancel(tenant, name->first);
                      if (!job.ok()) return job.status();
                      *response = ToProto(*job);
                      return absl::OkStatus();
                    });
  }

  grpc::ServerUnaryReactor* DeleteJob(grpc::CallbackServerContext* context,
                                      const v1::DeleteJobRequest* request,
                                      google::protobuf::Empty* response) override {
    return RunUnary(environment_, context, "quantd.v1.Jobs/DeleteJob", request, response,
                    [=, this](const std::string& tenant) -> absl::Status {
                      const auto name = ParseJobName("name", request->name(), tenant);
                      if (!name.ok()) return name.status();
                      return engine_.Delete(tenant, name->first);
                    });
  }

  grpc::ServerWriteReactor<v1::WatchJobResponse>* WatchJob(
      grpc::CallbackServerContext* context, const v1::WatchJobRequest* request) override {
    return NewWatchJobReactor(Call(environment_, context, "quantd.v1.Jobs/WatchJob"), engine_,
                              request->name());
  }

  grpc::ServerUnaryReactor* PlanJob(grpc::CallbackServerContext* context,
                                    const v1::PlanJobRequest* request,
                                    v1::Plan* response) override {
    return RunUnary(
        environment_, context, "quantd.v1.Jobs/PlanJob", request, response,
        [=, this](const std::string& tenant) { return Plan(tenant, *request, *response); });
  }

 private:
  absl::Status Plan(const std::string& tenant, const v1::PlanJobRequest& request,
                    v1::Plan& response) {
    const auto name = ParseJobName("name", request.name(), tenant);
    if (!name.ok()) return name.status();
    if (!(request.bits_per_weight() > 0) || !std::isfinite(request.bits_per_weight())) {
      return InvalidField("bits_per_weight", absl::StrFormat("expected a number above 0, got %g",
                                                             request.bits_per_weight()));
    }
    const auto job = jobs_.GetJob(tenant, name->first);
    if (!job.ok()) return job.status();
    std::map<std::string, MeasuredFigures> figures;
    for (const LayerRecord& layer : job->layers) {
      if (layer.state != LayerState::kSucceeded) continue;
      auto measured = FiguresOf(tenant, name->first, layer.layer_id);
      if (!measured.ok()) return Annotate(measured.status(), layer.layer_id);
      figures.emplace(layer.layer_id, *measured);
    }
    const auto plan = server::PlanJob(*job, figures, request.bits_per_weight());
    if (!plan.ok()) return plan.status();
    response = ToProto(*plan, tenant, name->first);
    return absl::OkStatus();
  }

  absl::StatusOr<MeasuredFigures> FiguresOf(const std::string& tenant, const std::string& job,
                                            const std::string& layer) {
    const auto artifact = jobs_.GetArtifact(tenant, job, absl::StrCat(layer, ".report.json"));
    if (!artifact.ok()) return artifact.status();
    const auto text = blobs_.ReadAll(artifact->blob);
    if (!text.ok()) return text.status();
    return MeasuredFiguresFromJson(*text);
  }

  absl::Status Create(const std::string& tenant, const v1::CreateJobRequest& request,
                      v1::CreateJobResponse& response) {
    if (auto s = CheckParent("parent", request.parent(), tenant); !s.ok()) return s;
    if (auto s = CheckText("request_id", request.request_id(), 64); !s.ok()) return s;
    absl::StatusOr<std::string> id = ChooseJobId(request.job_id());
    if (!id.ok()) return id.status();
    absl::StatusOr<JobRecord> job = FromProto(request.job(), tenant);
    if (!job.ok()) return job.status();
    job->job_id = std::move(*id);
    job->request_id = request.request_id();
    job->create_time = absl::Now();
    const absl::StatusOr<JobEstimate> estimate = engine_.Validate(*job);
    if (!estimate.ok()) return estimate.status();
    response.mutable_estimate()->set_peak_bytes(estimate->peak_bytes);
    response.mutable_estimate()->set_device_seconds(estimate->device_seconds);
    response.mutable_estimate()->set_output_bytes(estimate->output_bytes);
    if (!request.validate_only()) {
      job = engine_.Create(std::move(*job));
      if (!job.ok()) return job.status();
    }
    *response.mutable_job() = ToProto(*job);
    return absl::OkStatus();
  }

  const CallEnvironment& environment_;
  JobEngine& engine_;
  JobStore& jobs_;
  BlobStore& blobs_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewJobsService(const CallEnvironment& environment, JobEngine& engine,
                                              JobStore& jobs, BlobStore& blobs) {
  return std::make_unique<JobsService>(environment, engine, jobs, blobs);
}

}  // namespace quantd::server
