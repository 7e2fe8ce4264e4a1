#pragma once

#include <cstdint>
#include <deque>
#include <string>

#include "absl/status/status.h"
#include "client/cpp/client.h"

namespace quantd::client {

struct ActivationChunk {
  int64_t seq = 0;
  ActivationRows tokens;
  uint32_t crc32c = 0;         // of the data
  uint32_t paired_crc32c = 0;  // of the paired data
};

// What the sending side of an activation stream has to remember: chunks stay here until the server
// says that they are durable, and leave only while the server's credit covers what is in flight
// (sent and not yet received). Knows nothing of the network. Thread-compatible.
class ActivationWindow {
 public:
  // At most about `keep_bytes` of chunk data are kept; see HasRoom.
  explicit ActivationWindow(int64_t keep_bytes) : keep_bytes_(keep_bytes) {}

  // Whether another chunk may be added. Always true when nothing is kept.
  bool HasRoom(int64_t bytes) const { return chunks_.empty() || kept_ + bytes <= keep_bytes_; }
  // Sequence number of the next chunk to Add: 1 for a new stream, and behind what an earlier client
  // made durable for one that is continued.
  int64_t next_seq() const { return next_seq_; }
  void Add(ActivationRows tokens);

  // After connecting: the server holds everything up to `durable_seq`, the rest is sent again.
  // DATA_LOSS where the server has less than it acknowledged, ABORTED where it has more than was
  // sent (somebody else writes this stream).
  absl::Status Restart(int64_t durable_seq, int64_t credit_bytes);
  // INTERNAL for acknowledgements of chunks that were never sent.
  absl::Status Acknowledge(int64_t received_seq, int64_t durable_seq, int64_t credit_bytes);

  // The next chunk that may be sent now, or null: all are sent, or the credit is used up. Valid
  // until the next call of a non-const member.
  const ActivationChunk* NextToSend() const;
  void MarkSent();

  bool AllSent() const { return sent_seq_ + 1 == next_seq_; }
  bool AllDurable() const { return durable_seq_ + 1 == next_seq_; }
  int64_t durable_seq() const { return durable_seq_; }
  int64_t received_seq() const { return received_seq_; }
  int64_t in_flight_bytes() const { return in_flight_; }

 private:
  void DropDurable(int64_t durable_seq);

  const int64_t keep_bytes_;
  std::deque<ActivationChunk> chunks_;  // durable_seq_ + 1 ... next_seq_ - 1
  int64_t kept_ = 0;
  int64_t next_seq_ = 1;
  int64_t sent_seq_ = 0;
  int64_t received_seq_ = 0;
  int64_t durable_seq_ = 0;
  int64_t credit_ = 0;
  int64_t in_flight_ = 0;
};

}  // namespace quantd::client
