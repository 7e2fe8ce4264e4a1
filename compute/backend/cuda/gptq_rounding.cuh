#pragma once

#include <cstdint>

#include "compute/backend/cuda/number_format.cuh"

namespace quantd::compute {

// Elements that a rounding kernel is built for.
enum class ElementKind { kE2m1, kInteger, kGaussianInteger, kE4m3 };

template <ElementKind kKind>
__device__ inline FormatSpec Specialize(FormatSpec spec) {
  if (kKind == ElementKind::kE2m1) {
    spec.rule = FormatSpec::Rule::kMxfp4Noclip;
    spec.bits = 4;
  }
  if (kKind == ElementKind::kInteger) spec.rule = FormatSpec::Rule::kIntegerAmax;
  if (kKind == ElementKind::kGaussianInteger) spec.rule = FormatSpec::Rule::kIntegerGaussian;
  if (kKind == ElementKind::kE4m3) spec.rule = FormatSpec::Rule::kFp8;
  return spec;
}

// One row of GPTQ inside a unit, scales given, by one thread. Positions are rounded from the last
// to the first: z'_i = z_i + sum_{j > i} N_ji (z_j - q_j), q_i = z'_i rounded. All pointers are to
// shared memory; `slots` say where each position's column is.
struct RoundingRow {
  double* values;         // z by slot; what the codes decode to afterwards
  uint8_t* codes;         // by slot
  const double* scales;   // by scale slot
  const double* factors;  // RoundingFactor of each scale
};
struct RoundingPlan {
  const int* slots;        // by position
  const int* scale_slots;  // by position
  const double* coupling;  // N, kColumns to a row
  bool negative_zeros;     // every E2M1 zero is written as -0
};

// `count` <= kColumns positions, on top of the feedback `from` elsewhere by position (null: none).
// keep(i, z_i - q_i) gets each position's error; it may write it over the feedback.
template <int kColumns, ElementKind kKind, typename Keep>
__device__ inline void RoundRow(const FormatSpec& given, int count, const RoundingPlan& plan,
                                const RoundingRow& row, const double* from, const Keep& keep) {
  const FormatSpec spec = Specialize<kKind>(given);
  double feedback[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) feedback[i] = from != nullptr && i < count ? from[i] : 0.0;
#pragma unroll
  for (int i = kColumns - 1; i >= 0; --i) {
    if (i >= count) continue;
    const int slot = plan.slots[i];
    const int scale_slot = plan.scale_slots[i];
    const double value = row.values[slot];
    uint32_t code = RoundElement(spec, value + feedback[i], row.factors[scale_slot]);
    if (kKind == ElementKind::kE2m1 && plan.negative_zeros && code == 0) code = 8;
    const double decoded = DecodeElement(spec, code, row.scales[scale_slot]);
    const double error = value - decoded;
    row.values[slot] = decoded;
    row.codes[slot] = static_cast<uint8_t>(code);
    keep(i, error);
#pragma unroll
    for (int t = 0; t < i; ++t) {
      feedback[t] = fma(plan.coupling[i * kColumns + t], error, feedback[t]);
    }
  }
}

}  // namespace quantd::compute
