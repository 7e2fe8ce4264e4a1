#include "server/service/tenant_calls.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/errors/error.h"

namespace quantd::server {
namespace {

constexpr double kBurstSeconds = 2.0;

}  // namespace

void TenantCalls::SetLimits(const Limits& common, std::map<std::string, Limits> own) {
  absl::MutexLock lock(&mutex_);
  common_ = common;
  own_ = std::move(own);
}

TenantCalls::Limits TenantCalls::LimitsLocked(const std::string& tenant) const {
  const auto found = own_.find(tenant);
  return found == own_.end() ? common_ : found->second;
}

TenantCalls::Limits TenantCalls::LimitsOf(const std::string& tenant) const {
  absl::MutexLock lock(&mutex_);
  return LimitsLocked(tenant);
}

absl::Status TenantCalls::Open(const std::string& tenant) {
  absl::MutexLock lock(&mutex_);
  const int most = LimitsLocked(tenant).calls;
  int& open = tenants_[tenant].calls;
  if (open >= most) {
    return QuotaExceeded("TOO_MANY_CALLS", absl::StrCat("tenants/", tenant),
                         absl::StrFormat("%d calls are open, at most %d may be (limits."
                                         "max_calls_per_tenant)",
                                         open, most),
                         absl::Seconds(1));
  }
  ++open;
  return absl::OkStatus();
}

void TenantCalls::Close(const std::string& tenant) {
  absl::MutexLock lock(&mutex_);
  --tenants_[tenant].calls;
}

std::map<std::string, int> TenantCalls::OpenCalls() const {
  absl::MutexLock lock(&mutex_);
  std::map<std::string, int> open;
  for (const auto& [name, tenant] : tenants_) open[name] = tenant.calls;
  return open;
}

absl::Status TenantCalls::TakeMessage(const std::string& tenant, absl::Time now) {
  absl::MutexLock lock(&mutex_);
  const double rate = LimitsLocked(tenant).messages_per_second;
  const double most = std::max(1.0, kBurstSeconds * rate);
  Tenant& known = tenants_[tenant];
  const double seconds = absl::ToDoubleSeconds(now - known.filled);  // infinite at first
  known.tokens = std::min(most, known.tokens + std::max(0.0, seconds) * rate);
  known.filled = std::max(known.filled, now);
  if (known.tokens >= 1.0) {
    known.tokens -= 1.0;
    return absl::OkStatus();
  }
  const absl::Duration wait = absl::Seconds((1.0 - known.tokens) / rate);
  return QuotaExceeded("MESSAGE_RATE", absl::StrCat("tenants/", tenant),
                       absl::StrFormat("more than %g messages a second "
                                       "(limits.max_messages_per_second)",
                                       rate),
                       std::max(wait, absl::Milliseconds(1)));
}

}  // namespace quantd::server
