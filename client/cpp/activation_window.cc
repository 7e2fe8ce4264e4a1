#include "client/cpp/activation_window.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/tensor/checksum.h"

namespace quantd::client {

void ActivationWindow::Add(ActivationRows tokens) {
  const uint32_t crc32c = compute::Crc32c(tokens.data);
  const uint32_t paired_crc32c = compute::Crc32c(tokens.paired);
  kept_ += tokens.bytes();
  chunks_.push_back({next_seq_++, std::move(tokens), crc32c, paired_crc32c});
}

absl::Status ActivationWindow::Restart(int64_t durable_seq, int64_t credit_bytes) {
  const bool fresh = next_seq_ == 1;
  if (fresh) {
    next_seq_ = durable_seq + 1;
  } else if (durable_seq < durable_seq_) {
    return absl::DataLossError(absl::StrCat("the server acknowledged chunk ", durable_seq_,
                                            " as durable and now holds ", durable_seq));
  } else if (durable_seq >= next_seq_) {
    return absl::AbortedError(absl::StrCat("the server holds chunk ", durable_seq, " and only ",
                                           next_seq_ - 1,
                                           " were made here: somebody else writes this stream"));
  }
  DropDurable(durable_seq);
  sent_seq_ = received_seq_ = durable_seq;
  in_flight_ = 0;
  credit_ = credit_bytes;
  return absl::OkStatus();
}

absl::Status ActivationWindow::Acknowledge(int64_t received_seq, int64_t durable_seq,
                                           int64_t credit_bytes) {
  if (received_seq > sent_seq_ || durable_seq > sent_seq_) {
    return absl::InternalError(absl::StrCat("the server acknowledged chunk ",
                                            std::max(received_seq, durable_seq), " and only ",
                                            sent_seq_, " were sent"));
  }
  // Durable implies received, and neither goes back.
  received_seq = std::max({received_seq, durable_seq, received_seq_});
  for (const ActivationChunk& chunk : chunks_) {
    if (chunk.seq > received_seq) break;
    if (chunk.seq > received_seq_) in_flight_ -= chunk.tokens.bytes();
  }
  received_seq_ = received_seq;
  credit_ = credit_bytes;
  DropDurable(durable_seq);
  return absl::OkStatus();
}

void ActivationWindow::DropDurable(int64_t durable_seq) {
  while (!chunks_.empty() && chunks_.front().seq <= durable_seq) {
    kept_ -= chunks_.front().tokens.bytes();
    chunks_.pop_front();
  }
  durable_seq_ = std::max(durable_seq_, durable_seq);
}

const ActivationChunk* ActivationWindow::NextToSend() const {
  if (AllSent()) return nullptr;
  const ActivationChunk& chunk = chunks_[static_cast<size_t>(sent_seq_ - durable_seq_)];
  return in_flight_ + chunk.tokens.bytes() <= credit_ ? &chunk : nullptr;
}

void ActivationWindow::MarkSent() {
  in_flight_ += chunks_[static_cast<size_t>(sent_seq_ - durable_seq_)].tokens.bytes();
  ++sent_seq_;
}

}  // namespace quantd::client
