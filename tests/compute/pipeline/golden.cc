#include "tests/compute/pipeline/golden.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/str_replace.h"
#include "compute/backend/cpu/cpu_backend.h"
#include "compute/formats/safetensors.h"

namespace quantd::compute {
namespace {

const SafetensorsFile& File() {
  static const auto* file = new SafetensorsFile(
      SafetensorsFile::Open(QUANTD_GOLDEN_DIR "/wush_golden.safetensors").value());
  return *file;
}

// Python wrote NaN where the published code overflowed, which JSON does not know.
const nlohmann::json& Spec() {
  static const auto* spec = new nlohmann::json(nlohmann::json::parse(
      absl::StrReplaceAll(File().header().metadata.at("spec"), {{"NaN", "null"}})));
  return *spec;
}

}  // namespace

SecondMoment GoldenCase::Statistic(MomentLayout layout, int64_t block_size) const {
  const MomentSpec spec = {.layout = layout,
                           .block_size = block_size,
                           .cols = weight.dim(1),
                           .sample_rows = activations.dim(0),
                           .sample_seed = 1};
  const auto backend = NewCpuBackend(2);
  auto accumulator = backend->NewAccumulator(spec, nullptr).value();
  const absl::Status status =
      accumulator->Add("golden", 0, activations.dtype(), activations.dim(0), activations.bytes());
  EXPECT_TRUE(status.ok()) << status;
  return accumulator->Snapshot().value();
}

const std::vector<GoldenCase>& GoldenCases() {
  static const auto* cases = [] {
    auto* all = new std::vector<GoldenCase>;
    for (const auto& [name, facts] : Spec().items()) {
      all->push_back({.name = name,
                      .weight = File().Read(name + "/weight").value(),
                      .activations = File().Read(name + "/activations").value(),
                      .second_moment = File().Read(name + "/second_moment").value()});
    }
    return all;
  }();
  return *cases;
}

GoldenErrors GoldenErrorsOf(const GoldenCase& golden, const std::string& result) {
  const nlohmann::json& errors = Spec().at(golden.name).at("results").at(result);
  const auto number = [&](const char* field) {
    const nlohmann::json& value = errors.at(field);
    return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
  };
  return {.weight_only = number("rel_output_mse_weight_only"),
          .weight_and_activation = number("rel_output_mse_weight_and_activation")};
}

}  // namespace quantd::compute
