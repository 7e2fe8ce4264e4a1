#pragma once

#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace quantd::server {

// What a TLS endpoint shows and whom it trusts, in PEM.
struct TlsMaterial {
  std::string certificate_chain;
  std::string private_key;
  std::string client_authorities;  // empty: client certificates are not asked for
};

// Reads and checks the files; `client_ca_file` may be empty. INVALID_ARGUMENT for what is no
// certificate, an encrypted key or a key that is not the certificate's; NOT_FOUND for a file that
// cannot be read. No message repeats a file's content.
absl::StatusOr<TlsMaterial> LoadTlsMaterial(const std::string& certificate_file,
                                            const std::string& key_file,
                                            const std::string& client_ca_file);

// Credentials of a TLS endpoint whose material may be replaced: connections made from then on see
// the new, open ones go on. Thread-safe.
class TlsCredentials {
 public:
  // `require_client_certificate`: connections without one are refused. It and whether client
  // certificates are asked for stay as they are here.
  static std::shared_ptr<TlsCredentials> Create(TlsMaterial material,
                                                bool require_client_certificate);
  virtual ~TlsCredentials() = default;
  virtual void Replace(TlsMaterial material) = 0;
  // For grpc::ServerBuilder; the server must be gone before this is.
  virtual std::shared_ptr<grpc::ServerCredentials> grpc_credentials() = 0;
};

}  // namespace quantd::server
