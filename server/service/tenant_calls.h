#pragma once

#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace quantd::server {

// Bounds the calls that a tenant has open at once and the messages that it sends a second (a token
// bucket that holds two seconds' worth). Tenants are those of credentials, so their number is the
// configuration's. Thread-safe.
class TenantCalls {
 public:
  struct Limits {
    int calls = 1024;                     // at once
    double messages_per_second = 20'000;  // the first message of every call counts
  };

  // `own`: tenants with limits of their own. What is open stays open.
  void SetLimits(const Limits& common, std::map<std::string, Limits> own);
  Limits LimitsOf(const std::string& tenant) const;

  // RESOURCE_EXHAUSTED with TOO_MANY_CALLS; else the call is to be given back with Close.
  absl::Status Open(const std::string& tenant);
  void Close(const std::string& tenant);
  std::map<std::string, int> OpenCalls() const;  // by tenant
  // RESOURCE_EXHAUSTED with MESSAGE_RATE, and when the next message may come.
  absl::Status TakeMessage(const std::string& tenant, absl::Time now);

 private:
  struct Tenant {
    int calls = 0;
    double tokens = 0.0;
    absl::Time filled = absl::InfinitePast();
  };
  Limits LimitsLocked(const std::string& tenant) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  Limits common_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Limits> own_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Tenant> tenants_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace quantd::server
