// A name is either refused or made of safe ids of the caller's tenant, and is what those ids name.
#include <string>

#include "absl/strings/str_cat.h"
#include "server/service/resource_name.h"
#include "tests/fuzz/check.h"

namespace {

using quantd::server::ResourceName;

void CheckIds(const ResourceName& name) {
  FUZZ_CHECK(name.tenant == "acme");
  FUZZ_CHECK(!name.first.empty());
  for (const std::string& id : {name.first, name.second}) {
    FUZZ_CHECK(id.size() <= 300);
    FUZZ_CHECK(id.empty() || id[0] != '.');
    for (const char c : id) {
      FUZZ_CHECK((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                 c == '.' || c == '_' || c == '-');
    }
  }
}

void CheckRefused(const absl::Status& status) {
  quantd::fuzz::CheckRefusal(status, absl::StatusCode::kInvalidArgument,
                             absl::StatusCode::kPermissionDenied);
  // What came is cleaned before it is shown.
  for (const char c : status.message()) {
    FUZZ_CHECK(static_cast<unsigned char>(c) >= 0x20 && c != 0x7F);
  }
}

template <typename Rebuild>
void CheckName(const absl::StatusOr<ResourceName>& name, absl::string_view text, Rebuild rebuild) {
  if (!name.ok()) return CheckRefused(name.status());
  CheckIds(*name);
  FUZZ_CHECK(rebuild(*name) == text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quantd::server;
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  CheckName(ParseJobName("name", text, "acme"), text,
            [](const ResourceName& n) { return JobName(n.tenant, n.first); });
  CheckName(ParseLayerName("name", text, "acme"), text,
            [](const ResourceName& n) { return LayerName(n.tenant, n.first, n.second); });
  CheckName(ParseArtifactName("name", text, "acme"), text,
            [](const ResourceName& n) { return ArtifactName(n.tenant, n.first, n.second); });
  CheckName(ParseStatisticName("name", text, "acme"), text, [](const ResourceName& n) {
    return absl::StrCat("tenants/", n.tenant, "/statistics/", n.first);
  });
  for (const absl::Status& status :
       {CheckParent("parent", text, "acme"), CheckId("id", text, 64), CheckText("text", text, 256),
        CheckSharedRegionName("region", text, "acme")}) {
    if (!status.ok()) CheckRefused(status);
  }
  FUZZ_CHECK(!CheckParent("parent", text, "acme").ok() || text == "tenants/acme");
  return 0;
}
