#include "compute/backend/cuda/device_monitor.h"

#include "compute/backend/cuda/cuda_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quantd::compute {
namespace {

using ::testing::AllOf;
using ::testing::Ge;
using ::testing::Gt;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::Lt;
using ::testing::Optional;
using ::testing::StartsWith;

void ExpectNothing(const DeviceActivity& activity) {
  EXPECT_EQ(activity.utilisation, std::nullopt);
  EXPECT_EQ(activity.power_watts, std::nullopt);
  EXPECT_EQ(activity.temperature_celsius, std::nullopt);
}

TEST(DeviceMonitorTest, TheDeviceSaysWhatItDoes) {
  const auto backend = NewCudaBackend(0, 1).value();
  EXPECT_THAT(backend->Describe().uuid, StartsWith("GPU-"));
  const DeviceActivity activity = backend->Activity();
  EXPECT_EQ(activity.unknown, "");
  EXPECT_THAT(activity.utilisation, Optional(AllOf(Ge(0.0), Le(1.0))));
  EXPECT_THAT(activity.power_watts, Optional(AllOf(Gt(0.0), Lt(5000.0))));
  EXPECT_THAT(activity.temperature_celsius, Optional(AllOf(Gt(0.0), Lt(120.0))));
}

TEST(DeviceMonitorTest, NothingWithoutTheLibrary) {
  const DeviceActivity activity = DeviceMonitor("0000:00:00.0", "libno-such-library.so").Read();
  ExpectNothing(activity);
  EXPECT_THAT(activity.unknown, HasSubstr("libno-such-library.so"));
}

TEST(DeviceMonitorTest, NothingFromAnotherLibrary) {
  const DeviceActivity activity = DeviceMonitor("0000:00:00.0", "libc.so.6").Read();
  ExpectNothing(activity);
  EXPECT_EQ(activity.unknown, "libc.so.6 has no nvmlInit_v2");
}

TEST(DeviceMonitorTest, NothingOfADeviceThatIsNotThere) {
  const DeviceActivity activity = DeviceMonitor("ffff:ff:1f.7").Read();
  ExpectNothing(activity);
  EXPECT_NE(activity.unknown, "");
}

}  // namespace
}  // namespace quantd::compute
