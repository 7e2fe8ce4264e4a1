#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>

#include "server/ingest/statistics.h"
#include "server/service/call.h"
#include "server/service/stream_activations.h"

namespace quantd::server {

// quantd.v1.Calibration over the statistics. The arguments outlive the service.
std::unique_ptr<grpc::Service> NewCalibrationService(const CallEnvironment& environment,
                                                     Statistics& statistics, JobStore& jobs,
                                                     const ActivationStreamOptions& streams);

}  // namespace quantd::server
