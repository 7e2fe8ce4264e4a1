#pragma once

#include <string>

#include "quantd/v1/jobs.pb.h"
#include "server/jobs/job_engine.h"
#include "server/service/call.h"

namespace quantd::server {

// Sends the job now and after every change until it has ended. Changes that come faster than the
// client reads are folded into one message. Owns itself.
grpc::ServerWriteReactor<v1::WatchJobResponse>* NewWatchJobReactor(Call call, JobEngine& engine,
                                                                   const std::string& name);

}  // namespace quantd::server
