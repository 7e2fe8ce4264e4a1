#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "grpcpp/grpcpp.h"
#include "quantd/v1/calibration.pb.h"

namespace quantd::bench {

struct AckStream {
  v1::ActivationHeader header;
  v1::ActivationChunk chunk;  // sent again and again, under new numbers
  double seconds = 2.0;
  // Asks for a commit after every chunk and waits for it; else as many chunks fly as the server's
  // credit allows, and it commits when its own rules say so.
  bool flushes = false;
};

// Seconds from the write of each chunk to the acknowledgement that it is durable, sorted.
absl::StatusOr<std::vector<double>> MeasureAcks(const std::shared_ptr<grpc::Channel>& channel,
                                                const AckStream& plan);

}  // namespace quantd::bench
