#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace quantd::compute {

// CRC-32C (Castagnoli, RFC 3720) of `data`, appended to bytes whose CRC is `previous`:
// Crc32c(ab) == Crc32c(b, Crc32c(a)). Crc32c("123456789") is 0xe3069283. Thread-safe.
uint32_t Crc32c(absl::Span<const std::byte> data, uint32_t previous = 0);
uint32_t Crc32c(absl::string_view data, uint32_t previous = 0);

using Sha256Digest = std::array<uint8_t, 32>;

// SHA-256 (FIPS 180-4) of bytes that arrive in pieces. Copies continue independently from what was
// added so far. Thread-compatible.
class Sha256 {
 public:
  Sha256();
  Sha256(const Sha256& other);
  Sha256& operator=(const Sha256& other);
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  ~Sha256();

  void Update(absl::Span<const std::byte> data);
  void Update(absl::string_view data);
  // Digest of everything so far. More may be added afterwards.
  Sha256Digest Digest() const;
  void Reset();

  static Sha256Digest Of(absl::string_view data);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// 64 lower-case hexadecimal digits.
std::string ToHex(const Sha256Digest& digest);
// The 32 bytes as a string, the form of the API's `sha256` fields.
std::string ToBytes(const Sha256Digest& digest);

}  // namespace quantd::compute
