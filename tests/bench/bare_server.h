#pragma once

namespace quantd::bench {

// A gRPC server that reads messages of any method as bytes and drops them: what the transport alone
// costs. Its first answer gives unlimited credit. Prints where it listens as quantd does and serves
// until SIGTERM.
int RunBareServer();

}  // namespace quantd::bench
