#pragma once

#include "quantd/v1/calibration.pb.h"
#include "server/ingest/statistics.h"
#include "server/service/call.h"

namespace quantd::server {

// One StreamActivations call. Reads on gRPC's threads, as fast as the stream's queue stays below
// `credit_bytes`; acknowledgements that come faster than the client reads are folded into one. Owns
// itself.
grpc::ServerBidiReactor<v1::StreamActivationsRequest, v1::StreamActivationsResponse>*
NewStreamActivationsReactor(Call call, Statistics& statistics, int64_t credit_bytes);

}  // namespace quantd::server
