#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quantd::server {

// HOST:PORT. HOST is a name, an IPv4 address or an IPv6 address in brackets.
struct Address {
  std::string host;  // without brackets
  int port = 0;      // 0..65535; 0: any free one
  // As it is written: brackets around an IPv6 address.
  std::string ToString() const;
  // 127.0.0.0/8, ::1 or "localhost": not reachable from other machines.
  bool IsLoopback() const;
};

// INVALID_ARGUMENT says what is wrong.
absl::StatusOr<Address> ParseAddress(absl::string_view text);

}  // namespace quantd::server
