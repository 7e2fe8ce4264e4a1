#pragma once

#include <map>
#include <string>

#include "client/cli/terminal.h"
#include "client/cpp/resources.h"

namespace quantd::cli {

// Shows a job while it runs: a line that stays for every layer that changes state, and on a
// terminal a line at the bottom with progress, queue position and time left.
class WatchDisplay {
 public:
  // `every_state`: lines for every change of state, not only for failures.
  WatchDisplay(const Output& output, bool every_state);
  void Update(const client::JobUpdate& update);
  void Finish() { bar_.Clear(); }

 private:
  void PrintChanges(const client::JobUpdate& update);
  void DrawBar(const client::JobUpdate& update);

  const Output output_;
  const bool every_state_;
  ProgressBar bar_;
  std::map<std::string, client::LayerState> layers_;
};

// "queued, position 3", "running, 12 s left".
std::string DescribeJob(const client::JobUpdate& update);
// "position 3, 2 min left, waits for max_running_layers"; "-" where there is nothing to say.
std::string DescribeQueue(const client::Job& job);
// Why a job did not succeed; OK where it did.
absl::Status Outcome(const client::Job& job);

}  // namespace quantd::cli
