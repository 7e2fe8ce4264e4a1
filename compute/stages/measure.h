#pragma once

#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/backend.h"
#include "compute/stages/method.h"
#include "compute/stages/report.h"

namespace quantd::compute {

// What the results for one layer are measured against. Without calibration data the moments, the
// sample and the outputs are empty and the figures that need them stay unset.
struct Reference {
  DeviceTensor weight;         // R x C
  DeviceTensor moment;         // the whole statistic's mean: C x C, or C/b x b x b
  DeviceTensor block_moment;   // C/B x B x B, for the predicted loss
  DeviceTensor sample;         // n x C
  DeviceTensor outputs;        // n x R
  DeviceTensor moment_hat;     // C x C, where drift is known
  DeviceTensor cross;          // C x C
  double output_energy = 0.0;  // tr(W M W^T)
  double weight_energy = 0.0;  // ||W||_F^2
};
absl::StatusOr<Reference> PrepareReference(Backend& backend, Stream& stream, DeviceTensor weight,
                                           const LayerProblem& problem, DeviceTensor moment);

// One layer's part of a solution. `decoded` is empty where activations are not quantized.
struct Candidate {
  BlockTransform transform;
  DeviceTensor dequantized;  // R x C
  DeviceTensor decoded;      // R x C
};

// Both relative errors of a baseline, without its gains.
absl::StatusOr<ErrorReport::Baseline> MeasureBaseline(Backend& backend, Stream& stream,
                                                      const NumberFormat& format,
                                                      const Reference& reference,
                                                      const Candidate& candidate);

// Fills in every error figure of the report but the baselines. `block_size` is that of the worst
// blocks. `format` is null where the method has none: the figures that quantize activations and the
// predicted loss then stay unset.
absl::Status MeasureErrors(Backend& backend, Stream& stream, const NumberFormat* format,
                           const Reference& reference, const Candidate& candidate,
                           int64_t block_size, ErrorReport& report);

// What theory needs of a second moment: the eigenvalues, and AM/GM of L_ii^2, where L is the lower
// Cholesky factor over the live inputs with `damping` of their mean diagonal added.
struct MomentSpectrum {
  std::vector<double> eigenvalues;
  std::optional<double> cholesky_am_gm;  // unset where the factorization fails
};
absl::StatusOr<MomentSpectrum> MeasureSpectrum(Backend& backend, Stream& stream,
                                               const DeviceTensor& moment, double damping);

// The limit at the distortion that the report has measured, the gap to it and GPTQ's predicted gap.
void CompareWithTheory(const MomentSpectrum& spectrum, const Reference& reference,
                       ErrorReport& report);

// Expected squared relative rounding error E[eta^2] of a floating-point format (WUSH, section 3):
// eta = (1 + ln2 2^-b xi) (1 + ln2 2^-s xi') - 1, xi and xi' uniform on +-1/2.
double ExpectedSquaredEta(int element_mantissa_bits, int scale_mantissa_bits);

}  // namespace quantd::compute
