#include "server/ingest/statistics.h"

#include <algorithm>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "server/errors/error.h"
#include "server/store/failpoint.h"

namespace quantd::server {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(50);

absl::Status CheckSameSpec(const StatisticRecord& stored, const compute::MomentSpec& asked) {
  const compute::MomentSpec& spec = stored.spec;
  if (asked.kind != spec.kind) {
    return InvalidField("header.kind",
                        absl::StrFormat("expected %s as the statistic was created with, got %s",
                                        compute::NameOf(spec.kind), compute::NameOf(asked.kind)));
  }
  if (asked.paired_cols != spec.paired_cols) {
    return InvalidField("header.paired_cols",
                        absl::StrFormat("expected %d as the statistic was created with, got %d",
                                        spec.paired_cols, asked.paired_cols));
  }
  if (asked.cols != spec.cols) {
    return InvalidField("header.cols", absl::StrFormat("expected %d as the statistic was created "
                                                       "with, got %d",
                                                       spec.cols, asked.cols));
  }
  if (asked.layout != spec.layout || asked.block_size != spec.block_size) {
    return InvalidField("header.layout",
                        "expected the layout and block_size that the statistic was created with");
  }
  if (asked.sample_rows != spec.sample_rows || asked.sample_seed != spec.sample_seed) {
    return InvalidField(
        "header.sample_rows",
        absl::StrFormat("expected sample_rows %d and sample_seed %d as the "
                        "statistic was created with, got %d and %d",
                        spec.sample_rows, spec.sample_seed, asked.sample_rows, asked.sample_seed));
  }
  return absl::OkStatus();
}

// Of a sum on its device, with the tokens that are gathered until they are multiplied.
int64_t OpenSumBytes(const compute::MomentSpec& spec) {
  constexpr int64_t kSlices = 2;
  return (spec.SumElements() + kSlices * compute::kSliceTokens * spec.TokenValues()) *
         static_cast<int64_t>(sizeof(double));
}

absl::Status Sealed(absl::string_view tenant, absl::string_view statistic) {
  return FailedPrecondition("STATISTIC_SEALED", StatisticName(tenant, statistic),
                            "it is sealed and takes no more activations");
}

}  // namespace

std::string StatisticName(absl::string_view tenant, absl::string_view statistic) {
  return absl::StrCat("tenants/", tenant, "/statistics/", statistic);
}

Statistics::Statistics(JobStore& jobs, BlobStore& blobs,
                       const std::vector<compute::Backend*>& backends, Executor& executor,
                       StatisticsOptions options,
                       std::function<void(const std::string&, const std::string&)> sealed)
    : jobs_(jobs),
      blobs_(blobs),
      executor_(executor),
      options_(options),
      sealed_(std::move(sealed)),
      cache_(options.moment_cache_bytes) {
  for (compute::Backend* backend : backends) {
    const int64_t budget = options_.open_sum_bytes > 0 ? options_.open_sum_bytes
                                                       : backend->Describe().memory_bytes / 4;
    devices_.push_back({backend, std::make_shared<SumMemory>(budget)});
  }
  ticker_ = std::thread([this] { TickStreams(); });
}

Statistics::~Statistics() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    stop_.Signal();
  }
  ticker_.join();
}

void Statistics::TickStreams() {
  for (;;) {
    std::vector<std::shared_ptr<ActivationStream>> streams;
    {
      absl::MutexLock lock(&mutex_);
      if (!stopping_) stop_.WaitWithTimeout(&mutex_, kTick);
      if (stopping_) return;
      for (const auto& [key, live] : live_) {
        for (const auto& [id, stream] : live.streams) {
          if (stream != nullptr) streams.push_back(stream);
        }
      }
    }
    for (const auto& stream : streams) stream->Tick();
  }
}

absl::Status Statistics::Hold(const Declaration& d) {
  absl::MutexLock lock(&mutex_);
  Live& live = live_[{d.tenant, d.statistic}];
  if (live.closing) return Sealed(d.tenant, d.statistic);
  if (live.streams.contains(d.stream_id)) {
    return Error(absl::StatusCode::kAborted, "STREAM_IN_USE",
                 absl::StrCat(StatisticName(d.tenant, d.statistic),
                              ": another writer holds stream ", d.stream_id));
  }
  int& open = streams_by_tenant_[d.tenant];
  if (open >= options_.max_streams_per_tenant) {
    if (live.streams.empty()) live_.erase({d.tenant, d.statistic});
    return QuotaExceeded("TOO_MANY_STREAMS", absl::StrCat("tenants/", d.tenant),
                         absl::StrFormat("%d streams are open, at most %d may be "
                                         "(limits.max_streams_per_tenant)",
                                         open, options_.max_streams_per_tenant),
                         absl::Seconds(1));
  }
  ++open;
  live.streams.emplace(d.stream_id, nullptr);
  return absl::OkStatus();
}

std::map<std::string, Statistics::OpenSums> Statistics::OpenSumsOfDevices() const {
  std::map<std::string, OpenSums> sums;
  for (const Device& device : devices_) {
    sums[device.backend->Describe().name] = {.bytes = device.memory->held_bytes(),
                                             .waiting = device.memory->waiting(),
                                             .page_outs = device.memory->page_outs()};
  }
  return sums;
}

std::map<std::string, int> Statistics::OpenStreams() {
  absl::MutexLock lock(&mutex_);
  return streams_by_tenant_;
}

void Statistics::Close(const Declaration& d) {
  absl::MutexLock lock(&mutex_);
  const auto found = live_.find({d.tenant, d.statistic});
  if (found == live_.end() || found->second.streams.erase(d.stream_id) == 0) return;
  if (found->second.streams.empty() && !found->second.closing) live_.erase(found);
  if (--streams_by_tenant_[d.tenant] == 0) streams_by_tenant_.erase(d.tenant);
}

absl::StatusOr<std::shared_ptr<ActivationStream>> Statistics::Open(const Declaration& d) {
  if (draining_) {
    return Unavailable("DRAINING", "the server is shutting down", absl::Seconds(5));
  }
  if (absl::Status status = d.spec.Validate(); !status.ok()) return InvalidField("header", status);
  if (d.spec.cols > options_.max_dimension) {
    return InvalidField("header.cols",
                        absl::StrFormat("expected 1..%d (limits.max_dimension), got %d",
                                        options_.max_dimension, d.spec.cols));
  }
  if (d.spec.paired_cols > options_.max_dimension) {
    return InvalidField("header.paired_cols",
                        absl::StrFormat("expected at most %d (limits.max_dimension), got %d",
                                        options_.max_dimension, d.spec.paired_cols));
  }
  const int64_t bytes = d.spec.SumElements() * static_cast<int64_t>(sizeof(double));
  if (bytes > options_.max_moment_bytes) {
    return InvalidField(
        "header.cols", absl::StrFormat("a moment of %d x %d takes %d bytes, at most %d "
                                       "are allowed (limits.max_weight_bytes)%s",
                                       d.spec.rows(), d.spec.cols, bytes, options_.max_moment_bytes,
                                       d.spec.is_paired() ? "" : "; use layout BLOCK_DIAGONAL"));
  }
  if (absl::Status status = Hold(d); !status.ok()) return status;
  absl::StatusOr<std::shared_ptr<ActivationStream>> stream = OpenHeld(d);
  if (!stream.ok()) {
    Close(d);
    return stream.status();
  }
  absl::MutexLock lock(&mutex_);
  live_[{d.tenant, d.statistic}].streams[d.stream_id] = *stream;
  return stream;
}

// For a new stream's snapshot and for the next one, which is written before the last one goes.
absl::Status Statistics::CheckRoom(const Declaration& d) const {
  const int64_t bytes = d.spec.SumElements() * static_cast<int64_t>(sizeof(double));
  return blobs_.CheckRoom(d.tenant, d.spec.is_paired() ? 2 * bytes : bytes);  // else: triangles
}

absl::StatusOr<std::shared_ptr<ActivationStream>> Statistics::OpenHeld(const Declaration& d) {
  absl::StatusOr<StatisticRecord> record = jobs_.GetStatistic(d.tenant, d.statistic);
  if (absl::IsNotFound(record.status())) {
    if (absl::Status status = CheckRoom(d); !status.ok()) return status;
    StatisticRecord created;
    created.tenant = d.tenant;
    created.statistic_id = d.statistic;
    created.spec = d.spec;
    created.create_time = absl::Now();
    const absl::Status inserted =
        jobs_.InsertStatistic(created, options_.max_statistics_per_tenant);
    // Another stream of the same statistic may have been first.
    if (!inserted.ok() && !absl::IsAlreadyExists(inserted)) return inserted;
    record = jobs_.GetStatistic(d.tenant, d.statistic);
  }
  if (!record.ok()) return record.status();
  if (record->sealed) return Sealed(d.tenant, d.statistic);
  if (absl::Status status = CheckSameSpec(*record, d.spec); !status.ok()) return status;

  StatisticStreamRecord stream;
  stream.stream_id = d.stream_id;
  stream.dtype = d.dtype;
  const auto known = std::find_if(record->streams.begin(), record->streams.end(),
                                  [&](const auto& s) { return s.stream_id == d.stream_id; });
  if (known == record->streams.end()) {
    if (absl::Status status = CheckRoom(d); !status.ok()) return status;
  }
  if (known != record->streams.end()) {
    if (known->dtype != d.dtype) {
      return InvalidField("header.dtype", absl::StrCat("expected ", compute::NameOf(known->dtype),
                                                       " as the stream began with, got ",
                                                       compute::NameOf(d.dtype)));
    }
    stream = *known;
    // A snapshot that cannot be read is an error of the opening.
    if (const auto snapshot = ReadMoment(stream.snapshot); !snapshot.ok()) return snapshot.status();
  }
  Device& device = devices_[next_device_++ % devices_.size()];
  const auto make =
      [this, backend = device.backend, spec = record->spec](
          const BlobRef& snapshot) -> absl::StatusOr<std::unique_ptr<compute::MomentAccumulator>> {
    if (snapshot.name.empty()) return backend->NewAccumulator(spec, nullptr);
    const auto start = ReadMoment(snapshot);
    if (!start.ok()) return start.status();
    return backend->NewAccumulator(spec, start->get());
  };
  return std::make_shared<ActivationStream>(
      ActivationStream::Target{d.tenant, d.statistic, record->spec}, std::move(stream), executor_,
      jobs_, blobs_, cache_, options_.commit,
      ActivationStream::Device{device.memory, OpenSumBytes(record->spec), make});
}

absl::Status Statistics::BeginClosing(const StatisticKey& key) {
  absl::MutexLock lock(&mutex_);
  Live& live = live_[key];
  if (live.closing || !live.streams.empty()) {
    return FailedPrecondition("STREAM_OPEN", StatisticName(key.first, key.second),
                              live.closing ? "it is being sealed or deleted"
                                           : absl::StrCat("stream ", live.streams.begin()->first,
                                                          " is still open; close it first"));
  }
  live.closing = true;
  return absl::OkStatus();
}

void Statistics::EndClosing(const StatisticKey& key) {
  absl::MutexLock lock(&mutex_);
  live_.erase(key);
}

absl::StatusOr<StatisticRecord> Statistics::Seal(const std::string& tenant,
                                                 const std::string& statistic) {
  absl::StatusOr<StatisticRecord> record = jobs_.GetStatistic(tenant, statistic);
  if (!record.ok() || record->sealed) return record;
  const StatisticKey key{tenant, statistic};
  if (absl::Status status = BeginClosing(key); !status.ok()) return status;
  auto end = absl::MakeCleanup([&] { EndClosing(key); });
  record = jobs_.GetStatistic(tenant, statistic);
  if (!record.ok() || record->sealed) return record;

  absl::StatusOr<StreamTotal> total = Total(*record);
  if (!total.ok()) return total.status();
  const compute::SecondMoment& moment = *total->moment;
  if (absl::Status status = Failpoint("ingest.seal.commit"); !status.ok()) return status;
  if (absl::Status status =
          jobs_.SealStatistic(tenant, statistic, moment.tokens(), moment.DigestHex(), total->blob);
      !status.ok()) {
    if (CertainlyUnchanged(status) && !total->is_snapshot) {
      blobs_.Delete(total->blob.name).IgnoreError();
    }
    return status;
  }
  if (absl::Status status = Failpoint("ingest.seal.drop"); !status.ok()) return status;
  for (const StatisticStreamRecord& stream : record->streams) {
    if (stream.snapshot.name == total->blob.name) continue;
    cache_.Erase(stream.snapshot.name);
    blobs_.Delete(stream.snapshot.name).IgnoreError();
  }
  cache_.Put(total->blob.name, total->moment);
  sealed_(tenant, statistic);
  return jobs_.GetStatistic(tenant, statistic);
}

absl::StatusOr<Statistics::StreamTotal> Statistics::Total(const StatisticRecord& record) {
  // One stream's sum with nothing pending is the statistic's: wide moments take seconds to write.
  if (record.streams.size() == 1) {
    const BlobRef& snapshot = record.streams.front().snapshot;
    absl::StatusOr<std::shared_ptr<const compute::SecondMoment>> only = ReadMoment(snapshot);
    if (!only.ok()) return only.status();
    if ((*only)->pending_rows() == 0) {
      return StreamTotal{.moment = *std::move(only), .blob = snapshot, .is_snapshot = true};
    }
  }
  absl::StatusOr<compute::SecondMoment> total = compute::SecondMoment::Create(record.spec);
  if (!total.ok()) return total.status();
  // In the order of the stream ids: the same streams give the same bits.
  for (const StatisticStreamRecord& stream : record.streams) {
    const auto part = ReadMoment(stream.snapshot);
    if (!part.ok()) return part.status();
    if (absl::Status status = total->Merge(**part); !status.ok()) return status;
  }
  if (total->tokens() == 0) {
    return FailedPrecondition("NO_TOKENS", StatisticName(record.tenant, record.statistic_id),
                              "it has no tokens; stream activations before sealing it");
  }
  absl::StatusOr<BlobRef> blob = blobs_.Put(record.tenant, total->Serialize());
  if (!blob.ok()) return blob.status();
  return StreamTotal{.moment = std::make_shared<const compute::SecondMoment>(*std::move(total)),
                     .blob = *std::move(blob)};
}

absl::StatusOr<std::shared_ptr<const compute::SecondMoment>> Statistics::ReadMoment(
    const BlobRef& blob) {
  if (auto kept = cache_.Get(blob.name); kept != nullptr) return kept;
  absl::StatusOr<std::string> bytes = blobs_.ReadAll(blob);
  if (!bytes.ok()) return bytes.status();
  absl::StatusOr<compute::SecondMoment> parsed = compute::SecondMoment::Parse(*bytes);
  if (!parsed.ok()) return parsed.status();
  auto moment = std::make_shared<const compute::SecondMoment>(*std::move(parsed));
  cache_.Put(blob.name, moment);
  return moment;
}

absl::StatusOr<std::shared_ptr<const compute::SecondMoment>> Statistics::Load(
    const std::string& tenant, const std::string& statistic) {
  absl::StatusOr<StatisticRecord> record = jobs_.GetStatistic(tenant, statistic);
  if (!record.ok()) return record.status();
  if (!record->sealed) {
    return FailedPrecondition("STATISTIC_NOT_SEALED", StatisticName(tenant, statistic),
                              "it is still open; seal it first");
  }
  absl::StatusOr<std::shared_ptr<const compute::SecondMoment>> moment = ReadMoment(record->moment);
  if (!moment.ok()) return Annotate(moment.status(), StatisticName(tenant, statistic));
  return moment;
}

absl::StatusOr<StatisticRecord> Statistics::Merge(const std::string& tenant,
                                                  const std::string& statistic,
                                                  const std::vector<std::string>& sources) {
  if (sources.empty()) return InvalidField("sources", "expected at least one statistic, got none");
  const auto first = Load(tenant, sources.front());
  if (!first.ok()) return first.status();
  compute::SecondMoment total = **first;
  for (size_t i = 1; i < sources.size(); ++i) {
    const auto part = Load(tenant, sources[i]);
    if (!part.ok()) return part.status();
    if (absl::Status status = total.Merge(**part); !status.ok()) {
      return InvalidField(absl::StrCat("sources[", i, "]"), status);
    }
  }
  return Import(tenant, statistic, total);
}

absl::StatusOr<StatisticRecord> Statistics::Import(const std::string& tenant,
                                                   const std::string& statistic,
                                                   const compute::SecondMoment& moment) {
  StatisticRecord record;
  record.tenant = tenant;
  record.statistic_id = statistic;
  record.spec = moment.spec();
  record.sealed = true;
  record.tokens = moment.tokens();
  record.digest = moment.DigestHex();
  record.create_time = absl::Now();
  absl::StatusOr<BlobRef> blob = blobs_.Put(tenant, moment.Serialize());
  if (!blob.ok()) return blob.status();
  record.moment = *blob;
  if (absl::Status status = Failpoint("ingest.import.commit"); !status.ok()) return status;
  if (absl::Status status = jobs_.InsertStatistic(record, options_.max_statistics_per_tenant);
      !status.ok()) {
    if (CertainlyUnchanged(status)) blobs_.Delete(blob->name).IgnoreError();
    return status;
  }
  sealed_(tenant, statistic);
  return record;
}

absl::Status Statistics::Delete(const std::string& tenant, const std::string& statistic) {
  const StatisticKey key{tenant, statistic};
  if (absl::Status status = BeginClosing(key); !status.ok()) return status;
  auto end = absl::MakeCleanup([&] { EndClosing(key); });
  absl::StatusOr<std::vector<std::string>> garbage = jobs_.DeleteStatistic(tenant, statistic);
  if (!garbage.ok()) return garbage.status();
  if (absl::Status status = Failpoint("ingest.delete.blobs"); !status.ok()) return status;
  for (const std::string& name : *garbage) {
    cache_.Erase(name);
    blobs_.Delete(name).IgnoreError();
  }
  return absl::OkStatus();
}

}  // namespace quantd::server
