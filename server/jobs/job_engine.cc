#include "server/jobs/job_engine.h"

#include <algorithm>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "compute/formats/safetensors.h"
#include "server/errors/error.h"
#include "server/jobs/weight_source.h"

namespace quantd::server {
namespace {

const LayerGroup* FindGroup(const std::vector<LayerGroup>& groups, const std::string& key) {
  const auto found =
      std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.key == key; });
  return found == groups.end() ? nullptr : &*found;
}

// A file with one layer needs no prefix when the layer is just called "weight".
std::string TensorName(const std::string& layer_id, const std::string& tensor) {
  return layer_id == "weight" ? tensor : absl::StrCat(layer_id, ".", tensor);
}

absl::StatusOr<std::string> SerializeResult(const compute::LayerResult& result) {
  std::vector<compute::NamedTensor> named;
  std::map<std::string, std::string> metadata = {
      {"format", "quantd"},
      {"recipe", result.report.recipe_json},
      {"statistic_digest", result.report.statistic_digest},
      {"version", result.report.version},
  };
  for (const auto& [tensor, digest] : result.report.tensor_digests) {
    metadata[absl::StrCat("sha256.", TensorName(result.name, tensor))] = digest;
  }
  for (const compute::NamedTensor& t : result.tensors) {
    named.push_back({TensorName(result.name, t.name), t.tensor.Clone()});
  }
  std::vector<const compute::NamedTensor*> pointers;
  for (const compute::NamedTensor& t : named) pointers.push_back(&t);
  return compute::SerializeSafetensors(pointers, metadata);
}

std::vector<compute::Backend*> BackendOfEachSlot(const std::vector<compute::Backend*>& backends,
                                                 int cpu_slots, int cuda_slots) {
  std::vector<compute::Backend*> slots;
  for (compute::Backend* backend : backends) {
    const int count = backend->Describe().name == "cpu" ? cpu_slots : cuda_slots;
    slots.insert(slots.end(), count, backend);
  }
  return slots;
}

std::vector<Scheduler::Slot> SlotsOn(const std::vector<compute::Backend*>& backends) {
  std::vector<Scheduler::Slot> slots;
  for (const compute::Backend* backend : backends) {
    const compute::DeviceInfo info = backend->Describe();
    slots.push_back({info.name, info.memory_bytes});
  }
  return slots;
}

}  // namespace

JobEngine::JobEngine(JobStore& jobs, BlobStore& blobs, std::vector<compute::Backend*> backends,
                     Options options, MomentLoader load_moment, JobEvents events)
    : jobs_(jobs),
      blobs_(blobs),
      backends_(std::move(backends)),
      options_(std::move(options)),
      load_moment_(std::move(load_moment)),
      events_(std::move(events)),
      slot_backends_(BackendOfEachSlot(backends_, options_.cpu_slots, options_.cuda_slots)),
      slots_(SlotsOn(slot_backends_)),
      scheduler_(slots_, options_.priority_ageing),
      busy_(slots_.size(), 0) {
  absl::MutexLock lock(&mutex_);
  SetTenantsLocked(options_.tenants);
}

JobEngine::~JobEngine() { Drain(absl::Now()); }

absl::Status JobEngine::Start() {
  absl::StatusOr<std::vector<JobRecord>> unfinished = jobs_.UnfinishedJobs();
  if (!unfinished.ok()) return unfinished.status();
  const int64_t today = Scheduler::DayOf(absl::Now());
  const auto used = jobs_.DeviceSecondsOf(today);
  if (!used.ok()) return used.status();
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [tenant, seconds] : *used) scheduler_.RestoreUse(tenant, today, seconds);
    for (const JobRecord& job : *unfinished) {
      const JobKey key{job.tenant, job.job_id};
      live_[key].deadline = job.deadline;
      // What ran when the server stopped runs again from the start of its layer.
      auto reset =
          jobs_.UpdateJob(job.tenant, job.job_id, [](JobRecord& j, std::vector<ArtifactRecord>&) {
            for (LayerRecord& layer : j.layers) {
              if (!HasEnded(layer.state)) layer.state = LayerState::kWaiting;
            }
            DeriveJobState(j, absl::Now());
            return absl::OkStatus();
          });
      if (!reset.ok()) return reset.status();
    }
    ExpireLocked(absl::Now());
    for (const JobRecord& job : *unfinished) RefreshLocked({job.tenant, job.job_id});
  }
  threads_.emplace_back([this] { RunClock(); });
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    threads_.emplace_back([this, slot] { RunSlot(static_cast<int>(slot)); });
  }
  return absl::OkStatus();
}

absl::StatusOr<JobEstimate> JobEngine::Validate(JobRecord& job) const {
  JobLimits limits = options_.limits;
  {
    absl::MutexLock lock(&mutex_);
    if (const auto tenant = tenants_.find(job.tenant); tenant != tenants_.end()) {
      limits.max_layer_seconds = tenant->second.quota.max_seconds_per_day;
    }
  }
  absl::StatusOr<JobEstimate> estimate = PrepareJob(job, limits, *backends_.front());
  if (!estimate.ok()) return estimate;
  if (absl::Status s = CheckStatistics(job); !s.ok()) return s;
  if (absl::Status s = TakeWeights(jobs_, job); !s.ok()) return s;
  return estimate;
}

// Those that exist already: others are looked at when they are there.
absl::Status JobEngine::CheckStatistics(const JobRecord& job) const {
  std::map<std::string, absl::StatusOr<StatisticRecord>> known;
  for (size_t i = 0; i < job.layers.size(); ++i) {
    for (const StatisticUse& use : StatisticsOf(job.layers[i])) {
      const auto [found, is_new] = known.try_emplace(use.statistic_id);
      if (is_new) found->second = jobs_.GetStatistic(job.tenant, use.statistic_id);
      const absl::StatusOr<StatisticRecord>& statistic = found->second;
      if (absl::IsNotFound(statistic.status())) continue;
      if (!statistic.ok()) return statistic.status();
      absl::Status status = CheckStatistic(job.layers[i], i, use, statistic->spec);
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<JobRecord> JobEngine::Create(JobRecord job) {
  absl::MutexLock lock(&mutex_);
  if (draining_) return Unavailable("DRAINING", "the server is shutting down", absl::Seconds(5));
  if (!job.request_id.empty()) {
    absl::StatusOr<JobRecord> earlier = jobs_.FindJobByRequest(job.tenant, job.request_id);
    if (!absl::IsNotFound(earlier.status())) return earlier;
  }
  if (absl::Status s = jobs_.InsertJob(job, options_.max_jobs_per_tenant); !s.ok()) return s;
  const JobKey key{job.tenant, job.job_id};
  live_[key].deadline = job.deadline;
  if (job.deadline.has_value()) clock_wake_.Signal();
  // Layers that have taken their weight from another one may be ready at once.
  const bool has_weights = std::any_of(job.layers.begin(), job.layers.end(), [](const auto& layer) {
    return !layer.weight.name.empty();
  });
  if (has_weights) RefreshLocked(key);
  return jobs_.GetJob(job.tenant, job.job_id);
}

absl::StatusOr<JobView> JobEngine::Get(const std::string& tenant, const std::string& job) {
  absl::StatusOr<JobRecord> record = jobs_.GetJob(tenant, job);
  if (!record.ok()) return record.status();
  JobView view;
  view.job = std::move(*record);
  absl::MutexLock lock(&mutex_);
  view.queue = QueueLocked({tenant, job});
  if (const auto live = live_.find({tenant, job}); live != live_.end()) {
    for (const auto& [key, running] : live->second.running) {
      for (const std::string& id : running->layer_ids) view.progress[id] = running->progress;
    }
  }
  return view;
}

QueueView JobEngine::Queue(const std::string& tenant, const std::string& job) {
  absl::MutexLock lock(&mutex_);
  return QueueLocked({tenant, job});
}

// The forecast of a long queue takes a while, and is up to a second old: watchers must not keep the
// slots waiting.
QueueView JobEngine::QueueLocked(const JobKey& key) {
  constexpr int kLongQueue = 1000;
  const absl::Time now = absl::Now();
  const bool is_waiting = scheduler_.waiting_jobs().contains(key);
  const auto live = live_.find(key);
  if (!is_waiting && (live == live_.end() || live->second.running.empty())) return {};
  int waiting = 0;
  for (const auto& [job, groups] : scheduler_.waiting_jobs()) waiting += groups;
  if (forecast_version_ != scheduler_.version() &&
      (waiting < kLongQueue || now - forecast_time_ > absl::Seconds(1))) {
    forecast_ = ForecastQueue(scheduler_, now);
    forecast_version_ = scheduler_.version();
    forecast_time_ = now;
  }
  QueueView view;
  if (const auto known = forecast_.find(key); known != forecast_.end()) {
    view.position = is_waiting ? std::max(1, known->second.position) : 0;
    if (known->second.done < absl::InfiniteFuture()) {
      view.eta_seconds = std::max(0.0, absl::ToDoubleSeconds(known->second.done - now));
    }
  }
  if (is_waiting) view.quota_wait = scheduler_.WaitsForQuota(key.first, now);
  return view;
}

absl::StatusOr<JobRecord> JobEngine::Cancel(const std::string& tenant, const std::string& job) {
  absl::MutexLock lock(&mutex_);
  return EndLocked({tenant, job}, Stop::kCancelled,
                   [](LayerRecord& layer) { layer.state = LayerState::kCancelled; });
}

absl::StatusOr<JobRecord> JobEngine::EndLocked(const JobKey& key, Stop stop,
                                               absl::FunctionRef<void(LayerRecord&)> end_layer) {
  absl::StatusOr<JobRecord> record =
      jobs_.UpdateJob(key.first, key.second, [&](JobRecord& j, std::vector<ArtifactRecord>&) {
        for (LayerRecord& layer : j.layers) {
          if (!HasEnded(layer.state)) end_layer(layer);
        }
        DeriveJobState(j, absl::Now());
        return absl::OkStatus();
      });
  if (!record.ok()) return record;
  scheduler_.RemoveJob(key.first, key.second);
  if (const auto live = live_.find(key); live != live_.end()) {
    // The slots notice, throw away what they have and drop the job.
    for (auto& [group, running] : live->second.running) {
      running->stop = stop;
      running->cancel.Cancel();
    }
    live->second.deadline.reset();
    live->second.queued.clear();
    live->second.waiting_for.clear();
    if (live->second.running.empty()) live_.erase(live);
  }
  NotifyLocked(key);
  return record;
}

void JobEngine::ExpireLocked(absl::Time now) {
  std::vector<JobKey> due;
  for (const auto& [key, live] : live_) {
    if (live.deadline.has_value() && *live.deadline <= now) due.push_back(key);
  }
  for (const JobKey& key : due) {
    const absl::Status expired = Error(
        absl::StatusCode::kDeadlineExceeded, "JOB_EXPIRED",
        absl::StrCat("the job's deadline, ",
                     absl::FormatTime(*live_[key].deadline, absl::UTCTimeZone()), ", has passed"));
    bool has_ended_layers = false;
    // Where the store fails, the next tick tries again.
    const auto record = EndLocked(key, Stop::kExpired, [&](LayerRecord& layer) {
      layer.state = LayerState::kFailed;
      layer.error = expired;
      has_ended_layers = true;
    });
    if (record.ok() && has_ended_layers) events_.expired(key.first, key.second);
  }
}

void JobEngine::RunClock() {
  constexpr absl::Duration kTick = absl::Seconds(1);
  absl::MutexLock lock(&mutex_);
  while (!draining_) {
    const absl::Time now = absl::Now();
    const absl::Time release = scheduler_.NextRelease(now);
    absl::Time next = std::min(now + kTick, release);
    for (const auto& [key, live] : live_) next = std::min(next, live.deadline.value_or(next));
    clock_wake_.WaitWithDeadline(&mutex_, std::max(next, now + absl::Milliseconds(20)));
    if (draining_) return;
    SettleLocked();
    ExpireLocked(absl::Now());
    if (release <= absl::Now()) wake_.SignalAll();
    if (notified_version_ == scheduler_.version()) continue;
    notified_version_ = scheduler_.version();
    NotifyWaitingLocked();
  }
}

void JobEngine::SetTenants(const std::map<std::string, TenantShare>& tenants) {
  absl::MutexLock lock(&mutex_);
  SetTenantsLocked(tenants);
  wake_.SignalAll();
}

void JobEngine::SetTenantsLocked(const std::map<std::string, TenantShare>& tenants) {
  const auto set = [&](const std::string& name, const TenantShare& share) {
    scheduler_.SetWeight(name, share.weight);
    scheduler_.SetQuota(name, share.quota);
  };
  for (const auto& [name, share] : tenants_) {
    if (!tenants.contains(name)) set(name, {});
  }
  for (const auto& [name, share] : tenants) set(name, share);
  tenants_ = tenants;
}

absl::Status JobEngine::Delete(const std::string& tenant, const std::string& job) {
  if (absl::Status s = Cancel(tenant, job).status(); !s.ok()) return s;
  absl::StatusOr<std::vector<std::string>> garbage = jobs_.DeleteJob(tenant, job);
  if (!garbage.ok()) return garbage.status();
  for (const std::string& name : *garbage) blobs_.Delete(name).IgnoreError();
  absl::MutexLock lock(&mutex_);
  NotifyLocked({tenant, job});
  return absl::OkStatus();
}

void JobEngine::WeightCompleted(const std::string& tenant, const std::string& job) {
  absl::MutexLock lock(&mutex_);
  RefreshLocked({tenant, job});
}

void JobEngine::StatisticSealed(const std::string& tenant, const std::string& statistic) {
  absl::MutexLock lock(&mutex_);
  std::vector<JobKey> affected;
  for (const auto& [key, live] : live_) {
    if (key.first == tenant && std::find(live.waiting_for.begin(), live.waiting_for.end(),
                                         statistic) != live.waiting_for.end()) {
      affected.push_back(key);
    }
  }
  for (const JobKey& key : affected) RefreshLocked(key);
}

absl::StatusOr<bool> JobEngine::IsReady(const JobRecord& job, const LayerGroup& group) const {
  for (const size_t index : group.members) {
    if (job.layers[index].weight.name.empty()) return false;
  }
  for (const StatisticUse& use : group.statistics) {
    absl::StatusOr<StatisticRecord> statistic = jobs_.GetStatistic(job.tenant, use.statistic_id);
    if (absl::IsNotFound(statistic.status())) return false;
    if (!statistic.ok()) return statistic.status();
    if (!statistic->sealed) return false;
  }
  return true;
}

absl::StatusOr<std::set<std::string>> JobEngine::ReadyGroups(const JobKey& key) const {
  const absl::StatusOr<JobRecord> job = jobs_.GetJob(key.first, key.second);
  if (!job.ok()) return job.status();
  std::set<std::string> ready;
  for (const LayerGroup& group : GroupsOf(*job)) {
    absl::StatusOr<bool> is_ready = IsReady(*job, group);
    if (!is_ready.ok()) return is_ready.status();
    if (*is_ready) ready.insert(group.key);
  }
  return ready;
}

void JobEngine::RefreshLocked(const JobKey& key) {
  const auto live = live_.find(key);
  if (live == live_.end()) return;
  // Looked up before the update, whose callback must not call the store. Nothing that was ready
  // stops being so: statistics stay sealed and weights complete.
  const absl::StatusOr<std::set<std::string>> ready_groups = ReadyGroups(key);
  if (!ready_groups.ok()) {
    if (!absl::IsNotFound(ready_groups.status())) unsettled_.insert(key);
    return;
  }
  std::vector<WorkItem> ready;
  live->second.waiting_for.clear();
  auto updated = jobs_.UpdateJob(
      key.first, key.second, [&](JobRecord& job, std::vector<ArtifactRecord>&) -> absl::Status {
        for (const LayerGroup& group : GroupsOf(job)) {
          const LayerRecord& first = job.layers[group.members.front()];
          if (first.state != LayerState::kWaiting) continue;
          if (!ready_groups->contains(group.key)) {
            for (const StatisticUse& use : group.statistics) {
              live->second.waiting_for.push_back(use.statistic_id);
            }
            continue;
          }
          for (const size_t index : group.members) job.layers[index].state = LayerState::kQueued;
          const compute::LayerEstimate estimate = compute::EstimateLayer(
              first.recipe, group.rows, group.cols, !first.statistic_id.empty(),
              backends_.front()->Describe().flops_per_second);
          ready.push_back({key.first, key.second, group.key, estimate.device_seconds,
                           estimate.peak_bytes, static_cast<int>(job.priority)});
        }
        DeriveJobState(job, absl::Now());
        return absl::OkStatus();
      });
  // Nothing is lost if the store fails: the layers still wait and are looked at again.
  if (!updated.ok() && !absl::IsNotFound(updated.status())) unsettled_.insert(key);
  if (!updated.ok() || ready.empty()) return;
  const absl::Time now = absl::Now();
  for (WorkItem& item : ready) {
    live->second.queued[item.group] = now;
    scheduler_.Enqueue(std::move(item), now);
  }
  wake_.SignalAll();
  NotifyLocked(key);
}

void JobEngine::SettleLocked() {
  for (const JobKey& key : std::exchange(unsettled_, {})) {
    const auto live = live_.find(key);
    if (live == live_.end()) continue;
    auto reset =
        jobs_.UpdateJob(key.first, key.second, [&](JobRecord& job, std::vector<ArtifactRecord>&) {
          for (const LayerGroup& group : GroupsOf(job)) {
            if (live->second.queued.contains(group.key) ||
                live->second.running.contains(group.key)) {
              continue;
            }
            for (const size_t index : group.members) {
              LayerState& state = job.layers[index].state;
              if (!HasEnded(state)) state = LayerState::kWaiting;
            }
          }
          DeriveJobState(job, absl::Now());
          return absl::OkStatus();
        });
    if (reset.ok()) {
      RefreshLocked(key);
    } else if (!absl::IsNotFound(reset.status())) {
      unsettled_.insert(key);
    }
  }
}

void JobEngine::RunSlot(int slot) {
  compute::Backend& backend = *slot_backends_[slot];
  for (;;) {
    std::optional<WorkItem> item;
    std::shared_ptr<RunningGroup> running;
    WorkTimes times;
    DeviceUse use;
    {
      absl::MutexLock lock(&mutex_);
      while (!draining_ && !(item = scheduler_.Next(slot, absl::Now())).has_value()) {
        wake_.Wait(&mutex_);
      }
      if (!item.has_value()) return;
      busy_[slot] = 1;
      use.day = scheduler_.RunningOn(slot)->day;
      times.ready = times.started = absl::Now();
      if (const auto live = live_.find({item->tenant, item->job_id}); live != live_.end()) {
        times.ready = live->second.queued[item->group];
      }
      running = BeginLocked(*item);
    }
    bool is_unsettled = false;
    if (running != nullptr) {
      events_.started(*item, times.started - times.ready);
      absl::Status status;
      try {
        status = RunGroup(backend, *item, running, use);
      } catch (const std::bad_alloc&) {
        status = absl::ResourceExhaustedError("out of memory");
      }
      is_unsettled = !Conclude(*item, *running, status, use);
      times.device_seconds = use.seconds;
      events_.ended(*item, times);
    }
    absl::MutexLock lock(&mutex_);
    busy_[slot] = 0;
    scheduler_.Finish(slot, use.seconds);
    FinishLocked(*item);
    if (is_unsettled) unsettled_.insert({item->tenant, item->job_id});
    wake_.SignalAll();
  }
}

// What succeeded is in the store already, with its use of the device.
bool JobEngine::Conclude(const WorkItem& item, const RunningGroup& running, absl::Status status,
                         const DeviceUse& use) {
  if (status.ok()) return true;
  // A layer that a drain stopped stays as it is in the store and runs again: it pays then.
  const bool is_drained = absl::IsCancelled(status) && running.stop == Stop::kDrained;
  const bool is_stopped = absl::IsCancelled(status) && !is_drained;
  absl::Status told;
  if (!is_drained && !is_stopped) told = CommitFailure(item, status, use);
  if (is_stopped || absl::IsNotFound(told)) {
    jobs_.AddDeviceUse(item.tenant, use).IgnoreError();
  }
  if (is_stopped && running.stop == Stop::kExpired) {
    status = absl::DeadlineExceededError("the job's deadline has passed");
  }
  events_.failed(item, status);
  return told.ok() || absl::IsNotFound(told);
}

std::shared_ptr<JobEngine::RunningGroup> JobEngine::BeginLocked(const WorkItem& item) {
  const JobKey key{item.tenant, item.job_id};
  const auto live = live_.find(key);
  if (live == live_.end()) return nullptr;
  auto running = std::make_shared<RunningGroup>();
  live->second.queued.erase(item.group);
  auto updated = jobs_.UpdateJob(item.tenant, item.job_id,
                                 [&](JobRecord& job, std::vector<ArtifactRecord>&) -> absl::Status {
                                   const std::vector<LayerGroup> groups = GroupsOf(job);
                                   const LayerGroup* group = FindGroup(groups, item.group);
                                   if (group == nullptr) return absl::NotFoundError(item.group);
                                   for (const size_t index : group->members) {
                                     LayerRecord& layer = job.layers[index];
                                     if (HasEnded(layer.state))
                                       return absl::CancelledError(layer.layer_id);
                                     layer.state = LayerState::kRunning;
                                     running->layer_ids.push_back(layer.layer_id);
                                   }
                                   DeriveJobState(job, absl::Now());
                                   return absl::OkStatus();
                                 });
  if (!updated.ok()) {
    const bool ended = absl::IsNotFound(updated.status()) || absl::IsCancelled(updated.status());
    if (!ended) unsettled_.insert(key);
    return nullptr;
  }
  live->second.running[item.group] = running;
  NotifyLocked(key);
  return running;
}

void JobEngine::FinishLocked(const WorkItem& item) {
  const JobKey key{item.tenant, item.job_id};
  const auto live = live_.find(key);
  if (live != live_.end()) {
    live->second.running.erase(item.group);
    absl::StatusOr<JobRecord> job = jobs_.GetJob(item.tenant, item.job_id);
    const bool gone = absl::IsNotFound(job.status()) || (job.ok() && HasEnded(job->state));
    if (gone && live->second.running.empty()) live_.erase(live);
  }
  NotifyLocked(key);
}

absl::StatusOr<std::vector<compute::Tensor>> JobEngine::LoadWeights(const JobRecord& job,
                                                                    const LayerGroup& group) const {
  std::vector<compute::Tensor> weights;
  for (const size_t index : group.members) {
    const LayerRecord& layer = job.layers[index];
    absl::StatusOr<compute::Tensor> weight =
        compute::Tensor::Create(layer.dtype, {layer.rows, layer.cols});
    if (!weight.ok()) return weight.status();
    absl::StatusOr<std::unique_ptr<BlobReader>> reader = blobs_.Open(layer.weight);
    if (!reader.ok()) {
      return Annotate(reader.status(), absl::StrCat("weights of ", layer.layer_id));
    }
    if (absl::Status s = (*reader)->Read(0, weight->bytes()); !s.ok()) return s;
    weights.push_back(std::move(*weight));
  }
  return weights;
}

// Checked again: a statistic may have come after the job.
absl::StatusOr<JobEngine::LoadedStatistics> JobEngine::LoadStatistics(
    const JobRecord& job, const LayerGroup& group) const {
  LoadedStatistics loaded;
  for (const StatisticUse& use : group.statistics) {
    const auto found = load_moment_(job.tenant, use.statistic_id);
    if (!found.ok()) return found.status();
    const compute::SecondMoment* moment = found->get();
    for (const size_t index : group.members) {
      absl::Status status = CheckStatistic(job.layers[index], index, use, moment->spec());
      if (!status.ok()) return status;
    }
    if (absl::Status status = moment->CheckUsable(); !status.ok()) {
      return FailedPrecondition(
          "STATISTIC_EMPTY", absl::StrCat("tenants/", job.tenant, "/statistics/", use.statistic_id),
          absl::StrCat(use.field, ": ", status.message()));
    }
    loaded.moments.push_back(*found);
    if (use.field == "statistic") loaded.calibration.second_moment = moment;
    if (use.field == "second_moment_hat") loaded.calibration.second_moment_hat = moment;
    if (use.field == "cross_moment") loaded.calibration.cross_moment = moment;
    if (use.field == "residual_moment") loaded.calibration.residual_moment = moment;
  }
  return loaded;
}

absl::Status JobEngine::RunGroup(compute::Backend& backend, const WorkItem& item,
                                 const std::shared_ptr<RunningGroup>& running, DeviceUse& use) {
  absl::StatusOr<JobRecord> job = jobs_.GetJob(item.tenant, item.job_id);
  if (!job.ok()) return job.status();
  const std::vector<LayerGroup> groups = GroupsOf(*job);
  const LayerGroup* group = FindGroup(groups, item.group);
  if (group == nullptr) return absl::InternalError(absl::StrCat("no group ", item.group));

  absl::StatusOr<std::vector<compute::Tensor>> weights = LoadWeights(*job, *group);
  if (!weights.ok()) return weights.status();
  if (absl::Status s = running->cancel.Check(); !s.ok()) return s;
  std::vector<compute::LayerInput> inputs;
  for (size_t i = 0; i < group->members.size(); ++i) {
    inputs.push_back({job->layers[group->members[i]].layer_id, &(*weights)[i]});
  }
  absl::StatusOr<LoadedStatistics> statistics = LoadStatistics(*job, *group);
  if (!statistics.ok()) return statistics.status();
  const JobKey key{item.tenant, item.job_id};
  const absl::Time started = absl::Now();
  absl::StatusOr<std::vector<compute::LayerResult>> results = compute::QuantizeLayers(
      backend, job->layers[group->members.front()].recipe, inputs, statistics->calibration,
      &running->cancel, [&](const compute::PipelineProgress& progress) {
        absl::MutexLock lock(&mutex_);
        running->progress = {std::string(progress.stage), progress.fraction};
        NotifyLocked(key);
      });
  use.seconds = absl::ToDoubleSeconds(absl::Now() - started);
  if (!results.ok()) return results.status();

  std::vector<ArtifactRecord> produced;
  absl::Status stored = [&]() -> absl::Status {
    for (const compute::LayerResult& result : *results) {
      absl::StatusOr<std::string> file = SerializeResult(result);
      if (!file.ok()) return file.status();
      for (const auto& [suffix, bytes] :
           {std::pair<std::string, std::string>(".safetensors", std::move(*file)),
            std::pair<std::string, std::string>(".report.json", ToJson(result.report))}) {
        absl::StatusOr<BlobRef> blob = blobs_.Put(item.tenant, bytes);
        if (!blob.ok()) return blob.status();
        produced.push_back({result.name + suffix, result.name, *blob, absl::Now()});
      }
    }
    return jobs_
        .UpdateJob(
            item.tenant, item.job_id,
            [&](JobRecord& j, std::vector<ArtifactRecord>& artifacts) -> absl::Status {
              for (const size_t index : group->members) {
                LayerRecord& layer = j.layers[index];
                if (HasEnded(layer.state)) return absl::CancelledError("the job has ended");
                layer.state = LayerState::kSucceeded;
                layer.device_seconds = use.seconds / group->members.size();
              }
              artifacts = produced;
              DeriveJobState(j, absl::Now());
              return absl::OkStatus();
            },
            use)
        .status();
  }();
  if (!stored.ok()) {
    for (const ArtifactRecord& artifact : produced) {
      if (CertainlyUnchanged(stored)) blobs_.Delete(artifact.blob.name).IgnoreError();
    }
    return absl::IsNotFound(stored) ? absl::CancelledError("the job was deleted") : stored;
  }
  for (const compute::LayerResult& result : *results) events_.succeeded(item, result.report);
  return absl::OkStatus();
}

absl::Status JobEngine::CommitFailure(const WorkItem& item, const absl::Status& failure,
                                      const DeviceUse& use) {
  return jobs_
      .UpdateJob(
          item.tenant, item.job_id,
          [&](JobRecord& job, std::vector<ArtifactRecord>&) -> absl::Status {
            const std::vector<LayerGroup> groups = GroupsOf(job);
            const LayerGroup* group = FindGroup(groups, item.group);
            if (group == nullptr) return absl::NotFoundError(item.group);
            for (const size_t index : group->members) {
              LayerRecord& layer = job.layers[index];
              if (HasEnded(layer.state)) continue;
              layer.state = LayerState::kFailed;
              layer.error = failure;
            }
            DeriveJobState(job, absl::Now());
            return absl::OkStatus();
          },
          use)
      .status();
}

int64_t JobEngine::Subscribe(const std::string& tenant, const std::string& job,
                             std::function<void()> changed) {
  absl::MutexLock lock(&subscriptions_mutex_);
  const int64_t id = next_subscription_++;
  subscriptions_[id] = {{tenant, job}, std::move(changed)};
  return id;
}

void JobEngine::Unsubscribe(int64_t subscription) {
  absl::MutexLock lock(&subscriptions_mutex_);
  subscriptions_.erase(subscription);
}

void JobEngine::NotifyLocked(const JobKey& key) {
  absl::MutexLock lock(&subscriptions_mutex_);
  for (const auto& [id, subscription] : subscriptions_) {
    if (subscription.key == key) subscription.changed();
  }
}

void JobEngine::NotifyWaitingLocked() {
  absl::MutexLock lock(&subscriptions_mutex_);
  for (const auto& [id, subscription] : subscriptions_) {
    if (scheduler_.waiting_jobs().contains(subscription.key)) subscription.changed();
  }
}

void JobEngine::Drain(absl::Time deadline) {
  {
    absl::MutexLock lock(&mutex_);
    draining_ = true;
    wake_.SignalAll();
    clock_wake_.SignalAll();
    const auto running = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return std::count(busy_.begin(), busy_.end(), 1) > 0;
    };
    while (running() && !wake_.WaitWithDeadline(&mutex_, deadline)) {
    }
    if (running()) {
      for (auto& [key, live] : live_) {
        for (auto& [group, running] : live.running) {
          if (running->stop == Stop::kNone) running->stop = Stop::kDrained;
          running->cancel.Cancel();
        }
      }
    }
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

std::map<std::string, Scheduler::TenantLoad> JobEngine::Loads() const {
  absl::MutexLock lock(&mutex_);
  return scheduler_.Loads(absl::Now());
}

Scheduler::Preemptions JobEngine::Preemptions() const {
  absl::MutexLock lock(&mutex_);
  return scheduler_.preemptions();
}

std::vector<int> JobEngine::RunningBySlot() const {
  absl::MutexLock lock(&mutex_);
  return busy_;
}

}  // namespace quantd::server
