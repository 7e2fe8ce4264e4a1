#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

// Named places at which a test lets the server crash, fail or wait: every write, sync, rename,
// unlink and commit of the store, and the steps of ingest between them. Built with the CMake option
// QUANTD_FAILPOINTS alone; without it nothing of them is in the program, not even their names.
namespace quantd::server {

#ifdef QUANTD_FAILPOINTS
inline constexpr bool kHasFailpoints = true;
#else
inline constexpr bool kHasFailpoints = false;
#endif

// Names of all failpoints, sorted; empty in a build without them.
std::vector<std::string> FailpointNames();

// Says what happens where: "NAME=ACTION[@WHEN]; ...", NAME may be * for all. Replaces what was said
// before. ACTION: crash (SIGKILL to itself), eio, enospc (the operation fails so), delay:MS, trace
// (a line on stderr). WHEN, of the hits of that failpoint: N (the N-th), N-M, N+ (all from the
// N-th), P%SEED (each with probability P, drawn from the seed); without: every one.
// INVALID_ARGUMENT says what is wrong; UNIMPLEMENTED in a build without failpoints. Thread-safe.
absl::Status ArmFailpoints(absl::string_view rules);

// Whether any rule is armed.
bool FailpointsArmed();

// Does what is armed for `name`, a literal. UNKNOWN (eio) or RESOURCE_EXHAUSTED (enospc).
absl::Status HitFailpoint(absl::string_view name);

// A step between two operations.
inline absl::Status Failpoint(absl::string_view name) {
  if constexpr (kHasFailpoints) return HitFailpoint(name);
  return absl::OkStatus();
}

// `operation` between its failpoints NAME and, once it has succeeded, NAME.done: an error there is
// that of an operation which took place and was reported as failed.
template <typename Operation>
absl::Status AtFailpoint(absl::string_view name, Operation operation) {
  if constexpr (!kHasFailpoints) {
    return operation();
  } else {
    absl::Status status = HitFailpoint(name);
    if (status.ok()) status = operation();
    if (status.ok()) status = HitFailpoint(std::string(name) + ".done");
    return status;
  }
}

}  // namespace quantd::server
