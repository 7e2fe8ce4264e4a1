#include "server/store/storage_limits.h"

#include <utility>

namespace quantd::server {

StorageLimits::StorageLimits(int64_t common, ByTenant own)
    : common_(common), own_(std::move(own)) {}

void StorageLimits::Replace(ByTenant own) {
  std::lock_guard lock(mutex_);
  own_ = std::move(own);
}

int64_t StorageLimits::Of(absl::string_view tenant) const {
  std::lock_guard lock(mutex_);
  const auto found = own_.find(tenant);
  return found == own_.end() ? common_ : found->second;
}

}  // namespace quantd::server
