#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>

#include "server/ingest/weight_uploads.h"
#include "server/service/call.h"

namespace quantd::server {

// quantd.v1.Weights over the uploads. The arguments outlive the service.
std::unique_ptr<grpc::Service> NewWeightsService(const CallEnvironment& environment,
                                                 WeightUploads& uploads);

}  // namespace quantd::server
