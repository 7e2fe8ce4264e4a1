#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>

#include "absl/strings/string_view.h"

namespace quantd::server {

// Bytes that a tenant may store: its own limit, or the one of all others. 0: no limit.
// Thread-safe.
class StorageLimits {
 public:
  using ByTenant = std::map<std::string, int64_t, std::less<>>;
  StorageLimits(int64_t common, ByTenant own);
  // Holds for what is written from now on.
  void Replace(ByTenant own);
  int64_t Of(absl::string_view tenant) const;

 private:
  const int64_t common_;
  mutable std::mutex mutex_;
  ByTenant own_;
};

}  // namespace quantd::server
