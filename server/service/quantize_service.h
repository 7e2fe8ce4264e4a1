#pragma once

#include <grpcpp/impl/service_type.h>

#include <cstdint>
#include <memory>

#include "compute/backend/backend.h"
#include "server/service/call.h"

namespace quantd::server {

// quantd.v1.Quantize: small tensors, inline, on `backend`. The arguments outlive the service.
std::unique_ptr<grpc::Service> NewQuantizeService(const CallEnvironment& environment,
                                                  compute::Backend& backend,
                                                  int64_t max_inline_bytes);

}  // namespace quantd::server
