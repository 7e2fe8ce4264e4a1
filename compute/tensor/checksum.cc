#include "compute/tensor/checksum.h"

#include <isa-l/crc.h>
#include <openssl/evp.h>

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"

namespace quantd::compute {
namespace {

absl::Span<const std::byte> AsBytes(absl::string_view data) {
  return {reinterpret_cast<const std::byte*>(data.data()), data.size()};
}

}  // namespace

uint32_t Crc32c(absl::Span<const std::byte> data, uint32_t previous) {
  // ISA-L counts in int and leaves the initial and final inversion to its caller.
  constexpr size_t kLargestPiece = size_t{1} << 30;
  uint32_t state = ~previous;
  while (!data.empty()) {
    const size_t size = std::min(data.size(), kLargestPiece);
    // The API lacks a const, the function does not write.
    auto* piece = reinterpret_cast<unsigned char*>(const_cast<std::byte*>(data.data()));
    state = crc32_iscsi(piece, static_cast<int>(size), state);
    data.remove_prefix(size);
  }
  return ~state;
}

uint32_t Crc32c(absl::string_view data, uint32_t previous) {
  return Crc32c(AsBytes(data), previous);
}

// OpenSSL's calls fail here only when memory is short, which nothing in this library survives; the
// digest then stays all zero and matches nothing.
struct Sha256::State {
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  std::unique_ptr<EVP_MD_CTX, Free> context{EVP_MD_CTX_new()};
};

Sha256::Sha256() : state_(std::make_unique<State>()) { Reset(); }

Sha256::Sha256(const Sha256& other) : state_(std::make_unique<State>()) {
  EVP_MD_CTX_copy_ex(state_->context.get(), other.state_->context.get());
}

Sha256& Sha256::operator=(const Sha256& other) {
  if (this != &other) *this = Sha256(other);
  return *this;
}

Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;
Sha256::~Sha256() = default;

void Sha256::Update(absl::Span<const std::byte> data) {
  EVP_DigestUpdate(state_->context.get(), data.data(), data.size());
}

void Sha256::Update(absl::string_view data) { Update(AsBytes(data)); }

Sha256Digest Sha256::Digest() const {
  Sha256Digest digest{};
  State copy;  // finalizing ends a context
  if (EVP_MD_CTX_copy_ex(copy.context.get(), state_->context.get()) == 1) {
    EVP_DigestFinal_ex(copy.context.get(), digest.data(), nullptr);
  }
  return digest;
}

void Sha256::Reset() { EVP_DigestInit_ex(state_->context.get(), EVP_sha256(), nullptr); }

Sha256Digest Sha256::Of(absl::string_view data) {
  Sha256 sha;
  sha.Update(data);
  return sha.Digest();
}

std::string ToHex(const Sha256Digest& digest) { return absl::BytesToHexString(ToBytes(digest)); }

std::string ToBytes(const Sha256Digest& digest) {
  return std::string(reinterpret_cast<const char*>(digest.data()), digest.size());
}

}  // namespace quantd::compute
