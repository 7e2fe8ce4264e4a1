#pragma once

#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace quantd::server {

// Bounds the values of a label: the first `limit` tenants have their own, the rest are "other". A
// value, once given, is kept, because a counter must never go back. Thread-safe.
class TenantLabels {
 public:
  TenantLabels(const std::vector<std::string>& first, int limit);
  std::string For(absl::string_view tenant);

 private:
  const size_t limit_;
  std::mutex mutex_;
  std::set<std::string, std::less<>> known_;
};

}  // namespace quantd::server
