#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "absl/strings/string_view.h"

namespace quantd::fuzz {

// Values from a fuzzer's bytes, one after the other. What is missing at the end reads as zeros, so
// every string means something.
class ByteFeed {
 public:
  ByteFeed(const uint8_t* data, size_t size)
      : rest_(reinterpret_cast<const char*>(data), data == nullptr ? 0 : size) {}

  bool empty() const { return rest_.empty(); }

  template <typename T>
  T Take() {
    T value{};
    const size_t there = std::min(sizeof(T), rest_.size());
    std::memcpy(&value, rest_.data(), there);
    rest_.remove_prefix(there);
    return value;
  }
  uint8_t Byte() { return Take<uint8_t>(); }
  // One of `count` choices, `count` in 1..256.
  int Choice(int count) { return Byte() % count; }

  // A length of two bytes, then as much text as there is of it.
  std::string Text() { return Bytes(Take<uint16_t>()); }
  std::string Bytes(size_t size) {
    std::string text(rest_.substr(0, size));
    rest_.remove_prefix(text.size());
    return text;
  }
  std::string Rest() { return Bytes(rest_.size()); }

 private:
  absl::string_view rest_;
};

}  // namespace quantd::fuzz
