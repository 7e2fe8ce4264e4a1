#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "compute/backend/backend.h"
#include "server/ingest/moment_cache.h"
#include "server/ingest/strand.h"
#include "server/ingest/sum_memory.h"
#include "server/store/blob_store.h"
#include "server/store/job_store.h"

namespace quantd::server {

struct ActivationChunk {
  int64_t seq = 0;
  int64_t rows = 0;  // tokens
  std::string data;  // rows x cols elements
  uint32_t crc32c = 0;
  std::vector<float> weights;  // weighted statistics: one a token
  std::string paired;          // paired kinds: rows x paired_cols elements
  uint32_t paired_crc32c = 0;

  // What counts against credits and limits.
  int64_t bytes() const {
    return static_cast<int64_t>(data.size() + paired.size() + weights.size() * sizeof(float));
  }
};

struct ActivationAck {
  int64_t received_seq = 0;  // accumulated
  int64_t durable_seq = 0;   // survives a crash
};

// When received chunks become durable. A commit writes the whole partial sum, so commits are spaced
// by their own cost: they take at most a tenth of the time (a fifth once commit_bytes wait).
struct CommitPolicy {
  int64_t bytes = int64_t{64} << 20;
  absl::Duration interval = absl::Seconds(1);
};

// What happens in a stream, for the one who answers the client and for metrics. Called from any
// thread, one call at a time.
struct ActivationListener {
  std::function<void(const ActivationAck&)> progressed;
  std::function<void(const absl::Status&)> failed;  // at most once; the stream takes no more
  std::function<void()> drained;                    // queued bytes fell below the credit
  // `latency`: since the first of the tokens came; `took`: the commit alone.
  std::function<void(int64_t tokens, absl::Duration latency, absl::Duration took)> committed;
};

// One writer's stream of activations into one statistic: checks chunks, accumulates them in order
// on a strand and commits {partial sum, durable_seq} as one. The sum depends only on the tokens'
// order, so a crash and a resend give the same bits, and so does a sum that is paged out to its
// snapshot while others need the device. Push, Flush and Finish are called by one thread at a time.
class ActivationStream : public std::enable_shared_from_this<ActivationStream> {
 public:
  struct Target {
    std::string tenant;
    std::string statistic;
    compute::MomentSpec spec;
  };
  // Makes an accumulator that goes on from a snapshot (unnamed: from nothing). Called with the
  // first chunk, as a stream that sends nothing takes no memory for sums, and after each page-out.
  using AccumulatorMaker =
      std::function<absl::StatusOr<std::unique_ptr<compute::MomentAccumulator>>(
          const BlobRef& snapshot)>;
  // Where its sum is: `bytes` of `memory`.
  struct Device {
    std::shared_ptr<SumMemory> memory;
    int64_t bytes;
    AccumulatorMaker make_accumulator;
  };
  ActivationStream(Target target, StatisticStreamRecord resumed, Executor& executor, JobStore& jobs,
                   BlobStore& blobs, MomentCache& cache, CommitPolicy policy, Device device);
  ~ActivationStream();

  void SetListener(ActivationListener listener);
  int64_t durable_seq() const { return opened_at_seq_; }  // when the stream was opened

  // INVALID_ARGUMENT for shape, CRC, NaN or Inf, zero tokens, weights or paired data that do not
  // fit the statistic's kind, or a known seq with other contents; OUT_OF_RANGE for a gap. A refused
  // chunk changes nothing; the stream is then finished by the caller.
  absl::Status Push(ActivationChunk chunk);
  void Flush();
  // Makes everything received durable, then calls `done` with the outcome.
  void Finish(std::function<void(absl::Status)> done);
  // Called now and then: commits what has waited long enough.
  void Tick();

  // Bytes pushed and not yet accumulated.
  int64_t queued_bytes() const;

 private:
  absl::Status Check(const ActivationChunk& chunk) const;
  absl::Status CheckBytes(absl::string_view field, int64_t cols, const ActivationChunk& chunk,
                          const std::string& data, uint32_t crc32c) const;
  absl::Status CheckWeights(const ActivationChunk& chunk) const;
  absl::Status CheckResent(const ActivationChunk& chunk) const;
  // The rest runs on the strand.
  void Accumulate(ActivationChunk chunk);
  void AccumulateNow(const ActivationChunk& chunk);
  absl::Status Add(const ActivationChunk& chunk);
  // True where the sum may be on the device and added to; else chunks wait until it is.
  bool MayAccumulate();
  void MemoryGranted(SumMemory::Id id);
  void AccumulateWaiting();
  void PageOut(SumMemory::Id id);
  // Once nothing of it is undurable.
  void MaybePageOut();
  void GiveMemoryBack();
  void DropWaiting();
  void MaybeCommit();
  void StartCommit();
  // Beside the strand: writes the partial sum and moves the durable sequence number with it.
  absl::Status Commit(const compute::SecondMoment& moment, StatisticStreamRecord& record);
  void FinishCommit(absl::Status status, const StatisticStreamRecord& record, absl::Time started);
  void Fail(const absl::Status& status);
  void ReportProgress();
  void CompleteIfDone();

  const Target target_;
  const int64_t opened_at_seq_;
  JobStore& jobs_;
  BlobStore& blobs_;
  MomentCache& cache_;  // gets the last snapshot: it is likely to be sealed next
  Executor& executor_;
  const CommitPolicy policy_;
  Strand strand_;

  // Of the pushing thread.
  int64_t pushed_seq_;
  std::vector<uint32_t> recent_crcs_;  // CrcOf the chunks up to pushed_seq_

  mutable absl::Mutex mutex_;
  int64_t queued_bytes_ ABSL_GUARDED_BY(mutex_) = 0;

  // Of the strand.
  const Device device_;
  SumMemory::Taken memory_;                                  // id 0: neither held nor asked for
  bool page_out_ = false;                                    // others wait for its memory
  std::deque<ActivationChunk> waiting_;                      // for memory, in order
  std::unique_ptr<compute::MomentAccumulator> accumulator_;  // null: not on the device
  StatisticStreamRecord durable_;                            // as committed
  StatisticStreamRecord accumulated_;  // with everything accumulated; snapshot unused
  ActivationListener listener_;
  absl::Status failure_;
  int64_t undurable_bytes_ = 0;
  absl::Time first_undurable_ = absl::InfiniteFuture();
  absl::Time last_commit_ = absl::InfinitePast();
  absl::Duration commit_cost_ = absl::ZeroDuration();
  bool committing_ = false;
  bool flush_requested_ = false;
  std::function<void(absl::Status)> finish_done_;

  std::atomic<bool> waits_for_commit_{false};  // undurable_bytes_ > 0, for other threads
};

}  // namespace quantd::server
