#include "server/metrics/tenant_labels.h"

#include <algorithm>

namespace quantd::server {

TenantLabels::TenantLabels(const std::vector<std::string>& first, int limit)
    : limit_(static_cast<size_t>(std::max(0, limit))) {
  for (const std::string& tenant : first) For(tenant);
}

std::string TenantLabels::For(absl::string_view tenant) {
  std::lock_guard lock(mutex_);
  if (known_.find(tenant) != known_.end()) return std::string(tenant);
  if (known_.size() >= limit_) return "other";
  known_.emplace(tenant);
  return std::string(tenant);
}

}  // namespace quantd::server
