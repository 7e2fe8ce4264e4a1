#include "server/store/page_token.h"

#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "compute/tensor/checksum.h"

namespace quantd::server {
namespace {

// crc (4 bytes) | time (8 bytes) | id. The CRC covers the scope too. It guards against mistakes,
// not against forgery: a query is always limited to the caller's tenant, whatever the token says.
constexpr size_t kCrcBytes = sizeof(uint32_t);
constexpr size_t kHeaderBytes = kCrcBytes + sizeof(int64_t);

uint32_t CrcOf(absl::string_view scope, absl::string_view body) {
  const uint32_t scope_crc =
      compute::Crc32c(absl::StrCat("page token 1 ", scope.size(), ":", scope));
  return compute::Crc32c(body, scope_crc);
}

}  // namespace

std::string MakePageToken(absl::string_view scope, const PageEnd& end) {
  std::string bytes(kHeaderBytes, '\0');
  std::memcpy(bytes.data() + kCrcBytes, &end.time_us, sizeof(end.time_us));
  bytes += end.id;
  const uint32_t crc = CrcOf(scope, absl::string_view(bytes).substr(kCrcBytes));
  std::memcpy(bytes.data(), &crc, kCrcBytes);
  return absl::WebSafeBase64Escape(bytes);
}

absl::StatusOr<PageEnd> ParsePageToken(absl::string_view scope, absl::string_view token) {
  const absl::Status refused = absl::InvalidArgumentError(
      "page_token: expected the next_page_token of an earlier response to the same list");
  std::string bytes;
  if (!absl::WebSafeBase64Unescape(token, &bytes) || bytes.size() < kHeaderBytes) return refused;
  uint32_t crc;
  std::memcpy(&crc, bytes.data(), kCrcBytes);
  if (crc != CrcOf(scope, absl::string_view(bytes).substr(kCrcBytes))) return refused;
  PageEnd end;
  std::memcpy(&end.time_us, bytes.data() + kCrcBytes, sizeof(end.time_us));
  end.id = bytes.substr(kHeaderBytes);
  return end;
}

}  // namespace quantd::server
