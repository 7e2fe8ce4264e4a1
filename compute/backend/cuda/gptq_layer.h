#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/backend/cuda/cuda_stream.h"
#include "compute/backend/cuda/device_memory.h"
#include "compute/backend/cuda/gptq_kernels.h"
#include "compute/backend/gptq_plan.h"
#include "compute/formats/number_format.h"

namespace quantd::compute {

// A layer's plan on the device.
struct DevicePlan {
  DeviceBuffer<int> arranged;  // of each position: its column
  DeviceBuffer<int> inner;     // the same less its unit's first
  DeviceBuffer<int> begins;    // of each unit
  DeviceBuffer<int> firsts;

  static absl::StatusOr<DevicePlan> Upload(CudaStream& stream, const GptqPlan& plan);
};

// What rounding writes, for the whole layer.
struct RoundedLayer {
  int64_t rows = 0;
  int64_t cols = 0;
  const double* target = nullptr;  // R x C, by column
  DeviceBuffer<double> updated;    // R x C, by position: target with the feedback so far
  DeviceBuffer<uint8_t> codes;     // R x C, one a byte
  DeviceBuffer<double> scales;     // by the format's grid
  NewTensor<double> decoded;       // R x C
  NewTensor<double> dequantized;   // R x C; `decoded` again without a transform

  static absl::StatusOr<RoundedLayer> Allocate(CudaStream& stream, const FormatSpec& format,
                                               int64_t rows, int64_t cols, bool identity);
};

// The errors of a panel of positions.
struct GptqPanel {
  int64_t begin = 0;
  int64_t end = 0;
  double* errors = nullptr;  // R x (end - begin)
};

// What a unit is rounded with.
struct UnitOperands {
  const GptqUnit* unit = nullptr;
  const int* inner = nullptr;  // of the unit's positions
  int block_size = 0;          // 0: no transform
  const double* tw = nullptr;  // of the unit's first block
  const float* tx = nullptr;
  const double* coupling = nullptr;  // N, width x width
  const double* factor = nullptr;    // K, C x C
};

// Rounds units of any width, step by step: all scales first, then the columns in chunks, each of
// which feeds back to the rest of its panel at once and to the rest of the unit with its panel.
class WideUnitRounder {
 public:
  static absl::StatusOr<WideUnitRounder> Create(CudaStream& stream, const FormatSpec& format,
                                                const ScaleDivisor& divisor, bool negative_zeros,
                                                int64_t rows, int64_t widest);
  // Writes the unit's columns of `layer`, the panel's errors and its updated positions.
  absl::Status Round(CudaStream& stream, const UnitOperands& operands, const GptqPanel& panel,
                     RoundedLayer& layer);

 private:
  absl::Status SetScales(CudaStream& stream, const UnitColumns& unit, const double* values,
                         RoundedLayer& layer);
  absl::Status RoundColumns(CudaStream& stream, const UnitColumns& unit, const double* coupling,
                            double* values, RoundedLayer& layer);

  FormatSpec format_;
  ScaleDivisor divisor_;
  bool negative_zeros_ = false;
  DeviceBuffer<double> gathered_;  // R x width, like the next three
  DeviceBuffer<double> transformed_;
  DeviceBuffer<double> seen_;
  DeviceBuffer<double> feedback_;  // by position
  DeviceBuffer<double> errors_;    // R x a panel
  DeviceBuffer<double> scales_;
};

// Packs what was rounded. `global`: the divisor of stored scales, 1 without one.
struct PackedLayer {
  DeviceTensor codes;
  DeviceTensor scales;
};
absl::StatusOr<PackedLayer> PackLayer(CudaStream& stream, const NumberFormat& format, double global,
                                      const RoundedLayer& layer);

}  // namespace quantd::compute
