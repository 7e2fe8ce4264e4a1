#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>

#include "server/jobs/job_engine.h"
#include "server/jobs/job_rules.h"
#include "server/service/call.h"

namespace quantd::server {

// quantd.v1.Jobs over the engine; `blobs` holds the reports that plans are made from. The arguments
// outlive the service.
std::unique_ptr<grpc::Service> NewJobsService(const CallEnvironment& environment, JobEngine& engine,
                                              JobStore& jobs, BlobStore& blobs);

}  // namespace quantd::server
