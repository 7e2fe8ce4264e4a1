#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>
#include <string>
#include <vector>

#include "compute/backend/backend.h"
#include "server/config/config.h"
#include "server/jobs/job_engine.h"
#include "server/service/call.h"
#include "server/service/tenant_list.h"

namespace quantd::server {

// quantd.v1.Server: what this server is and can do. The arguments outlive the service.
std::unique_ptr<grpc::Service> NewServerService(const CallEnvironment& environment,
                                                std::string version,
                                                std::vector<compute::Backend*> backends,
                                                const LimitsConfig& limits, JobEngine& engine,
                                                const TenantSources& tenants);

}  // namespace quantd::server
