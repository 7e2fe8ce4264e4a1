#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>

#include "server/service/call.h"
#include "server/store/blob_store.h"
#include "server/store/job_store.h"

namespace quantd::server {

// quantd.v1.Results over the stores. The arguments outlive the service.
std::unique_ptr<grpc::Service> NewResultsService(const CallEnvironment& environment, JobStore& jobs,
                                                 BlobStore& blobs);

}  // namespace quantd::server
