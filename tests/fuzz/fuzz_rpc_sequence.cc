// Any sequence of calls of two tenants, right and wrong, over gRPC to all services: no call fails
// by the server's fault, no acknowledged byte is lost, no token counts twice, no tenant sees
// another's.
#include <memory>
#include <string>

#include "tests/fuzz/byte_feed.h"
#include "tests/fuzz/rpc_client.h"
#include "tests/fuzz/rpc_server.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quantd::fuzz;
  static RpcServer server;
  ByteFeed feed(data, size);
  RpcClient first("acme", "beta", server);
  RpcClient second("beta", "acme", server);
  constexpr int kCalls = 24;
  for (int call = 0; call < kCalls && !feed.empty(); ++call) {
    const uint8_t which = feed.Byte();
    if (which == 255) {  // everything that is in memory alone is lost
      server.Restart();
      first.Reconnect();
      second.Reconnect();
      continue;
    }
    ((which & 128) == 0 ? first : second).Call(which & 127, feed);
  }
  first.CheckAndForgetEverything();
  second.CheckAndForgetEverything();
  return 0;
}
