#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "compute/tensor/tensor.h"

// A packed lattice weight as one string of bytes that a fuzzer may change anywhere: rows, columns
// and the number of elements of each tensor as u16, then the tensors. What is missing at the end
// reads as zeros, so every string means something.
namespace quantd::fuzz {

struct LatticeInput {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<compute::NamedTensor> tensors;
};

struct LatticeTensor {
  const char* name;
  compute::DType dtype;
  bool in_pairs;
};

inline constexpr LatticeTensor kLatticeTensors[] = {
    {"z_stream", compute::DType::kU8, false},
    {"z_segment_offset", compute::DType::kU32, true},
    {"z_frequency", compute::DType::kU16, false},
    {"z_escape", compute::DType::kI32, false},
    {"row_scale", compute::DType::kF16, false},
    {"col_scale", compute::DType::kF16, false},
    {"weight_global_scale", compute::DType::kF32, false},
    {"dead_columns", compute::DType::kU16, false},
};

inline std::string ToBytes(const LatticeInput& input) {
  std::string sizes;
  std::string contents;
  const auto append_size = [&](int64_t value) {
    const auto size = static_cast<uint16_t>(value);
    sizes.append(reinterpret_cast<const char*>(&size), sizeof(size));
  };
  append_size(input.rows);
  append_size(input.cols);
  for (const LatticeTensor& expected : kLatticeTensors) {
    for (const compute::NamedTensor& named : input.tensors) {
      if (named.name != expected.name) continue;
      append_size(named.tensor.elements());
      const absl::Span<const std::byte> bytes = named.tensor.bytes();
      contents.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
  }
  return sizes + contents;
}

inline LatticeInput FromBytes(absl::Span<const uint8_t> bytes) {
  const auto take = [&](void* to, size_t size) {
    const size_t there = std::min(size, bytes.size());
    if (there > 0) std::memcpy(to, bytes.data(), there);
    bytes.remove_prefix(there);
  };
  const auto take_size = [&] {
    uint16_t size = 0;
    take(&size, sizeof(size));
    return int64_t{size};
  };
  LatticeInput input;
  input.rows = take_size();
  input.cols = take_size();
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < std::size(kLatticeTensors); ++i) sizes.push_back(take_size());
  for (size_t i = 0; i < std::size(kLatticeTensors); ++i) {
    const LatticeTensor& expected = kLatticeTensors[i];
    // As many elements as there are bytes for, so that sizes alone do not cost time.
    const auto there = static_cast<int64_t>(bytes.size() / compute::SizeOf(expected.dtype) + 2);
    const int64_t size = std::min(sizes[i], there);
    const std::vector<int64_t> shape =
        expected.in_pairs ? std::vector<int64_t>{size / 2, 2} : std::vector<int64_t>{size};
    compute::Tensor tensor = compute::Tensor::Create(expected.dtype, shape).value();
    take(tensor.bytes().data(), tensor.bytes().size());
    input.tensors.push_back({expected.name, std::move(tensor)});
  }
  return input;
}

}  // namespace quantd::fuzz
