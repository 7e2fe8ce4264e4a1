#include "server/service/readiness.h"

#include "absl/time/clock.h"
#include "server/log/log.h"

namespace quantd::server {
namespace {

struct Service {
  const char* name;
  bool stores;  // keeps something, or reads what was kept
};
// Every service of the API; "" stands for the server as a whole.
constexpr Service kServices[] = {
    {"", true},
    {"quantd.v1.Jobs", true},
    {"quantd.v1.Weights", true},
    {"quantd.v1.Calibration", true},
    {"quantd.v1.Results", true},
    {"quantd.v1.Quantize", false},
    {"quantd.v1.Server", false},
};

// Of a store that works: that there is no such job. A store that could not sync refuses every call
// until it is opened again.
absl::Status AskStore(JobStore& jobs) {
  const absl::Status status = jobs.GetJob("readiness", "none").status();
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

}  // namespace

Readiness::Readiness(JobStore& jobs, Metrics& metrics) : jobs_(jobs), metrics_(metrics) {
  metrics_.SetServing(false);
  metrics_.SetReady(false);
}

Readiness::~Readiness() { Drain(); }

void Readiness::Start(grpc::HealthCheckServiceInterface& health, absl::Duration interval) {
  {
    absl::MutexLock lock(&mutex_);
    health_ = &health;
  }
  Check().IgnoreError();  // told
  watcher_ = std::thread([this, interval] { Watch(interval); });
}

absl::Status Readiness::Check() {
  {
    absl::MutexLock lock(&mutex_);
    if (draining_) return absl::UnavailableError("draining");
    if (health_ == nullptr) return absl::UnavailableError("starting");
  }
  const absl::Status store = AskStore(jobs_);
  absl::MutexLock lock(&mutex_);
  if (draining_) return absl::UnavailableError("draining");
  if (store_failed_ != !store.ok()) {
    store_failed_ = !store.ok();
    Log(store_failed_ ? LogLevel::kError : LogLevel::kInfo,
        store_failed_ ? "store_failed" : "store_recovered", {{"error", store.ToString()}});
  }
  TellLocked(/*taking=*/true, store.ok());
  return store.ok() ? absl::OkStatus() : absl::UnavailableError("the store fails");
}

void Readiness::Drain() {
  {
    absl::MutexLock lock(&mutex_);
    if (!draining_) TellLocked(/*taking=*/false, false);
    draining_ = true;
    health_ = nullptr;
    stop_.SignalAll();
  }
  if (watcher_.joinable()) watcher_.join();
}

void Readiness::Watch(absl::Duration interval) {
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      const absl::Time next = absl::Now() + interval;
      while (!draining_ && !stop_.WaitWithDeadline(&mutex_, next)) {
      }
      if (draining_) return;
    }
    Check().IgnoreError();  // told
  }
}

void Readiness::TellLocked(bool taking, bool storing) {
  metrics_.SetServing(taking);
  metrics_.SetReady(taking && storing);
  if (health_ == nullptr) return;
  for (const Service& service : kServices) {
    health_->SetServingStatus(service.name, taking && (storing || !service.stores));
  }
}

}  // namespace quantd::server
