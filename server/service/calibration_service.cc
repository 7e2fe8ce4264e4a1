#include "server/service/calibration_service.h"

#include <string>
#include <utility>
#include <vector>

#include "quantd/v1/calibration.grpc.pb.h"
#include "server/errors/error.h"
#include "server/service/messages.h"
#include "server/service/moment_transfer.h"
#include "server/service/resource_name.h"

namespace quantd::server {
namespace {

class CalibrationService final : public v1::Calibration::CallbackService {
 public:
  CalibrationService(const CallEnvironment& environment, Statistics& statistics, JobStore& jobs,
                     const ActivationStreamOptions& streams)
      : environment_(environment), statistics_(statistics), jobs_(jobs), streams_(streams) {}

  grpc::ServerBidiReactor<v1::StreamActivationsRequest, v1::StreamActivationsResponse>*
  StreamActivations(grpc::CallbackServerContext* context) override {
    return NewStreamActivationsReactor(
        Call(environment_, context, "quantd.v1.Calibration/StreamActivations"), statistics_,
        streams_);
  }

  grpc::ServerUnaryReactor* GetStatistic(grpc::CallbackServerContext* context,
                                         const v1::GetStatisticRequest* request,
                                         v1::Statistic* response) override {
    return RunUnary(environment_, context, "quantd.v1.Calibration/GetStatistic", request, response,
                    [=, this](const std::string& tenant) -> absl::Status {
                      const auto name = ParseStatisticName("name", request->name(), tenant);
                      if (!name.ok()) return name.status();
                      return Answer(jobs_.GetStatistic(tenant, name->first), *response);
                    });
  }

  grpc::ServerUnaryReactor* ListStatistics(grpc::CallbackServerContext* context,
                                           const v1::ListStatisticsRequest* request,
                                           v1::ListStatisticsResponse* response) override {
    return RunUnary(environment_, context, "quantd.v1.Calibration/ListStatistics", request,
                    response, [=, this](const std::string& tenant) -> absl::Status {
                      if (auto s = CheckParent("parent", request->parent(), tenant); !s.ok()) {
                        return s;
                      }
                      const auto size = PageSize(request->page_size());
                      if (!size.ok()) return size.status();
                      const auto page = jobs_.ListStatistics(tenant, *size, request->page_token());
                      if (absl::IsInvalidArgument(page.status())) {
                        return InvalidField("page_token", page.status());
                      }
                      if (!page.ok()) return page.status();
                      for (const StatisticRecord& statistic : page->items) {
                        *response->add_statistics() = ToProto(statistic);
                      }
                      response->set_next_page_token(page->next_token);
                      return absl::OkStatus();
                    });
  }

  grpc::ServerUnaryReactor* MergeStatistics(grpc::CallbackServerContext* context,
                                            const v1::MergeStatisticsRequest* request,
                                            v1::Statistic* response) override {
    return RunUnary(environment_, context, "quantd.v1.Calibration/MergeStatistics", request,
                    response, [=, this](const std::string& tenant) -> absl::Status {
                      if (auto s = CheckParent("parent", request->parent(), tenant); !s.ok()) {
                        return s;
                      }
                      if (auto s = CheckId("statistic_id", request->statistic_id(), 256); !s.ok()) {
                        return s;
                      }
                      std::vector<std::string> sources;
                      for (const std::string& source : request->sources()) {
                        const auto name = ParseStatisticName("sources", source, tenant);
                        if (!name.ok()) return name.status();
                        sources.push_back(name->first);
                      }
                      return Answer(statistics_.Merge(tenant, request->statistic_id(), sources),
                                    *response);
                    });
  }

  grpc::ServerUnaryReactor* SealStatistic(grpc::CallbackServerContext* context,
                                          const v1::SealStatisticRequest* request,
                                          v1::Statistic* response) override {
    return RunUnary(environment_, context, "quantd.v1.Calibration/SealStatistic", request, response,
                    [=, this](const std::string& tenant) -> absl::Status {
                      const auto name = ParseStatisticName("name", request->name(), tenant);
                      if (!name.ok()) return name.status();
                      return Answer(statistics_.Seal(tenant, name->first), *response);
                    });
  }

  grpc::ServerUnaryReactor* DeleteStatistic(grpc::CallbackServerContext* context,
                                            const v1::DeleteStatisticRequest* request,
                                            google::protobuf::Empty* response) override {
    return RunUnary(environment_, context, "quantd.v1.Calibration/DeleteStatistic", request,
                    response, [=, this](const std::string& tenant) -> absl::Status {
                      const auto name = ParseStatisticName("name", request->name(), tenant);
                      if (!name.ok()) return name.status();
                      return statistics_.Delete(tenant, name->first);
                    });
  }

  grpc::ServerReadReactor<v1::ImportStatisticRequest>* ImportStatistic(
      grpc::CallbackServerContext* context, v1::Statistic* response) override {
    Call call(environment_, context, "quantd.v1.Calibration/ImportStatistic");
    auto consumer = NewMomentImport(call.tenant().value_or(""), statistics_, environment_);
    return new StreamIn<v1::ImportStatisticRequest, v1::Statistic>(std::move(call),
                                                                   std::move(consumer), response);
  }

  grpc::ServerWriteReactor<v1::ExportStatisticResponse>* ExportStatistic(
      grpc::CallbackServerContext* context, const v1::ExportStatisticRequest* request) override {
    Call call(environment_, context, "quantd.v1.Calibration/ExportStatistic");
    const auto open = [&]() -> absl::StatusOr<StreamOut<v1::ExportStatisticResponse>::Next> {
      if (!call.tenant().ok()) return call.tenant().status();
      const auto name = ParseStatisticName("name", request->name(), *call.tenant());
      if (!name.ok()) return name.status();
      return NewMomentExport(*name, statistics_, environment_.metrics);
    };
    auto next = open();
    return new StreamOut<v1::ExportStatisticResponse>(std::move(call), std::move(next));
  }

 private:
  static absl::Status Answer(const absl::StatusOr<StatisticRecord>& statistic,
                             v1::Statistic& response) {
    if (!statistic.ok()) return statistic.status();
    response = ToProto(*statistic);
    return absl::OkStatus();
  }

  const CallEnvironment& environment_;
  Statistics& statistics_;
  JobStore& jobs_;
  const ActivationStreamOptions streams_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewCalibrationService(const CallEnvironment& environment,
                                                     Statistics& statistics, JobStore& jobs,
                                                     const ActivationStreamOptions& streams) {
  return std::make_unique<CalibrationService>(environment, statistics, jobs, streams);
}

}  // namespace quantd::server
