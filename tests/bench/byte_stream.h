#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace quantd::bench {

// Messages as bytes, so that the client's own serialization costs a bare server and a real one the
// same, which is nothing.
grpc::ByteBuffer ToBytes(const std::string& message);
// `prefix`, then `data` without a copy (it must outlive the buffer), then `suffix`.
grpc::ByteBuffer ToBytes(const std::string& prefix, const std::string& data,
                         const std::string& suffix);

struct StreamPlan {
  std::string method;  // "/quantd.v1.Calibration/StreamActivations"
  grpc::ByteBuffer header;
  // Message number 1, 2, ... and the payload it carries.
  std::function<grpc::ByteBuffer(int64_t number)> chunk;
  int64_t chunk_bytes = 0;
  // Streams so long, or so many chunks; whichever is set.
  double seconds = 0.0;
  int64_t chunks = 0;
  std::function<grpc::ByteBuffer()> last;  // after the chunks; unset: nothing
  // Waits for the server's first answer and then keeps to the credit that it gives.
  bool keeps_credit = false;
};

struct StreamOutcome {
  int64_t bytes = 0;     // of payload
  double seconds = 0.0;  // from the first chunk to the end of the call: everything is durable then
  std::string response;  // the last one
};

// Streams as fast as the server takes it, on the callback API.
absl::StatusOr<StreamOutcome> RunStream(const std::shared_ptr<grpc::Channel>& channel,
                                        const StreamPlan& plan);

}  // namespace quantd::bench
