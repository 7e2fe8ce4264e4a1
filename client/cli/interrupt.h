#pragma once

#include "client/cpp/client.h"

namespace quantd::cli {

// From here on SIGINT and SIGTERM end the program, or, while an InterruptScope lives, end its
// client's calls with CANCELLED; a second signal ends the program at once. To be called once, first
// in main().
void HandleInterrupts();

class InterruptScope {
 public:
  explicit InterruptScope(client::Client& client);
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;
};

}  // namespace quantd::cli
