#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace quantd::server {

// The gRPC status with google.rpc details: ErrorInfo always (domain "quantd.dev"), and BadRequest,
// PreconditionFailure, QuotaFailure or RetryInfo where the error carries what they need.
grpc::Status ToGrpc(const absl::Status& status);

// The same as google.rpc.Status bytes, as a Layer's `error` holds them.
std::string ToRpcStatusBytes(const absl::Status& status);

}  // namespace quantd::server
