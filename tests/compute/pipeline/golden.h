#pragma once

#include <string>
#include <vector>

#include "compute/second_moment/second_moment.h"
#include "compute/tensor/tensor.h"

namespace quantd::compute {

// One case of tests/golden/wush_golden.safetensors: inputs, and the relative output errors that the
// papers' published code reached on them.
struct GoldenCase {
  std::string name;
  Tensor weight;
  Tensor activations;
  Tensor second_moment;

  // The statistic of all activations, each of them retained in the sample.
  SecondMoment Statistic(MomentLayout layout, int64_t block_size) const;
};
const std::vector<GoldenCase>& GoldenCases();

struct GoldenErrors {
  double weight_only;
  double weight_and_activation;  // NaN where the published code overflowed
};
// `result`: "mxfp4.wush.rtn".
GoldenErrors GoldenErrorsOf(const GoldenCase& golden, const std::string& result);

}  // namespace quantd::compute
