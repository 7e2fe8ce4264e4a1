#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>

#include "server/ingest/statistics.h"
#include "server/service/call.h"

namespace quantd::server {

// quantd.v1.Calibration over the statistics. The arguments outlive the service.
std::unique_ptr<grpc::Service> NewCalibrationService(const CallEnvironment& environment,
                                                     Statistics& statistics, JobStore& jobs,
                                                     int64_t stream_credit_bytes);

}  // namespace quantd::server
