#include "server/service/permissions.h"

#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "quantd/v1/calibration.pb.h"
#include "quantd/v1/jobs.pb.h"
#include "quantd/v1/quantize.pb.h"
#include "quantd/v1/results.pb.h"
#include "quantd/v1/server.pb.h"
#include "quantd/v1/weights.pb.h"

namespace quantd::server {
namespace {

TEST(PermissionsTest, EveryMethodOfTheApiHasOneLine) {
  const google::protobuf::FileDescriptor* files[] = {
      v1::Job::descriptor()->file(),        v1::UploadHeader::descriptor()->file(),
      v1::Statistic::descriptor()->file(),  v1::Artifact::descriptor()->file(),
      v1::ServerInfo::descriptor()->file(), v1::QuantizeTensorRequest::descriptor()->file()};
  std::multiset<std::string> methods;
  for (const auto* file : files) {
    for (int i = 0; i < file->service_count(); ++i) {
      const auto* service = file->service(i);
      for (int j = 0; j < service->method_count(); ++j) {
        methods.insert(absl::StrCat(service->full_name(), "/", service->method(j)->name()));
      }
    }
  }
  std::multiset<std::string> table;
  for (const Permission& one : Permissions()) table.insert(std::string(one.method));
  EXPECT_EQ(table, methods);
}

TEST(PermissionsTest, WhatIsNotInTheTableIsForNobody) {
  EXPECT_FALSE(CheckRole("quantd.v1.Jobs/Invented", {"acme", Roles::All(), "none"}).ok());
}

}  // namespace
}  // namespace quantd::server
