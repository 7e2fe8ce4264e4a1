#include "server/service/resource_name.h"

#include <string>

#include "gtest/gtest.h"
#include "server/errors/error.h"

namespace quantd::server {
namespace {

TEST(ResourceNameTest, ParsesEveryPattern) {
  const auto layer = ParseLayerName("name", "tenants/a/jobs/j/layers/model.0.q_proj", "a");
  ASSERT_TRUE(layer.ok()) << layer.status();
  EXPECT_EQ(layer->tenant, "a");
  EXPECT_EQ(layer->first, "j");
  EXPECT_EQ(layer->second, "model.0.q_proj");
  EXPECT_TRUE(ParseJobName("name", JobName("a", "j"), "a").ok());
  EXPECT_TRUE(ParseArtifactName("name", ArtifactName("a", "j", "x.safetensors"), "a").ok());
  EXPECT_TRUE(ParseStatisticName("name", "tenants/a/statistics/s", "a").ok());
  EXPECT_TRUE(CheckParent("parent", "tenants/a", "a").ok());
}

TEST(ResourceNameTest, RefusesWhatIsNoName) {
  const std::string long_id(257, 'x');
  for (const std::string& name :
       {std::string(), std::string("tenants"), std::string("tenants/a/jobs"),
        std::string("tenants/a/jobs/"), std::string("tenants/a/jobs/j/"),
        std::string("/tenants/a/jobs/j"), std::string("tenants/a/job/j"),
        std::string("tenants/a/jobs/.."), std::string("tenants/a/jobs/.hidden"),
        std::string("tenants/a/jobs/a b"), std::string("tenants/a/jobs/a\n"),
        std::string("tenants/a/jobs/\xc3\xa9"), std::string("tenants/a/jobs/") + '\0',
        "tenants/a/jobs/" + long_id}) {
    const absl::Status status = ParseJobName("name", name, "a").status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << name;
    EXPECT_EQ(DetailsOf(status).field, "name") << name;
    // Fit to be shown on a terminal.
    for (const char c : status.message()) EXPECT_TRUE(c >= 0x20 && c < 0x7f) << name;
  }
}

TEST(ResourceNameTest, ForeignTenantsAreRefusedWhateverTheyName) {
  for (const char* name : {"tenants/b/jobs/j", "tenants/b/jobs/.."}) {
    EXPECT_TRUE(absl::IsPermissionDenied(ParseJobName("name", name, "a").status())) << name;
  }
}

TEST(ResourceNameTest, SharedRegionsAreOfTheCallersTenant) {
  EXPECT_TRUE(CheckSharedRegionName("r", "quantd.a.0f3e", "a").ok());
  EXPECT_TRUE(CheckSharedRegionName("r", "quantd.team-1.Trainer_0.x-y", "team-1").ok());
  for (const char* name : {"quantd.b.0f3e", "quantd.b.", "quantd.b../x"}) {
    EXPECT_TRUE(absl::IsPermissionDenied(CheckSharedRegionName("r", name, "a"))) << name;
  }
  for (const std::string& name :
       {std::string(), std::string("quantd"), std::string("quantd.a"), std::string("quantd.a."),
        std::string("quantd.a..x"), std::string("quantd..x"), std::string("other.a.x"),
        std::string("/quantd.a.x"), std::string("quantd.a.x/y"), std::string("quantd.a.x\n"),
        std::string("quantd.a.x") + '\0', "quantd.a." + std::string(65, 'x')}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckSharedRegionName("r", name, "a"))) << name;
  }
}

TEST(ResourceNameTest, FreeTextHasNoControlCharacters) {
  EXPECT_TRUE(CheckText("display_name", "Llama 3.1 8B", 256).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(CheckText("display_name", "bell\a", 256)));
  EXPECT_TRUE(absl::IsInvalidArgument(CheckText("display_name", std::string(257, 'x'), 256)));
}

}  // namespace
}  // namespace quantd::server
