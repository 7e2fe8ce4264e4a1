#pragma once

#include <cstdio>
#include <cstdlib>

#include "absl/status/status.h"

// Ends the process where a promise does not hold: what a fuzzer calls a finding.
#define FUZZ_CHECK(condition)                                                             \
  do {                                                                                    \
    if (!(condition)) {                                                                   \
      std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                       \
    }                                                                                     \
  } while (false)

namespace quantd::fuzz {

// A refusal of bytes from outside: one of `codes`, with a message.
template <typename... Codes>
void CheckRefusal(const absl::Status& status, Codes... codes) {
  const bool expected = !status.message().empty() && ((status.code() == codes) || ...);
  if (expected) return;
  std::fprintf(stderr, "unexpected refusal: %s\n", status.ToString().c_str());
  std::abort();
}

}  // namespace quantd::fuzz
