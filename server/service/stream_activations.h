#pragma once

#include <vector>

#include "compute/backend/backend.h"
#include "quantd/v1/calibration.pb.h"
#include "server/ingest/statistics.h"
#include "server/service/call.h"

namespace quantd::server {

struct ActivationStreamOptions {
  int64_t credit_bytes = int64_t{16} << 20;
  bool shared_memory = false;  // whether chunks may lie in a region of the client's
  bool cuda_ipc = false;       // and whether in one of a GPU's memory
  std::vector<compute::Backend*> devices = {};  // of the server; outlive the call
};

// One StreamActivations call. Reads on gRPC's threads, as fast as the stream's queue stays below
// the credit; acknowledgements that come faster than the client reads are folded into one. Owns
// itself.
grpc::ServerBidiReactor<v1::StreamActivationsRequest, v1::StreamActivationsResponse>*
NewStreamActivationsReactor(Call call, Statistics& statistics,
                            const ActivationStreamOptions& options);

}  // namespace quantd::server
