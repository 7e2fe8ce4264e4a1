// Writes the seeds of fuzz_lattice_weight into a folder: small weights that reach every part of the
// grammar. usage: write_lattice_corpus FOLDER
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "compute/coding/integer_coder.h"
#include "compute/formats/lattice_weight.h"
#include "tests/fuzz/corpus_file.h"
#include "tests/fuzz/lattice_input.h"

namespace quantd::fuzz {
namespace {

struct Seed {
  const char* name;
  int64_t rows;
  int64_t cols;
  double deviation;
  double octaves;  // over which the columns' deviations spread
  int64_t dead;
  bool huge;               // one value is too large for a token
  int64_t segment_values;  // 0: as the encoder likes
};

constexpr Seed kSeeds[] = {
    {"one_by_one", 1, 1, 1.0, 0.0, 0, false, 0}, {"zeros", 8, 8, 0.0, 0.0, 0, false, 0},
    {"low_rate", 12, 16, 0.4, 0.0, 0, false, 0}, {"raw_bits", 7, 9, 300.0, 0.0, 2, false, 0},
    {"classes", 64, 24, 1.0, 14.0, 1, false, 0}, {"escape", 9, 5, 2.0, 0.0, 0, true, 0},
    {"all_dead", 3, 4, 1.0, 0.0, 4, false, 0},   {"short_rows", 70, 3, 1.0, 4.0, 0, false, 0},
    {"segments", 13, 27, 3.0, 6.0, 3, true, 64}, {"wide", 2, 200, 5.0, 6.0, 10, false, 0},
};

compute::LatticeWeight::Parts PartsOf(const Seed& seed) {
  std::mt19937_64 random(7);
  std::normal_distribution<double> normal;
  compute::LatticeWeight::Parts parts = {.rows = seed.rows, .cols = seed.cols};
  const int64_t live = seed.cols - seed.dead;
  std::vector<double> deviation(live);
  for (double& each : deviation)
    each = seed.deviation * std::exp2(seed.octaves / 4 * normal(random));
  for (int64_t i = 0; i < seed.rows * live; ++i) {
    parts.codes.push_back(static_cast<int32_t>(std::lround(deviation[i % live] * normal(random))));
  }
  if (seed.huge) parts.codes[0] = -2'000'000'000;
  parts.spacing.assign(live, 0.01);
  for (int64_t c = 0; c < live; ++c) parts.col_scale.push_back(0.9 + 0.05 * normal(random));
  for (int64_t r = 0; r < seed.rows; ++r) parts.row_scale.push_back(1.0 + 0.05 * normal(random));
  for (int64_t d = 0; d < seed.dead; ++d) parts.dead_columns.push_back(seed.cols - seed.dead + d);
  return parts;
}

template <typename T>
void Replace(LatticeInput& input, const std::string& name, const std::vector<T>& values,
             std::vector<int64_t> shape) {
  for (compute::NamedTensor& named : input.tensors) {
    if (named.name != name) continue;
    const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
    named.tensor = compute::Tensor::FromBytes(named.tensor.dtype(), std::move(shape),
                                              {bytes, values.size() * sizeof(T)})
                       .value();
  }
}

// The encoder takes thousands of values a segment.
void SplitIntoSegments(const compute::LatticeWeight& weight, int64_t segment_values,
                       LatticeInput& input) {
  const compute::CodedIntegers coded =
      compute::EncodeIntegers(weight.codes(), weight.live_cols(), segment_values).value();
  const auto size = [](const auto& values) { return static_cast<int64_t>(values.size()); };
  Replace(input, "z_stream", coded.stream, {size(coded.stream)});
  Replace(input, "z_segment_offset", coded.segment_offsets, {size(coded.segment_offsets) / 2, 2});
  Replace(input, "z_frequency", coded.frequencies, {size(coded.frequencies)});
  Replace(input, "z_escape", coded.escapes, {size(coded.escapes)});
}

int WriteAll(const std::string& folder) {
  for (const Seed& seed : kSeeds) {
    const auto weight = compute::LatticeWeight::Create(PartsOf(seed)).value();
    LatticeInput input = {.rows = seed.rows, .cols = seed.cols, .tensors = {}};
    input.tensors = weight->Pack(0, seed.rows).value();
    if (seed.segment_values > 0) SplitIntoSegments(*weight, seed.segment_values, input);
    if (!WriteCorpusFile(folder + "/" + seed.name, ToBytes(input))) return 1;
  }
  return 0;
}

}  // namespace
}  // namespace quantd::fuzz

int main(int argc, char** argv) {
  if (argc == 2) return quantd::fuzz::WriteAll(argv[1]);
  std::fprintf(stderr, "usage: write_lattice_corpus FOLDER\n");
  return 2;
}
