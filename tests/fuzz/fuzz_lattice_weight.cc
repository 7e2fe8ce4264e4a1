// Any tensors are either refused or decode to finite numbers that survive another encoding.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "compute/formats/lattice_weight.h"
#include "tests/fuzz/lattice_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using quantd::compute::LatticeWeight;
  const quantd::fuzz::LatticeInput input = quantd::fuzz::FromBytes({data, size});
  if (input.rows == 0 || input.cols == 0 || input.rows * input.cols > 1 << 12) return 0;
  const auto weight = LatticeWeight::Unpack(input.tensors, input.rows, input.cols);
  if (!weight.ok()) return 0;
  if ((*weight)->rows() != input.rows || (*weight)->cols() != input.cols) std::abort();

  std::vector<double> values(input.rows * input.cols);
  (*weight)->Dequantize(0, input.rows, absl::MakeSpan(values));
  for (const double value : values) {
    if (!std::isfinite(value)) std::abort();
  }
  const auto packed = (*weight)->Pack(0, input.rows);
  if (!packed.ok()) std::abort();
  const auto again = LatticeWeight::Unpack(*packed, input.rows, input.cols);
  if (!again.ok() || (*again)->codes() != (*weight)->codes()) std::abort();
  return 0;
}
