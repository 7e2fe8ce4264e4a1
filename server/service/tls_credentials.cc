#include "server/service/tls_credentials.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <fstream>
#include <sstream>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

namespace quantd::server {
namespace {

struct FreeBio {
  void operator()(BIO* bio) const { BIO_free(bio); }
};
struct FreeCertificate {
  void operator()(X509* certificate) const { X509_free(certificate); }
};
struct FreeKey {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
using Bio = std::unique_ptr<BIO, FreeBio>;
using Certificate = std::unique_ptr<X509, FreeCertificate>;
using PrivateKey = std::unique_ptr<EVP_PKEY, FreeKey>;

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  if (file) content << file.rdbuf();
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  return content.str();
}

Bio Open(const std::string& pem) {
  return Bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

// A server has nobody to ask: an encrypted key is an error, not a prompt on the terminal.
int NoPassphrase(char*, int, int, void*) { return 0; }

absl::StatusOr<Certificate> FirstCertificate(const std::string& path, const std::string& pem) {
  Certificate first(PEM_read_bio_X509(Open(pem).get(), nullptr, NoPassphrase, nullptr));
  ERR_clear_error();
  if (first == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected a certificate in PEM"));
  }
  return first;
}

}  // namespace

absl::StatusOr<TlsMaterial> LoadTlsMaterial(const std::string& certificate_file,
                                            const std::string& key_file,
                                            const std::string& client_ca_file) {
  TlsMaterial material;
  auto chain = ReadFile(certificate_file);
  if (!chain.ok()) return chain.status();
  auto key_text = ReadFile(key_file);
  if (!key_text.ok()) return key_text.status();
  const auto certificate = FirstCertificate(certificate_file, *chain);
  if (!certificate.ok()) return certificate.status();
  const PrivateKey key(
      PEM_read_bio_PrivateKey(Open(*key_text).get(), nullptr, NoPassphrase, nullptr));
  const bool fits = key != nullptr && X509_check_private_key(certificate->get(), key.get()) == 1;
  ERR_clear_error();
  if (key == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(key_file, ": expected a private key in PEM that is not encrypted"));
  }
  if (!fits) {
    return absl::InvalidArgumentError(
        absl::StrCat(key_file, ": the private key is not that of ", certificate_file));
  }
  material.certificate_chain = *std::move(chain);
  material.private_key = *std::move(key_text);
  if (client_ca_file.empty()) return material;
  auto authorities = ReadFile(client_ca_file);
  if (!authorities.ok()) return authorities.status();
  const auto authority = FirstCertificate(client_ca_file, *authorities);
  if (!authority.ok()) return authority.status();
  material.client_authorities = *std::move(authorities);
  return material;
}

namespace {

// gRPC's C++ interface knows certificates that stay and ones that it watches by itself. Its C
// interface asks before each handshake, which lets a reload decide what is valid, and when.
class FetchedCredentials final : public TlsCredentials {
 public:
  FetchedCredentials(TlsMaterial material, bool require_client_certificate)
      : material_(std::move(material)) {
    grpc_ssl_client_certificate_request_type request = GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE;
    if (!material_.client_authorities.empty()) {
      request = require_client_certificate
                    ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                    : GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY;
    }
    credentials_ = std::make_shared<Port>(grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(request, &Fetch, this)));
  }

  void Replace(TlsMaterial material) override {
    absl::MutexLock lock(&mutex_);
    material_ = std::move(material);
    changed_ = true;
  }

  std::shared_ptr<grpc::ServerCredentials> grpc_credentials() override { return credentials_; }

 private:
  class Port final : public grpc::ServerCredentials {
   public:
    explicit Port(grpc_server_credentials* credentials) : credentials_(credentials) {}
    ~Port() override { grpc_server_credentials_release(credentials_); }
    void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

   private:
    int AddPortToServer(const std::string& address, grpc_server* server) override {
      return grpc_server_add_http2_port(server, address.c_str(), credentials_);
    }
    grpc_server_credentials* const credentials_;
  };

  static grpc_ssl_certificate_config_reload_status Fetch(
      void* self, grpc_ssl_server_certificate_config** config) {
    return static_cast<FetchedCredentials*>(self)->Current(config);
  }

  grpc_ssl_certificate_config_reload_status Current(grpc_ssl_server_certificate_config** config) {
    absl::MutexLock lock(&mutex_);
    if (!changed_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    changed_ = false;
    const grpc_ssl_pem_key_cert_pair pair = {material_.private_key.c_str(),
                                             material_.certificate_chain.c_str()};
    const std::string& authorities = material_.client_authorities;
    *config = grpc_ssl_server_certificate_config_create(
        authorities.empty() ? nullptr : authorities.c_str(), &pair, 1);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  absl::Mutex mutex_;
  TlsMaterial material_ ABSL_GUARDED_BY(mutex_);
  bool changed_ ABSL_GUARDED_BY(mutex_) = true;
  std::shared_ptr<Port> credentials_;
};

}  // namespace

std::shared_ptr<TlsCredentials> TlsCredentials::Create(TlsMaterial material,
                                                       bool require_client_certificate) {
  return std::make_shared<FetchedCredentials>(std::move(material), require_client_certificate);
}

}  // namespace quantd::server
