#include "server/ingest/activation_stream.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "compute/tensor/checksum.h"
#include "compute/tensor/tensor.h"
#include "server/errors/error.h"
#include "server/ingest/statistics.h"
#include "server/store/failpoint.h"

namespace quantd::server {
namespace {

absl::Span<const std::byte> AsBytes(const std::string& data) {
  return {reinterpret_cast<const std::byte*>(data.data()), data.size()};
}

// Of everything in a chunk; of one with data alone, its CRC.
uint32_t CrcOf(const ActivationChunk& chunk) {
  uint32_t crc = chunk.crc32c;
  if (!chunk.weights.empty()) {
    crc = compute::Crc32c({reinterpret_cast<const std::byte*>(chunk.weights.data()),
                           chunk.weights.size() * sizeof(float)},
                          crc);
  }
  if (!chunk.paired.empty()) {
    crc = compute::Crc32c(
        {reinterpret_cast<const std::byte*>(&chunk.paired_crc32c), sizeof(chunk.paired_crc32c)},
        crc);
  }
  return crc;
}

void Remember(std::vector<uint32_t>& crcs, uint32_t crc) {
  // Trimmed in bulk, so that remembering stays cheap.
  constexpr size_t kMost = StatisticStreamRecord::kRememberedCrcs;
  if (crcs.size() >= 2 * kMost) crcs.erase(crcs.begin(), crcs.end() - kMost);
  crcs.push_back(crc);
}

}  // namespace

ActivationStream::ActivationStream(Target target, StatisticStreamRecord resumed, Executor& executor,
                                   JobStore& jobs, BlobStore& blobs, MomentCache& cache,
                                   CommitPolicy policy, Device device)
    : target_(std::move(target)),
      opened_at_seq_(resumed.durable_seq),
      jobs_(jobs),
      blobs_(blobs),
      cache_(cache),
      executor_(executor),
      policy_(policy),
      strand_(executor),
      pushed_seq_(resumed.durable_seq),
      recent_crcs_(resumed.recent_crcs),
      device_(std::move(device)),
      durable_(std::move(resumed)),
      accumulated_(durable_) {}

ActivationStream::~ActivationStream() {
  if (memory_.id != 0) device_.memory->Release(memory_.id);
}

void ActivationStream::SetListener(ActivationListener listener) {
  strand_.Post([self = shared_from_this(), listener = std::move(listener)]() mutable {
    self->listener_ = std::move(listener);
  });
}

absl::Status ActivationStream::CheckResent(const ActivationChunk& chunk) const {
  const int64_t back = pushed_seq_ - chunk.seq;
  if (back >= static_cast<int64_t>(recent_crcs_.size())) return absl::OkStatus();
  const uint32_t known = recent_crcs_[recent_crcs_.size() - 1 - back];
  if (known == CrcOf(chunk)) return absl::OkStatus();
  return InvalidField(
      "chunk.crc32c",
      absl::StrFormat("chunk %d was accepted with CRC-32C %08x%s, got %08x", chunk.seq, known,
                      chunk.bytes() == static_cast<int64_t>(chunk.data.size())
                          ? ""
                          : " (of data, weights and paired data)",
                      CrcOf(chunk)),
      "SEQUENCE_CONFLICT");
}

absl::Status ActivationStream::CheckBytes(absl::string_view field, int64_t cols,
                                          const ActivationChunk& chunk, const std::string& data,
                                          uint32_t crc32c) const {
  const compute::DType dtype = accumulated_.dtype;
  const int64_t row_bytes = cols * static_cast<int64_t>(compute::SizeOf(dtype));
  const auto size = static_cast<int64_t>(data.size());
  if (size % row_bytes != 0 || size / row_bytes != chunk.rows) {
    return InvalidField(absl::StrCat("chunk.", field),
                        absl::StrFormat("expected rows x %d columns of %s (%d bytes a row), got %d "
                                        "rows in %d bytes",
                                        cols, compute::NameOf(dtype), row_bytes, chunk.rows, size));
  }
  if (const uint32_t actual = compute::Crc32c(AsBytes(data)); actual != crc32c) {
    return InvalidField(field == "data" ? "chunk.crc32c" : "chunk.paired_crc32c",
                        absl::StrFormat("the data has CRC-32C %08x, got %08x", actual, crc32c),
                        "CRC_MISMATCH");
  }
  const int64_t bad = compute::FindNonFinite(dtype, AsBytes(data).data(), chunk.rows * cols);
  if (bad < 0) return absl::OkStatus();
  return InvalidField(absl::StrCat("chunk.", field),
                      absl::StrFormat("expected finite values, got NaN or Inf at row %d, column "
                                      "%d of chunk %d",
                                      bad / cols, bad % cols, chunk.seq),
                      "NON_FINITE");
}

absl::Status ActivationStream::CheckWeights(const ActivationChunk& chunk) const {
  const auto count = static_cast<int64_t>(chunk.weights.size());
  const bool weighted = target_.spec.kind == compute::MomentKind::kWeighted;
  if (count != (weighted ? chunk.rows : 0)) {
    const std::string expected =
        weighted ? absl::StrCat(chunk.rows, ", one a token,") : std::string("none");
    return InvalidField("chunk.token_weights",
                        absl::StrFormat("expected %s for a statistic of kind %s, got %d", expected,
                                        compute::NameOf(target_.spec.kind), count));
  }
  for (int64_t i = 0; i < count; ++i) {
    if (std::isfinite(chunk.weights[i]) && chunk.weights[i] >= 0) continue;
    return InvalidField(
        "chunk.token_weights",
        absl::StrFormat("expected finite weights >= 0, got %g at row %d of chunk %d",
                        chunk.weights[i], i, chunk.seq),
        "BAD_WEIGHT");
  }
  return absl::OkStatus();
}

absl::Status ActivationStream::Check(const ActivationChunk& chunk) const {
  if (chunk.rows < 1) {
    return InvalidField("chunk.rows", absl::StrCat("expected at least 1 token, got ", chunk.rows),
                        "ZERO_TOKENS");
  }
  const compute::MomentSpec& spec = target_.spec;
  absl::Status status = CheckBytes("data", spec.cols, chunk, chunk.data, chunk.crc32c);
  if (!status.ok()) return status;
  if (status = CheckWeights(chunk); !status.ok()) return status;
  if (spec.is_paired()) {
    return CheckBytes("paired_data", spec.paired_cols, chunk, chunk.paired, chunk.paired_crc32c);
  }
  if (chunk.paired.empty()) return absl::OkStatus();
  return InvalidField("chunk.paired_data",
                      absl::StrFormat("expected none for a statistic of kind %s, got %d bytes",
                                      compute::NameOf(spec.kind), chunk.paired.size()));
}

absl::Status ActivationStream::Push(ActivationChunk chunk) {
  if (chunk.seq < 1) {
    return InvalidField("chunk.seq", absl::StrCat("expected 1 or more, got ", chunk.seq));
  }
  if (chunk.seq <= pushed_seq_) {
    if (absl::Status status = CheckResent(chunk); !status.ok()) return status;
    strand_.Post([self = shared_from_this()] { self->ReportProgress(); });
    return absl::OkStatus();
  }
  if (chunk.seq != pushed_seq_ + 1) {
    return Error(absl::StatusCode::kOutOfRange, "SEQUENCE_GAP",
                 absl::StrFormat("chunk.seq: expected %d, got %d", pushed_seq_ + 1, chunk.seq));
  }
  if (absl::Status status = Check(chunk); !status.ok()) return status;
  pushed_seq_ = chunk.seq;
  Remember(recent_crcs_, CrcOf(chunk));
  {
    absl::MutexLock lock(&mutex_);
    queued_bytes_ += chunk.bytes();
  }
  strand_.Post([self = shared_from_this(), chunk = std::move(chunk)]() mutable {
    self->Accumulate(std::move(chunk));
  });
  return absl::OkStatus();
}

int64_t ActivationStream::queued_bytes() const {
  absl::MutexLock lock(&mutex_);
  return queued_bytes_;
}

absl::Status ActivationStream::Add(const ActivationChunk& chunk) {
  if (accumulator_ == nullptr) {
    auto made = device_.make_accumulator(durable_.snapshot);
    if (!made.ok()) return made.status();
    accumulator_ = *std::move(made);
  }
  return accumulator_->Add(accumulated_.stream_id, accumulated_.tokens,
                           {.dtype = accumulated_.dtype,
                            .tokens = chunk.rows,
                            .data = AsBytes(chunk.data),
                            .weights = chunk.weights,
                            .paired = AsBytes(chunk.paired)});
}

bool ActivationStream::MayAccumulate() {
  // A sum that is about to go takes no more: what is committed now is all of it.
  if (page_out_ && committing_) return false;
  if (memory_.granted) {
    device_.memory->Touch(memory_.id);
    return true;
  }
  if (memory_.id != 0) return false;
  const auto on_strand = [this](void (ActivationStream::*member)(SumMemory::Id)) {
    return [weak = weak_from_this(), member](SumMemory::Id id) {
      const auto self = weak.lock();
      if (self == nullptr) return;
      self->strand_.Post([self, member, id] { (self.get()->*member)(id); });
    };
  };
  memory_ = device_.memory->Take({.bytes = device_.bytes,
                                  .granted = on_strand(&ActivationStream::MemoryGranted),
                                  .page_out = on_strand(&ActivationStream::PageOut)});
  return memory_.granted;
}

void ActivationStream::Accumulate(ActivationChunk chunk) {
  if (failure_.ok() && (!waiting_.empty() || !MayAccumulate())) {
    waiting_.push_back(std::move(chunk));
    return;
  }
  AccumulateNow(chunk);
}

void ActivationStream::MemoryGranted(SumMemory::Id id) {
  if (memory_.id != id) return;  // given back meanwhile
  memory_.granted = true;
  AccumulateWaiting();
}

void ActivationStream::AccumulateWaiting() {
  while (!waiting_.empty() && MayAccumulate()) {
    const ActivationChunk chunk = std::move(waiting_.front());
    waiting_.pop_front();
    AccumulateNow(chunk);
  }
  CompleteIfDone();
}

void ActivationStream::PageOut(SumMemory::Id id) {
  if (memory_.id != id) return;
  page_out_ = true;
  MaybeCommit();
  MaybePageOut();
}

void ActivationStream::MaybePageOut() {
  if (!page_out_ || committing_ || undurable_bytes_ > 0) return;
  GiveMemoryBack();
  if (!waiting_.empty() && MayAccumulate()) AccumulateWaiting();
}

void ActivationStream::GiveMemoryBack() {
  page_out_ = false;
  accumulator_ = nullptr;
  const SumMemory::Id id = std::exchange(memory_, {}).id;
  if (id != 0) device_.memory->Release(id);
}

void ActivationStream::DropWaiting() {
  absl::MutexLock lock(&mutex_);
  for (const ActivationChunk& chunk : waiting_) queued_bytes_ -= chunk.bytes();
  waiting_.clear();
}

void ActivationStream::AccumulateNow(const ActivationChunk& chunk) {
  const int64_t size = chunk.bytes();
  if (failure_.ok()) {
    const absl::Status status = Add(chunk);
    if (status.ok()) {
      accumulated_.durable_seq = chunk.seq;
      accumulated_.tokens += chunk.rows;
      Remember(accumulated_.recent_crcs, CrcOf(chunk));
      if (undurable_bytes_ == 0) first_undurable_ = absl::Now();
      undurable_bytes_ += size;
      waits_for_commit_ = true;
    } else {
      Fail(Annotate(status, absl::StrCat("chunk ", chunk.seq)));
    }
  }
  {
    absl::MutexLock lock(&mutex_);
    queued_bytes_ -= size;
  }
  if (listener_.drained) listener_.drained();
  if (failure_.ok()) {
    ReportProgress();
    MaybeCommit();
  }
}

void ActivationStream::Flush() {
  strand_.Post([self = shared_from_this()] {
    self->flush_requested_ = true;
    self->MaybeCommit();
  });
}

void ActivationStream::Tick() {
  if (!waits_for_commit_) return;  // thousands of idle streams cost no work
  strand_.Post([self = shared_from_this()] { self->MaybeCommit(); });
}

void ActivationStream::Finish(std::function<void(absl::Status)> done) {
  strand_.Post([self = shared_from_this(), done = std::move(done)]() mutable {
    self->finish_done_ = std::move(done);
    self->MaybeCommit();
    self->CompleteIfDone();
  });
}

void ActivationStream::MaybeCommit() {
  if (committing_ || !failure_.ok()) return;
  if (undurable_bytes_ == 0) {
    if (!waiting_.empty()) return;
    if (flush_requested_) ReportProgress();
    flush_requested_ = false;
    return;
  }
  const absl::Time now = absl::Now();
  const bool asked = waiting_.empty() && (flush_requested_ || finish_done_ != nullptr ||
                                          (page_out_ && queued_bytes() == 0));
  const bool enough = undurable_bytes_ >= policy_.bytes && now - last_commit_ >= 4 * commit_cost_;
  const bool waited = now - first_undurable_ >= std::max(policy_.interval, 10 * commit_cost_);
  if (asked || enough || waited) StartCommit();
}

void ActivationStream::StartCommit() {
  absl::StatusOr<compute::SecondMoment> snapshot = accumulator_->Snapshot();
  if (!snapshot.ok()) {
    Fail(snapshot.status());
    CompleteIfDone();
    return;
  }
  committing_ = true;
  flush_requested_ = false;
  undurable_bytes_ = 0;
  waits_for_commit_ = false;
  const absl::Time first = std::exchange(first_undurable_, absl::InfiniteFuture());
  StatisticStreamRecord record = accumulated_;
  if (record.recent_crcs.size() > StatisticStreamRecord::kRememberedCrcs) {
    record.recent_crcs.erase(record.recent_crcs.begin(),
                             record.recent_crcs.end() - StatisticStreamRecord::kRememberedCrcs);
  }
  // Disk work runs beside the strand: accumulation goes on while the snapshot is written.
  executor_.Post([self = shared_from_this(), record = std::move(record), first,
                  soon_read = finish_done_ != nullptr || page_out_,
                  moment = std::move(*snapshot)]() mutable {
    const absl::Time started = absl::Now();
    const absl::Status status = self->Commit(moment, record);
    if (status.ok() && soon_read) {
      self->cache_.Put(record.snapshot.name,
                       std::make_shared<const compute::SecondMoment>(std::move(moment)));
    }
    self->strand_.Post([self, status, record = std::move(record), started, first] {
      if (status.ok() && self->listener_.committed) {
        const absl::Time now = absl::Now();
        self->listener_.committed(record.tokens - self->durable_.tokens, now - first,
                                  now - started);
      }
      self->FinishCommit(status, record, started);
    });
  });
}

absl::Status ActivationStream::Commit(const compute::SecondMoment& moment,
                                      StatisticStreamRecord& record) {
  if (absl::Status status = Failpoint("ingest.stream.snapshot"); !status.ok()) return status;
  absl::StatusOr<BlobRef> blob = blobs_.Put(target_.tenant, moment.Serialize());
  if (!blob.ok()) return blob.status();
  record.snapshot = *blob;
  absl::Status status = Failpoint("ingest.stream.commit");
  if (status.ok()) status = jobs_.CommitStream(target_.tenant, target_.statistic, record);
  if (CertainlyUnchanged(status)) blobs_.Delete(blob->name).IgnoreError();
  if (status.ok()) status = Failpoint("ingest.stream.acknowledge");
  return status;
}

void ActivationStream::FinishCommit(absl::Status status, const StatisticStreamRecord& record,
                                    absl::Time started) {
  committing_ = false;
  last_commit_ = absl::Now();
  commit_cost_ = last_commit_ - started;
  if (status.ok()) {
    const std::string superseded = durable_.snapshot.name;
    durable_ = record;
    if (!superseded.empty()) {
      cache_.Erase(superseded);
      blobs_.Delete(superseded).IgnoreError();
    }
    ReportProgress();
    MaybeCommit();
    MaybePageOut();
  } else {
    Fail(Annotate(status, absl::StrCat("committing chunk ", record.durable_seq, " of ",
                                       StatisticName(target_.tenant, target_.statistic))));
  }
  CompleteIfDone();
}

void ActivationStream::Fail(const absl::Status& status) {
  if (!failure_.ok()) return;
  failure_ = status;
  DropWaiting();
  GiveMemoryBack();
  if (listener_.failed) listener_.failed(status);
}

void ActivationStream::ReportProgress() {
  if (listener_.progressed) {
    listener_.progressed({accumulated_.durable_seq, durable_.durable_seq});
  }
}

void ActivationStream::CompleteIfDone() {
  if (finish_done_ == nullptr || committing_) return;
  if (failure_.ok() && (undurable_bytes_ > 0 || !waiting_.empty())) return;
  GiveMemoryBack();
  // The listener may hold the last reference to whoever listens: let it go with the stream.
  listener_ = {};
  std::exchange(finish_done_, nullptr)(failure_);
}

}  // namespace quantd::server
