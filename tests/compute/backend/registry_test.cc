// Which devices a list names. What CUDA devices there are is up to the machine.
#include "compute/backend/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace quantd::compute {
namespace {

using testing::HasSubstr;

std::vector<std::string> Names(const std::string& devices) {
  std::vector<std::string> names;
  const auto backends = OpenBackends({.devices = devices, .cpu_threads = 1});
  if (!backends.ok()) return {backends.status().ToString()};
  for (const auto& backend : *backends) names.push_back(backend->Describe().name);
  return names;
}

TEST(RegistryTest, AutoFindsADeviceEverywhere) {
  const std::vector<std::string> names = Names("auto");
  ASSERT_FALSE(names.empty());
  EXPECT_EQ(names.front(), WhyNoCuda().empty() ? "cuda:0" : "cpu");
}

TEST(RegistryTest, TheCpuIsAlwaysThere) {
  EXPECT_EQ(Names("cpu"), std::vector<std::string>{"cpu"});
}

TEST(RegistryTest, RefusesWhatIsNotThere) {
  const absl::Status status = OpenBackends({.devices = "cpu,cuda:4711"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("cuda:4711"));
}

TEST(RegistryTest, RefusesWhatNamesNoDevice) {
  for (const std::string devices :
       {"", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu,", "cpu, cpu", "cpu,cpu", "auto,cpu"}) {
    const absl::Status status = OpenBackends({.devices = devices}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << devices;
    EXPECT_THAT(std::string(status.message()), HasSubstr("devices: expected")) << devices;
  }
}

}  // namespace
}  // namespace quantd::compute
