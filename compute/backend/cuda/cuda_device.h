#pragma once

#include <cublas_v2.h>
#include <cusolverDn.h>

#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend/cpu/worker_pool.h"
#include "compute/backend/cuda/pinned_ring.h"

namespace quantd::compute {

// What the streams of one device share: host threads, pinned memory and library handles. It must
// outlive them. Thread-safe.
class CudaDevice {
 public:
  struct Handles {
    cublasHandle_t blas = nullptr;
    cusolverDnHandle_t solver = nullptr;
  };

  // `cpu_threads` convert and copy on the host (0: one a core).
  CudaDevice(int id, int cpu_threads) : id_(id), pool_(cpu_threads) {}
  ~CudaDevice();

  int id() const { return id_; }
  WorkerPool& pool() { return pool_; }
  // Made when first needed.
  absl::StatusOr<PinnedRing*> Ring();
  // To be given back. New ones take tens of milliseconds, those that were given back none.
  absl::StatusOr<Handles> TakeHandles();
  void GiveBack(Handles handles);

 private:
  const int id_;
  WorkerPool pool_;
  std::mutex mutex_;
  std::unique_ptr<PinnedRing> ring_;  // guarded by mutex_
  std::vector<Handles> free_;         // guarded by mutex_
};

}  // namespace quantd::compute
