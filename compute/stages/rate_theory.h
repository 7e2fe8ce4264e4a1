#pragma once

#include <vector>

#include "absl/types/span.h"

namespace quantd::compute {

// Rate-distortion theory of linear layers with Gaussian weights (WaterSIC, arXiv 2603.04956). Rates
// are bits a weight, distortions tr(dW M dW^T) / (R C).

// R_WF(D) = mean max(0, log2(s^2 lambda_i / tau)) / 2 with the tau for which
// D = mean min(s^2 lambda_i, tau): no code of weights of variance s^2 does with less.
// `eigenvalues` of M in any order; negative ones count as 0. `distortion` > 0. 0 from where D is
// the energy of the weights.
double WaterfillingRate(double variance, absl::Span<const double> eigenvalues, double distortion);

// Arithmetic over geometric mean of positive values; >= 1. 1 for none.
double ArithmeticOverGeometricMean(absl::Span<const double> values);

// Entropy in bits of a Gaussian of standard deviation `spread`, rounded to integers.
double RoundedGaussianEntropy(double spread);

}  // namespace quantd::compute
