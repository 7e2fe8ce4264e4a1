#pragma once

#include <grpcpp/health_check_service_interface.h>

#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/metrics/metrics.h"
#include "server/store/job_store.h"

namespace quantd::server {

// Whether this server takes work, told wherever somebody asks: grpc.health.v1, name by name,
// /readyz and the metrics. Not ready before Start, while the store fails, and from Drain on. A
// store that fails concerns the services that keep something; quantd.v1.Quantize and
// quantd.v1.Server go on. Thread-safe.
class Readiness {
 public:
  // Both outlive it.
  Readiness(JobStore& jobs, Metrics& metrics);
  ~Readiness();

  // From now on the server serves. The store is asked every `interval`; `health` outlives the next
  // Drain.
  void Start(grpc::HealthCheckServiceInterface& health, absl::Duration interval = absl::Seconds(1));
  // Asks the store now, which takes a read, and tells everybody. UNAVAILABLE says why not, without
  // details that are nobody's business: "draining", "the store fails".
  absl::Status Check();
  // Not ready any more, for good. Returns once nobody uses `health`.
  void Drain();

 private:
  void Watch(absl::Duration interval);
  void TellLocked(bool taking, bool storing) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  JobStore& jobs_;
  Metrics& metrics_;
  absl::Mutex mutex_;
  absl::CondVar stop_;
  grpc::HealthCheckServiceInterface* health_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool store_failed_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread watcher_;
};

}  // namespace quantd::server
