#include "client/cpp/client.h"

#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/connection.h"
#include "client/cpp/conversion.h"

namespace quantd::client {
namespace {

std::string RandomRequestId() {
  std::random_device random;
  return absl::StrFormat("%08x%08x%08x%08x", random(), random(), random(), random());
}

std::string Parent(const ServerInfo& server) { return absl::StrCat("tenants/", server.tenant); }

// Follows page tokens until `fetch` returns none.
template <typename Request, typename Response>
absl::Status ForEachPage(Request request,
                         const std::function<absl::Status(const Request&, Response*)>& fetch,
                         const std::function<void(const Response&)>& take) {
  request.set_page_size(500);
  while (true) {
    Response response;
    if (absl::Status status = fetch(request, &response); !status.ok()) return status;
    take(response);
    if (response.next_page_token().empty()) return absl::OkStatus();
    request.set_page_token(response.next_page_token());
  }
}

// Gone is gone: a repeated deletion, whose first answer was lost, finds nothing.
template <typename Stub, typename Request>
absl::Status Delete(Connection& connection, Stub& stub,
                    grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                 google::protobuf::Empty*),
                    const Request& request) {
  Backoff backoff(connection.options().retry_for);
  for (bool first = true;; first = false) {
    google::protobuf::Empty response;
    const absl::Status status =
        CallOnce(connection, stub, method, request, &response, absl::Seconds(120));
    if (status.ok() || (!first && absl::IsNotFound(status))) return absl::OkStatus();
    if (absl::Status stop = connection.WaitToRetry(status, backoff); !stop.ok()) return stop;
  }
}

}  // namespace

Client::Client(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}
Client::~Client() = default;

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const ConnectOptions& options) {
  auto connection = Connection::Create(options);
  if (!connection.ok()) return connection.status();
  v1::ServerInfo info;
  Backoff backoff(options.retry_for);
  while (true) {
    const absl::Status status =
        CallOnce(**connection, *(*connection)->server_stub, &v1::Server::Stub::GetServerInfo,
                 v1::GetServerInfoRequest(), &info, options.connect_timeout);
    if (status.ok()) break;
    if (absl::IsDeadlineExceeded(status)) {
      return absl::UnavailableError(absl::StrCat("the server at ", options.address,
                                                 " did not answer within ",
                                                 absl::FormatDuration(options.connect_timeout)));
    }
    // One attempt where nobody answers: somebody who mistyped an address wants to know now.
    if (!IsAtLimit(status)) return status;
    if (absl::Status stop = (*connection)->WaitToRetry(status, backoff); !stop.ok()) return stop;
  }
  (*connection)->SetServer(FromWire(info));
  return std::unique_ptr<Client>(new Client(*std::move(connection)));
}

const ServerInfo& Client::server() const { return connection_->server(); }

void Client::Interrupt() { connection_->Interrupt(); }

std::string Client::JobName(absl::string_view job) const {
  if (absl::StrContains(job, '/')) return std::string(job);
  return absl::StrCat(Parent(server()), "/jobs/", job);
}

std::string Client::StatisticName(absl::string_view statistic) const {
  if (absl::StrContains(statistic, '/')) return std::string(statistic);
  return absl::StrCat(Parent(server()), "/statistics/", statistic);
}

absl::StatusOr<ServerInfo> Client::GetServerInfo() {
  v1::ServerInfo info;
  absl::Status status =
      CallUnary(*connection_, *connection_->server_stub, &v1::Server::Stub::GetServerInfo,
                v1::GetServerInfoRequest(), &info);
  if (!status.ok()) return status;
  return FromWire(info);
}

absl::StatusOr<std::vector<Tenant>> Client::ListTenants() {
  v1::ListTenantsResponse response;
  absl::Status status =
      CallUnary(*connection_, *connection_->server_stub, &v1::Server::Stub::ListTenants,
                v1::ListTenantsRequest(), &response);
  if (!status.ok()) return status;
  std::vector<Tenant> tenants;
  for (const v1::Tenant& tenant : response.tenants()) tenants.push_back(FromWire(tenant));
  return tenants;
}

absl::StatusOr<CreatedJob> Client::CreateJob(const JobSpec& spec, bool validate_only) {
  v1::CreateJobRequest request;
  request.set_parent(Parent(server()));
  request.set_job_id(spec.job_id);
  request.set_request_id(RandomRequestId());  // makes the call safe to repeat
  request.set_validate_only(validate_only);
  request.mutable_job()->set_display_name(spec.display_name);
  *request.mutable_job()->mutable_recipe() = ToWire(spec.recipe);
  request.mutable_job()->set_priority(static_cast<v1::Priority>(spec.priority));
  if (spec.deadline) {
    const int64_t micros = absl::ToUnixMicros(*spec.deadline);
    request.mutable_job()->mutable_deadline()->set_seconds(micros / 1'000'000);
    request.mutable_job()->mutable_deadline()->set_nanos(static_cast<int32_t>(micros % 1'000'000) *
                                                         1000);
  }
  for (const Layer& layer : spec.layers) {
    absl::StatusOr<v1::Layer> wire = ToWire(layer);
    if (!wire.ok()) return wire.status();
    *request.mutable_job()->add_layers() = *std::move(wire);
  }
  v1::CreateJobResponse response;
  absl::Status status =
      CallUnary(*connection_, *connection_->jobs, &v1::Jobs::Stub::CreateJob, request, &response);
  if (!status.ok()) return status;
  return CreatedJob{FromWire(response.job()), FromWire(response.estimate())};
}

absl::StatusOr<Job> Client::GetJob(absl::string_view job) {
  v1::GetJobRequest request;
  request.set_name(JobName(job));
  v1::Job response;
  absl::Status status =
      CallUnary(*connection_, *connection_->jobs, &v1::Jobs::Stub::GetJob, request, &response);
  if (!status.ok()) return status;
  return FromWire(response);
}

absl::StatusOr<std::vector<Job>> Client::ListJobs() {
  std::vector<Job> jobs;
  v1::ListJobsRequest request;
  request.set_parent(Parent(server()));
  absl::Status status = ForEachPage<v1::ListJobsRequest, v1::ListJobsResponse>(
      request,
      [&](const v1::ListJobsRequest& page, v1::ListJobsResponse* response) {
        return CallUnary(*connection_, *connection_->jobs, &v1::Jobs::Stub::ListJobs, page,
                         response);
      },
      [&](const v1::ListJobsResponse& response) {
        for (const v1::Job& job : response.jobs()) jobs.push_back(FromWire(job));
      });
  if (!status.ok()) return status;
  return jobs;
}

absl::StatusOr<Job> Client::CancelJob(absl::string_view job) {
  v1::CancelJobRequest request;
  request.set_name(JobName(job));
  v1::Job response;
  absl::Status status =
      CallUnary(*connection_, *connection_->jobs, &v1::Jobs::Stub::CancelJob, request, &response);
  if (!status.ok()) return status;
  return FromWire(response);
}

absl::Status Client::DeleteJob(absl::string_view job) {
  v1::DeleteJobRequest request;
  request.set_name(JobName(job));
  return Delete(*connection_, *connection_->jobs, &v1::Jobs::Stub::DeleteJob, request);
}

absl::StatusOr<Job> Client::WatchJob(absl::string_view job,
                                     const std::function<void(const JobUpdate&)>& update) {
  v1::WatchJobRequest request;
  request.set_name(JobName(job));
  Backoff backoff(connection_->options().retry_for);
  while (true) {
    Call call(*connection_);
    const auto stream = connection_->jobs->WatchJob(call.context(), request);
    v1::WatchJobResponse response;
    std::optional<Job> last;
    while (stream->Read(&response)) {
      backoff.Reset();
      JobUpdate now = FromWire(response);
      if (update) update(now);
      last = std::move(now.job);
    }
    absl::Status status = connection_->ToStatus(stream->Finish());
    if (last && HasEnded(last->state)) return *std::move(last);
    if (status.ok()) status = absl::UnavailableError("the server ended the watch");
    if (absl::Status stop = connection_->WaitToRetry(status, backoff); !stop.ok()) return stop;
  }
}

absl::StatusOr<Plan> Client::PlanJob(absl::string_view job, double bits_per_weight) {
  v1::PlanJobRequest request;
  request.set_name(JobName(job));
  request.set_bits_per_weight(bits_per_weight);
  v1::Plan response;
  absl::Status status =
      CallUnary(*connection_, *connection_->jobs, &v1::Jobs::Stub::PlanJob, request, &response);
  if (!status.ok()) return status;
  return FromWire(response);
}

absl::StatusOr<UploadStatus> Client::GetUploadStatus(absl::string_view layer) {
  v1::GetUploadStatusRequest request;
  request.set_layer(std::string(layer));
  v1::UploadStatus response;
  absl::Status status = CallUnary(*connection_, *connection_->weights,
                                  &v1::Weights::Stub::GetUploadStatus, request, &response);
  if (!status.ok()) return status;
  return FromWire(response);
}

absl::StatusOr<Statistic> Client::GetStatistic(absl::string_view statistic) {
  v1::GetStatisticRequest request;
  request.set_name(StatisticName(statistic));
  v1::Statistic response;
  absl::Status status = CallUnary(*connection_, *connection_->calibration,
                                  &v1::Calibration::Stub::GetStatistic, request, &response);
  if (!status.ok()) return status;
  return FromWire(response);
}

absl::StatusOr<std::vector<Statistic>> Client::ListStatistics() {
  std::vector<Statistic> statistics;
  v1::ListStatisticsRequest request;
  request.set_parent(Parent(server()));
  absl::Status status = ForEachPage<v1::ListStatisticsRequest, v1::ListStatisticsResponse>(
      request,
      [&](const v1::ListStatisticsRequest& page, v1::ListStatisticsResponse* response) {
        return CallUnary(*connection_, *connection_->calibration,
                         &v1::Calibration::Stub::ListStatistics, page, response);
      },
      [&](const v1::ListStatisticsResponse& response) {
        for (const v1::Statistic& each : response.statistics()) {
          statistics.push_back(FromWire(each));
        }
      });
  if (!status.ok()) return status;
  return statistics;
}

absl::StatusOr<Statistic> Client::SealStatistic(absl::string_view statistic) {
  v1::SealStatisticRequest request;
  request.set_name(StatisticName(statistic));
  v1::Statistic response;
  absl::Status status = CallUnary(*connection_, *connection_->calibration,
                                  &v1::Calibration::Stub::SealStatistic, request, &response);
  if (!status.ok()) return status;
  return FromWire(response);
}

absl::StatusOr<Statistic> Client::MergeStatistics(absl::string_view statistic_id,
                                                  const std::vector<std::string>& sources) {
  v1::MergeStatisticsRequest request;
  request.set_parent(Parent(server()));
  request.set_statistic_id(std::string(statistic_id));
  for (const std::string& source : sources) request.add_sources(StatisticName(source));
  v1::Statistic response;
  Backoff backoff(connection_->options().retry_for);
  for (bool first = true;; first = false) {
    const absl::Status status =
        CallOnce(*connection_, *connection_->calibration, &v1::Calibration::Stub::MergeStatistics,
                 request, &response, absl::Seconds(120));
    if (status.ok()) return FromWire(response);
    // An earlier attempt went through and only its answer was lost.
    if (!first && absl::IsAlreadyExists(status)) return GetStatistic(statistic_id);
    if (absl::Status stop = connection_->WaitToRetry(status, backoff); !stop.ok()) return stop;
  }
}

absl::Status Client::DeleteStatistic(absl::string_view statistic) {
  v1::DeleteStatisticRequest request;
  request.set_name(StatisticName(statistic));
  return Delete(*connection_, *connection_->calibration, &v1::Calibration::Stub::DeleteStatistic,
                request);
}

absl::StatusOr<ErrorReport> Client::GetErrorReport(absl::string_view layer) {
  v1::GetErrorReportRequest request;
  request.set_layer(std::string(layer));
  v1::ErrorReport response;
  absl::Status status = CallUnary(*connection_, *connection_->results,
                                  &v1::Results::Stub::GetErrorReport, request, &response);
  if (!status.ok()) return status;
  return FromWire(response);
}

absl::StatusOr<std::vector<Artifact>> Client::ListArtifacts(absl::string_view job) {
  std::vector<Artifact> artifacts;
  v1::ListArtifactsRequest request;
  request.set_parent(JobName(job));
  absl::Status status = ForEachPage<v1::ListArtifactsRequest, v1::ListArtifactsResponse>(
      request,
      [&](const v1::ListArtifactsRequest& page, v1::ListArtifactsResponse* response) {
        return CallUnary(*connection_, *connection_->results, &v1::Results::Stub::ListArtifacts,
                         page, response);
      },
      [&](const v1::ListArtifactsResponse& response) {
        for (const v1::Artifact& each : response.artifacts()) artifacts.push_back(FromWire(each));
      });
  if (!status.ok()) return status;
  return artifacts;
}

}  // namespace quantd::client
